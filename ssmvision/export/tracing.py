"""Models as `torch.export` programs, with the sizes that stay open checked."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ssmvision.errors import UserError
from ssmvision.layers.s4nd import S4ND

__all__ = ["FAILURES", "as_inputs", "refusal", "traced"]

FAILURES = (torch.onnx.errors.OnnxExporterError, torch._dynamo.exc.UserError, RuntimeError)


def as_inputs(example: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """All that `forward` takes, float32 on the CPU."""
    inputs = (example,) if isinstance(example, Tensor) else tuple(example)
    return tuple(t.detach().float().cpu() for t in inputs)


def refusal(path: Path, dynamic: Sequence[int], error: BaseException) -> UserError:
    """What to tell users of an export that failed: the first cause, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return UserError(f"{path}: the model could not be exported with axes {list(dynamic)} open ({reason})")


def traced(
    model: nn.Module, inputs: tuple[Tensor, ...], dynamic: Sequence[int], path: Path
) -> torch.export.ExportedProgram:
    """A model's program.

    Args:
        model: in evaluation mode, prepared by `ssmvision.export.lowering`.
        inputs: of `forward`.
        dynamic: axes of every input whose size is left open.
        path: of the file that it is for, to name it in errors.

    Raises:
        UserError: the model takes one of these sizes for a constant.
    """
    if set(dynamic) - {0} and any(isinstance(module, S4ND) for module in model.modules()):
        raise UserError(f"{path}: S4ND layers have kernels of one size; leave only the batch open, dynamic=(0,)")
    # An open axis is told from a fixed one by its size, and 1 would stay 1.
    shown = tuple(torch.cat([t, t]) if 0 in dynamic and t.shape[0] == 1 else t for t in inputs)
    sizes = [dict.fromkeys(dynamic, torch.export.Dim.AUTO) for _ in shown]
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(model, shown, dynamic_shapes=sizes, strict=False)
        _check_open(program, dynamic)
    except FAILURES as error:
        raise refusal(path, dynamic, error) from error
    return program


def _check_open(program: torch.export.ExportedProgram, dynamic: Sequence[int]) -> None:
    names = set(program.graph_signature.user_inputs)
    for node in program.graph.nodes:
        if node.name not in names:
            continue
        # A size that was open at first and then fixed is still symbolic, of a number.
        fixed = [axis for axis in dynamic if str(node.meta["val"].shape[axis]).isdigit()]
        if fixed:
            raise RuntimeError(f"the model takes the size of axis {fixed[0]} of {node.name} for a constant")
