"""`ssmvision fuse`: fuses pairs of files on the grid of the first; one bad pair does not stop the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from ssmvision.errors import UserError
from ssmvision.recipes.devices import pick_device
from ssmvision.recipes.dicom.files import is_dicom
from ssmvision.recipes.fusion import classical, images, volumes
from ssmvision.recipes.fusion.dicom import read_dicom
from ssmvision.recipes.fusion.fuse_config import FuseConfig
from ssmvision.recipes.fusion.fuse_metrics import Row, check_report, measured, write_report
from ssmvision.recipes.fusion.layers import Stored, layers_of, pick_chroma, pick_like, stored_values
from ssmvision.recipes.fusion.pairing import Pair, Plan, is_volume, plan_pairs
from ssmvision.recipes.fusion.postprocess import clamped, stretched
from ssmvision.recipes.fusion.sources import Source
from ssmvision.recipes.fusion.windows import Window
from ssmvision.recipes.segmentation.writing import check_free

__all__ = ["FusionMethod", "fuse_pair", "make_method", "run"]

Slices = NDArray[np.float32]
# Two stacks of slices (S, H, W) in 0..1 to one, not necessarily within 0..1.
FusionMethod = Callable[[Slices, Slices], Slices]


def run(config: FuseConfig) -> list[Path]:
    """Writes one fused file per pair, and the metrics if asked for; returns the files' paths.

    Raises:
        UserError: the arguments or weights are unusable (nothing is written), or some pairs failed or some images have
            no partner (the others are written; the message lists every one).
    """
    console = Console(stderr=True)
    _set_threads(config.threads)
    plan = plan_pairs(config.a, config.b, config.out)
    _check_outputs(plan, config)
    method = make_method(config)
    written: list[Path] = []
    rows: list[Row] = []
    failed: list[str] = list(plan.unmatched)
    for i, pair in enumerate(plan.pairs, 1):
        try:
            row = fuse_pair(pair, method, config)
        except (UserError, RuntimeError, OSError, MemoryError) as error:
            told = str(error) if isinstance(error, UserError) else f"{pair.a}: {error}"
            if len(plan.pairs) == 1 and not plan.unmatched:
                raise UserError(told) from error
            failed.append(told)
            _tell(console, f"[{i}/{len(plan.pairs)}] failed: {told}")
            continue
        written.append(pair.out)
        rows += [row] if row is not None else []
        _tell(console, f"[{i}/{len(plan.pairs)}] {pair.out}")
    if config.metrics is not None:
        write_report(config.metrics, rows, _settings(config), failed)
    if failed:
        done = f"{len(written)} of {len(plan.pairs)} pair(s) fused"
        raise UserError(f"fuse: {done}; {len(failed)} problem(s): " + "; ".join(failed))
    return written


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        if threads < 1:
            raise UserError(f"--threads is {threads}; give 1 or more")
        torch.set_num_threads(threads)


def _tell(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _settings(config: FuseConfig) -> dict[str, str]:
    settings: dict[str, str] = {"method": config.method, "postprocess": config.postprocess}
    if config.method == "fusionmamba":
        settings["weights"] = "shipped" if config.weights is None else config.weights.name
    return settings


def _check_outputs(plan: Plan, config: FuseConfig) -> None:
    for pair in plan.pairs:
        check_free(pair.out, config.overwrite, (pair.a, pair.b))
        if is_volume(pair.a):
            volumes.check_storable(pair.out)
    if config.metrics is not None:
        check_report(config.metrics, config.overwrite)


def make_method(config: FuseConfig) -> FusionMethod:
    """The method of fusion that the settings name.

    Raises:
        UserError: weights or device cannot be used, or weights are given to a method that has none.
    """
    if config.method != "fusionmamba":
        if config.weights is not None:
            raise UserError(f"--weights has no use with --method {config.method}; leave one of them out")
        return _slice_by_slice(classical.METHODS[config.method])
    from ssmvision.recipes.fusion.fuse_network import NetworkFusion, open_network

    try:
        device = pick_device(config.device)
    except ValueError as error:
        raise UserError(f"fuse: {error}") from error
    return NetworkFusion(open_network(config.weights), device, config.tile)


def _slice_by_slice(fuse: Callable[..., NDArray[np.floating]]) -> FusionMethod:
    def method(a: Slices, b: Slices) -> Slices:
        return np.stack([fuse(x, y) for x, y in zip(a, b, strict=True)]).astype(np.float32)

    return method


def fuse_pair(pair: Pair, method: FusionMethod, config: FuseConfig) -> Row | None:
    """Reads, fuses and writes one pair.

    Returns:
        Its metrics, if the settings ask for them.

    Raises:
        UserError: the images cannot be read, do not lie on one grid, or the output cannot be written.
    """
    a, b = _read(pair.a, config.window_a), _read(pair.b, config.window_b)
    b = (_on_grid if a.is_volume else images.on_size)(a, b, config.resample)
    layers = layers_of(a, config.colormap_a), layers_of(b, config.colormap_b)
    chroma = pick_chroma(layers, config.colour)
    like = pick_like(a, b, layers, config.colour, config.like)
    if not a.is_volume:
        images.check_storable(pair.out, like.dtype)
    slices = [_slices(image.y, a, config) for image in layers]
    fused = (stretched if config.postprocess == "official" else clamped)(method(*slices))
    y = _unsliced(fused, a, config)
    stored = stored_values(y, chroma, like, config.postprocess == "official")
    _write(pair.out, stored, a, like)
    if config.metrics is None:
        return None
    final = layers_of(Source(pair.out, stored.values, stored.window, stored.dtype, a.grid))
    return measured(pair.name, slices[0], slices[1], _slices(final.y, a, config))


def _read(path: Path, limits: tuple[float, float] | None) -> Source:
    try:
        window = None if limits is None else Window(*limits)
    except ValueError as error:
        raise UserError(f"--window: {error}") from None
    if not is_volume(path):
        return images.read_picture(path, window)
    if path.name.lower().endswith(volumes.ENDINGS):
        return volumes.read_nifti(path, window)
    if path.is_dir() or is_dicom(path):
        return read_dicom(path, window)
    known = ", ".join((*images.ENDINGS, *volumes.ENDINGS))
    raise UserError(f"{path}: is neither DICOM nor ends in {known}; convert it to PNG, TIFF or NIfTI")


def _on_grid(a: Source, b: Source, resample: bool) -> Source:
    """The second volume, on the grid of the first."""
    assert a.grid is not None
    try:
        volumes.check_registered(a, b)
    except UserError:
        if not resample:
            raise
        return volumes.resampled(b, a.grid)
    return b


def _slices(y: Slices, a: Source, config: FuseConfig) -> Slices:
    """(S, H, W): a volume's slices as they are looked at, or the picture."""
    if a.grid is None:
        return y[None]
    return np.ascontiguousarray(volumes.as_slices(y, a.grid.affine, volumes.slicing_axis(a.grid, config.axis)))


def _unsliced(slices: Slices, a: Source, config: FuseConfig) -> Slices:
    if a.grid is None:
        return np.asarray(slices[0])
    return np.asarray(volumes.from_slices(slices, a.grid.affine, volumes.slicing_axis(a.grid, config.axis)))


def _write(path: Path, stored: Stored, a: Source, like: Source) -> None:
    if a.grid is None:
        images.write_picture(path, stored.values, like.alpha)
    else:
        volumes.write_nifti(path, stored.values, a.grid, stored.dtype, stored.scale, same_numbers=like is a)
