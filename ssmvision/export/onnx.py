"""Models as ONNX files of standard operators, checked in ONNX Runtime against PyTorch before they are handed out."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from ssmvision.errors import UserError
from ssmvision.export.comparison import ExportReport, Run
from ssmvision.export.tracing import FAILURES, as_inputs, refusal, traced
from ssmvision.export.writing import all_batches, checked_target, written

__all__ = ["to_onnx"]

NEEDED = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4


def to_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    example_input: Tensor | Sequence[Tensor],
    dynamic: Sequence[int] = (0,),
    tolerance: float | None = None,
    samples: Sequence[Sequence[Tensor]] = (),
) -> ExportReport:
    """Writes a model as ONNX (opset 20), from standard operators alone, and compares it with the model.

    Args:
        model: any of this package's models, or one that contains its layers. A copy in float32 and evaluation mode is
            exported; one tensor comes out.
        path: of the file, ending in .onnx; replaced if it exists.
        example_input: a tensor, or all that `forward` takes.
        dynamic: axes of every input whose size is left open; 0 is the batch. Height and width can stay open where the
            model takes any size and no route leaves positions out.
        tolerance: greatest allowed difference, as a share of the greatest value. None: 1e-4, or, for a model that
            magnifies rounding, more where the file's result is at least as near to float64's as PyTorch's own is, and
            that within 1e-2. This run in float64 takes time and memory, and is made only where a result is off by more
            than 1e-4.
        samples: further inputs to compare on, such as real images; each all that `forward` takes.

    Returns:
        Sizes, errors and times.

    Raises:
        UserError: packages are missing, the model cannot be exported with these axes open, or the file not be written.
        ValueError: ONNX Runtime's result is off by more than that; no file is left, an older one stays.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise UserError(f"to_onnx: {', '.join(missing)} not installed; pip install 'ssmvision[onnx]'")
    target = checked_target(path, ".onnx")
    inputs = as_inputs(example_input)
    from ssmvision.export.lowering import layer_by_layer

    ready = layer_by_layer(model, inputs)
    return written(
        target,
        lambda file: _write(ready, file, inputs, tuple(dynamic), target),
        _session,
        ready,
        all_batches(inputs, [tuple(sample) for sample in samples], 0 in dynamic),
        TOLERANCE if tolerance is None else tolerance,
        rounding=tolerance is None,
    )


def _write(model: nn.Module, file: Path, inputs: tuple[Tensor, ...], dynamic: tuple[int, ...], target: Path) -> int:
    from ssmvision.export.lowering import decompositions
    from ssmvision.export.onnx_scan import OPSET, selective_scan

    program = traced(model, inputs, dynamic, target)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            made = torch.onnx.export(
                program.run_decompositions(decompositions()),
                dynamo=True,
                opset_version=OPSET,
                custom_translation_table={torch.ops.ssmvision.selective_scan.default: selective_scan},
                optimize=False,
                verbose=False,
            )
    except FAILURES as error:
        raise refusal(target, dynamic, error) from error
    assert made is not None
    made.save(file)
    return sum(1 for _ in made.model.graph.all_nodes())


def _session(file: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # what it cannot fold beforehand is no news
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def run(values: tuple[Tensor, ...]) -> Tensor:
        feed = {name: value.numpy() for name, value in zip(names, values, strict=True)}
        return torch.from_numpy(session.run(None, feed)[0])

    return run
