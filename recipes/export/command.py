"""`ssmvision export`: a MONAI bundle, an ONNX file or a `torch.export` program, compared with PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import torch

from ssmvision.errors import UserError
from ssmvision.export import ExportReport, to_onnx, to_program
from ssmvision.recipes.export.config import ExportConfig, Format
from ssmvision.recipes.segmentation.writing import check_free

__all__ = ["run"]

FORMATS: dict[str, Format] = {".onnx": "onnx", ".pt2": "torch"}
WRITERS: dict[Format, tuple[str, Callable[..., ExportReport]]] = {
    "onnx": ("ONNX Runtime", to_onnx),
    "torch": ("the loaded program", to_program),
}
OF_BUNDLES = ("name", "version", "description", "authors", "copyright", "license")
OF_FILES = ("size", "any_size", "tolerance", "pictures", "pretrained", "overwrite")


def run(config: ExportConfig) -> Path:
    """Writes what is asked for and says how it compares; returns its path.

    Raises:
        UserError: settings that contradict each other, a model that cannot be exported, or a result that is off.
    """
    chosen = FORMATS.get(config.output.suffix, "bundle") if config.format == "auto" else config.format
    _check_settings(config, chosen)
    if chosen == "bundle":
        from ssmvision.recipes.bundle.export import run as write_bundle
        from ssmvision.recipes.export.sources import is_segmentation_run

        if not is_segmentation_run(config.model):
            raise UserError(f"{config.model}: only segmentation runs become bundles; name the output .onnx or .pt2")
        return write_bundle(config)
    return _write_file(config, chosen)


def _check_settings(config: ExportConfig, chosen: Format) -> None:
    foreign = OF_FILES if chosen == "bundle" else OF_BUNDLES
    for item in fields(ExportConfig):
        if item.name in foreign and getattr(config, item.name) != item.default:
            kinds = "ONNX files and programs" if chosen == "bundle" else "bundles"
            raise UserError(f"--{item.name}: is of {kinds}, not of {config.output} (--format {chosen}); leave it out")
    if config.tolerance is not None and not config.tolerance > 0:
        raise UserError(f"--tolerance {config.tolerance}: give a number above 0, such as 1e-4")
    suffix = next((ending for ending, kind in FORMATS.items() if kind == chosen), config.output.suffix)
    if config.output.suffix != suffix:
        raise UserError(f"{config.output}: --format {chosen} needs a file that ends in {suffix}")


def _write_file(config: ExportConfig, chosen: Format) -> Path:
    from ssmvision.recipes.export.sources import open_source

    check_free(config.output, config.overwrite)
    source = open_source(config)
    if config.pictures is not None and source.real is None:
        raise UserError(f"--pictures {config.pictures}: {config.model} is no classifier; leave it out")
    generator = torch.Generator().manual_seed(0)
    example = [torch.randn(1, source.channels, *source.size, generator=generator) for _ in range(source.inputs)]
    samples, seen = [], "random values"
    if source.real is not None:
        batch, named = source.real()
        samples, seen = [(batch,)], f"{named} and random values"
    dynamic = (0, *range(2, 2 + len(source.size))) if config.any_size else (0,)
    runtime, write = WRITERS[chosen]
    chosen_tolerance = {} if config.tolerance is None else {"tolerance": config.tolerance}
    try:
        report = write(source.model, config.output, example, dynamic, samples=samples, **chosen_tolerance)
    except ValueError as error:
        raise UserError(f"{error}; nothing was written. --tolerance allows more") from error
    print(_told(report, runtime, seen))
    return config.output


def _told(report: ExportReport, runtime: str, seen: str) -> str:
    own = ""
    if report.eager_error is not None:
        own = f"\nthere the file is {report.exact_error:.1e} away from float64, PyTorch {report.eager_error:.1e}"
    size, threads = f"{report.megabytes:.1f} MB, {report.nodes} operators", torch.get_num_threads()
    return (
        f"{report.path}: {size}, written in {report.seconds:.1f} s\n"
        f"one input, {threads} CPU thread{'s' * (threads > 1)}: {runtime} {report.runtime_ms:.1f} ms, "
        f"PyTorch {report.eager_ms:.1f} ms\n"
        f"on {seen}: greatest difference {report.error:.1e} of the greatest value, "
        f"largest class the same in {report.argmax_equal:.2%}{own}"
    )
