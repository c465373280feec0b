"""Training pairs: two registered gray images in [0, 1], from pictures, or from volumes slice by slice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssmvision.errors import UserError
from ssmvision.recipes.fusion.config import DataConfig

__all__ = ["ImagePair", "hold_out", "read_pairs"]


@dataclass(frozen=True)
class ImagePair:
    """Two gray images of one scene on one grid.

    Args:
        group: what is held out as a whole: the name of the file, be it a picture or a volume.
        name: of this pair, for captions.
        a, b: (H, W) float32 in [0, 1].
        truth: (H, W) float32 in [0, 1], the image that a perfect fusion gives; None where nobody knows.
    """

    group: str
    name: str
    a: NDArray[np.float32]
    b: NDArray[np.float32]
    truth: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        for image in (self.b, self.truth):
            if image is not None and image.shape != self.a.shape:
                raise ValueError(f"{self.name}: images are {self.a.shape} and {image.shape}; they must be on one grid")


def read_pairs(config: DataConfig) -> list[ImagePair]:
    """Every pair, in the order of the names; a volume gives one pair a slice.

    Colours are reduced to their luminance. A volume has one window, not one a slice. Slices in which either image is
    constant hold nothing to fuse and are left out.

    Raises:
        UserError: a file is missing, damaged or has no partner, or a pair is not on one grid.
    """
    from ssmvision.recipes.fusion.pairing import plan_pairs

    plan = plan_pairs(Path(config.a), Path(config.b), Path("fused"))
    if plan.unmatched:
        raise UserError(f"data: {'; '.join(plan.unmatched[:5])}; {len(plan.unmatched)} in all: remove or complete them")
    pairs = [pair for planned in plan.pairs for pair in _read(planned.name, planned.a, planned.b, config)]
    if not pairs:
        raise UserError(f"data: every slice of {config.a} or {config.b} is constant; there is nothing to learn from")
    return pairs


def _read(name: str, a: Path, b: Path, config: DataConfig) -> list[ImagePair]:
    from ssmvision.recipes.fusion.images import read_picture
    from ssmvision.recipes.fusion.layers import layers_of
    from ssmvision.recipes.fusion.pairing import is_volume
    from ssmvision.recipes.fusion.volumes import as_slices, check_registered, slicing_axis

    windows = [_window(name, value) for name, value in (("a", config.window_a), ("b", config.window_b))]
    if not is_volume(a):
        first, second = (read_picture(path, window) for path, window in zip((a, b), windows, strict=True))
        if first.shape != second.shape:
            raise UserError(
                f"{b}: {_size(second.shape)} pixels, {a} has {_size(first.shape)}; training needs registered pairs of "
                "one size, resample one of them"
            )
        return [ImagePair(name, name, layers_of(first).y, layers_of(second).y)]
    first, second = (_read_volume(path, window) for path, window in zip((a, b), windows, strict=True))
    check_registered(first, second)
    assert first.grid is not None
    axis, affine = slicing_axis(first.grid, config.axis), first.grid.affine
    slices = [np.ascontiguousarray(as_slices(layers_of(source).y, affine, axis)) for source in (first, second)]
    return [
        ImagePair(name, f"{name}, {axis} slice {i}", x, y)
        for i, (x, y) in enumerate(zip(*slices, strict=True))
        if np.ptp(x) > 0 and np.ptp(y) > 0
    ]


def _read_volume(path: Path, window: Any) -> Any:
    from ssmvision.recipes.fusion.volumes import read_nifti

    if path.is_dir():
        from ssmvision.recipes.fusion.dicom import read_dicom

        return read_dicom(path, window)
    return read_nifti(path, window)


def _window(name: str, values: tuple[float, float] | None) -> Any:
    from ssmvision.recipes.fusion.windows import Window

    if values is None:
        return None
    try:
        return Window(*values)
    except ValueError as error:
        raise UserError(f"data.window_{name}: {error}") from error


def _size(shape: Sequence[int]) -> str:
    return "x".join(str(n) for n in shape)


def hold_out(
    pairs: Sequence[ImagePair], names: Sequence[str], fraction: float, seed: int
) -> tuple[list[ImagePair], list[ImagePair]]:
    """Training and validation pairs; what comes from one file is in one of them.

    Args:
        pairs: all of them.
        names: groups held out; empty: a share of them by chance.
        fraction: see `DataConfig.validation_fraction`.
        seed: of the chance.

    Raises:
        UserError: a name is unknown, or nothing is left to train on.
    """
    groups = list(dict.fromkeys(pair.group for pair in pairs))
    unknown = [name for name in names if name not in groups]
    if unknown:
        raise UserError(f"data.validation_pairs: no pair is named {', '.join(unknown)}; there are {', '.join(groups)}")
    chosen = set(names)
    if not names and fraction > 0 and len(groups) > 1:
        count = min(max(1, round(fraction * len(groups))), len(groups) - 1)
        chosen = set(np.random.default_rng(seed).permutation(groups)[:count].tolist())
    if len(chosen) == len(groups):
        raise UserError(f"data.validation_pairs: all {len(groups)} pairs are held out; leave some to train on")
    return [p for p in pairs if p.group not in chosen], [p for p in pairs if p.group in chosen]
