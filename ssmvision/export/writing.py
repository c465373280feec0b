"""Writing a file, comparing it, and only then putting it where it was asked for."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ssmvision.errors import UserError
from ssmvision.export.comparison import ExportReport, Run, compare

__all__ = ["all_batches", "checked_target", "written"]

EXTRA_IMAGES = 2


def checked_target(path: str | os.PathLike[str], suffix: str) -> Path:
    """The path, if it ends as its format does.

    Raises:
        UserError: another ending, or a folder.
    """
    target = Path(path)
    if target.suffix != suffix:
        raise UserError(f"{target}: ends in {target.suffix!r}; name the file {suffix}")
    if target.is_dir():
        raise UserError(f"{target}: is a folder; name a file")
    return target


def written(
    target: Path,
    write: Callable[[Path], int],
    load: Callable[[Path], Run],
    model: nn.Module,
    batches: Sequence[tuple[Tensor, ...]],
    tolerance: float,
    *,
    rounding: bool = False,
) -> ExportReport:
    """Writes a file beside its place, compares it with the model, and moves it there.

    Args:
        target: the file; replaced if it exists.
        write: to a path of the same name; returns the number of operators.
        load: what was written, ready to run.
        model: what it was made from.
        batches: to compare on.
        tolerance: greatest error that is allowed.
        rounding: allow more to a model that magnifies rounding, see `compare`.

    Raises:
        UserError: the folder takes no file.
        ValueError: the error is greater than what is allowed; nothing is left behind.
    """

    @torch.no_grad()
    def eager(values: tuple[Tensor, ...]) -> Tensor:
        out: Tensor = model(*values)
        return out

    @torch.no_grad()
    def exact(values: tuple[Tensor, ...]) -> Tensor:
        from ssmvision.export.lowering import in_double

        out: Tensor = in_double(model)(*(t.double() for t in values))
        return out

    with _folder_beside(target) as folder:
        start = time.perf_counter()
        nodes = write(folder / target.name)
        seconds = time.perf_counter() - start
        run = load(folder / target.name)
        try:
            limits = (tolerance, exact if rounding else None)
            report = compare(folder / target.name, nodes, seconds, run, eager, batches, *limits)
        except ValueError as error:
            raise ValueError(f"{target}: {error}") from error
        for file in sorted(folder.iterdir(), key=lambda file: file.name == target.name):  # weights before their graph
            file.replace(target.parent / file.name)
    return replace(report, path=target)


@contextmanager
def _folder_beside(target: Path) -> Iterator[Path]:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
            yield Path(folder)
    except OSError as error:
        raise UserError(f"{target}: could not be written ({error}); choose another place") from error


def all_batches(
    inputs: tuple[Tensor, ...], samples: Sequence[tuple[Tensor, ...]], open_batch: bool
) -> list[tuple[Tensor, ...]]:
    """The example, one of more images where the batch is open, and the samples."""
    batches = [inputs]
    if open_batch:
        generator = torch.Generator().manual_seed(0)
        larger = (torch.randn(t.shape[0] + EXTRA_IMAGES, *t.shape[1:], generator=generator) for t in inputs)
        batches.append(tuple(larger))
    return [*batches, *(tuple(t.detach().float().cpu() for t in sample) for sample in samples)]
