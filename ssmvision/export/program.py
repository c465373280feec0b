"""Models as `torch.export` programs, which keep our operators and so their speed."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
from torch import Tensor, nn

from ssmvision.errors import UserError
from ssmvision.export.comparison import ExportReport, Run
from ssmvision.export.tracing import as_inputs, traced
from ssmvision.export.writing import all_batches, checked_target, written

__all__ = ["load_program", "to_program"]


def to_program(
    model: nn.Module,
    path: str | os.PathLike[str],
    example_input: Tensor | Sequence[Tensor],
    dynamic: Sequence[int] = (0,),
    tolerance: float = 1e-5,
    samples: Sequence[Sequence[Tensor]] = (),
) -> ExportReport:
    """Writes a model as a `torch.export` program, loads it again, and compares it with the model.

    The program calls our operators by name, so that they choose the fastest backend where it runs; whoever loads it
    needs this package installed, but none of the model's code. It is read by `load_program`, or by `torch.export.load`
    after `import ssmvision.models`.

    Args:
        model: any of this package's models, or one that contains its layers. A copy in float32, on the CPU, and in
            evaluation mode is exported; one tensor comes out. `torch.export.passes.move_to_device_pass` moves the
            program to a GPU.
        path: of the file, ending in .pt2; replaced if it exists.
        example_input: a tensor, or all that `forward` takes.
        dynamic: axes of every input whose size is left open; 0 is the batch. Others can stay open where the model takes
            any size and has no S4ND layers, whose kernels are those of one size.
        tolerance: greatest allowed difference, as a share of the greatest value.
        samples: further inputs to compare on, such as real images; each all that `forward` takes.

    Returns:
        Sizes, errors and times.

    Raises:
        UserError: the model cannot be exported with these axes open, or the file not be written.
        ValueError: the loaded program's result is off by more than `tolerance`; no file is left, an older one stays.

    Example:
        >>> report = to_program(model, "vim.pt2", torch.randn(1, 3, 224, 224))  # doctest: +SKIP
        >>> logits = load_program("vim.pt2")(torch.randn(8, 3, 224, 224))  # doctest: +SKIP
    """
    target = checked_target(path, ".pt2")
    inputs = as_inputs(example_input)
    from ssmvision.export.lowering import with_held_kernels

    ready = with_held_kernels(model, inputs)

    def write(file: Path) -> int:
        program = traced(ready, inputs, dynamic, target)
        torch.export.save(program, file)
        return len(program.graph.nodes)

    batches = all_batches(inputs, [tuple(sample) for sample in samples], 0 in dynamic)
    return written(target, write, _runner, ready, batches, tolerance)


def load_program(path: str | os.PathLike[str]) -> nn.Module:
    """A program as a module, with our operators registered.

    Args:
        path: of `to_program`. Like every file of `torch.export.save` it may hold pickles: open only files that you
            trust.

    Raises:
        UserError: the file is missing or no program.
    """
    import ssmvision.layers  # noqa: F401  (registers, by the models that it brings in, every operator)

    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; give one that ssmvision.export.to_program wrote")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given buffer is not writable")  # nothing writes to the weights
            return torch.export.load(path).module()
    except (RuntimeError, ValueError, BadZipFile) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not a program of torch.export ({reason}); export the model again") from error


def _runner(file: Path) -> Run:
    program: Any = load_program(file)

    @torch.no_grad()
    def run(values: tuple[Tensor, ...]) -> Tensor:
        out: Tensor = program(*values)
        return out

    return run
