"""Models as ONNX files of standard operators, checked in ONNX Runtime against PyTorch before they are handed out."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ssmvision.errors import UserError

__all__ = ["OnnxReport", "to_onnx"]

NEEDED = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class OnnxReport:
    """What was written, and how it compares with PyTorch on random inputs of the example's sizes and of a larger batch.

    Args:
        path: the file; weights of 2 GB and more lie beside it.
        megabytes: of it.
        nodes: operators of the graph, those within scans included once.
        error: greatest difference as a share of the greatest value.
        argmax_equal: share of positions (of images, for a classifier) where the greatest class is the same.
        onnxruntime_ms, eager_ms: one run of the example on the CPU with PyTorch's number of threads, best of three.
    """

    path: Path
    megabytes: float
    nodes: int
    error: float
    argmax_equal: float
    onnxruntime_ms: float
    eager_ms: float


def to_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    example_input: Tensor | Sequence[Tensor],
    dynamic: Sequence[int] = (0,),
    tolerance: float = 1e-4,
) -> OnnxReport:
    """Writes a model as ONNX (opset 20), from standard operators alone, and compares it with the model.

    Args:
        model: any of this package's models, or one that contains its layers. A copy in float32 and evaluation mode is
            exported; one tensor comes out.
        path: of the file, ending in .onnx; replaced if it exists.
        example_input: a tensor, or all that `forward` takes.
        dynamic: axes of every input whose size is left open; 0 is the batch. Height and width can stay open where the
            model takes any size and no route leaves positions out.
        tolerance: greatest allowed difference, as a share of the greatest value.

    Returns:
        Sizes, errors and times.

    Raises:
        UserError: packages are missing, or the model cannot be exported with these axes open.
        ValueError: ONNX Runtime's result is off by more than `tolerance`; the file is removed.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise UserError(f"to_onnx: {', '.join(missing)} not installed; pip install 'ssmvision[onnx]'")
    target = Path(path)
    if target.suffix != ".onnx":
        raise UserError(f"{target}: ends in {target.suffix!r}; name the file .onnx")
    inputs = (example_input,) if isinstance(example_input, Tensor) else tuple(example_input)
    inputs = tuple(t.detach().float().cpu() for t in inputs)
    from ssmvision.export.lowering import has_fixed_kernels, layer_by_layer

    if has_fixed_kernels(model) and set(dynamic) - {0}:
        raise UserError(f"{target}: S4ND layers have kernels of one size; leave only the batch open, dynamic=(0,)")
    ready = layer_by_layer(model, inputs)
    nodes = _write(ready, target, inputs, tuple(dynamic))
    report = _compare(ready, target, inputs, nodes, 0 in dynamic)
    if not report.error <= tolerance:
        target.unlink()
        raise ValueError(f"{target}: ONNX Runtime differs by {report.error:.1e} where {tolerance:g} is allowed")
    return report


def _write(model: nn.Module, path: Path, inputs: tuple[Tensor, ...], dynamic: tuple[int, ...]) -> int:
    from ssmvision.export.lowering import decompositions
    from ssmvision.export.onnx_scan import OPSET, selective_scan

    open_axes = dict.fromkeys(dynamic, torch.export.Dim.AUTO)
    # An open axis is told from a fixed one by its size, and 1 would stay 1.
    shown = tuple(torch.cat([t, t]) if 0 in dynamic and t.shape[0] == 1 else t for t in inputs)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(model, shown, dynamic_shapes=[dict(open_axes) for _ in shown], strict=False)
            _check_open(program, dynamic)
            program = program.run_decompositions(decompositions())
            made = torch.onnx.export(
                program,
                shown,
                dynamo=True,
                opset_version=OPSET,
                custom_translation_table={torch.ops.ssmvision.selective_scan.default: selective_scan},
                optimize=False,
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, torch._dynamo.exc.UserError, RuntimeError) as error:
        root: BaseException = error
        while root.__cause__ is not None:
            root = root.__cause__
        reason = str(root).strip().splitlines()[0]
        raise UserError(f"{path}: the model could not be exported with axes {list(dynamic)} open ({reason})") from error
    assert made is not None
    made.save(path)
    return sum(1 for _ in made.model.graph.all_nodes())


def _check_open(program: torch.export.ExportedProgram, dynamic: Sequence[int]) -> None:
    names = set(program.graph_signature.user_inputs)
    for node in program.graph.nodes:
        if node.name not in names:
            continue
        # A size that was open at first and then fixed is still symbolic, of a number.
        fixed = [axis for axis in dynamic if str(node.meta["val"].shape[axis]).isdigit()]
        if fixed:
            raise RuntimeError(f"the model takes the size of axis {fixed[0]} of {node.name} for a constant")


def _compare(model: nn.Module, path: Path, inputs: tuple[Tensor, ...], nodes: int, open_batch: bool) -> OnnxReport:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # what it cannot fold beforehand is no news
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def onnx_run(values: Sequence[Tensor]) -> Tensor:
        feed = {name: value.numpy() for name, value in zip(names, values, strict=True)}
        return torch.from_numpy(session.run(None, feed)[0])

    @torch.no_grad()
    def eager_run(values: Sequence[Tensor]) -> Tensor:
        out: Tensor = model(*values)
        return out

    generator = torch.Generator().manual_seed(0)
    batches = [inputs]
    if open_batch:
        batches.append(tuple(torch.randn(t.shape[0] + 2, *t.shape[1:], generator=generator) for t in inputs))
    error, agree = 0.0, []
    for batch in batches:
        got, want = onnx_run(batch), eager_run(batch)
        error = max(error, float((got - want).abs().max() / want.abs().max().clamp(min=1e-30)))
        agree.append(float((got.argmax(1) == want.argmax(1)).float().mean()))
    times = (_best_ms(lambda run=run: run(inputs)) for run in (onnx_run, eager_run))
    return OnnxReport(path, path.stat().st_size / 1e6, nodes, error, float(np.mean(agree)), *times)


def _best_ms(run: Any) -> float:
    found = []
    for _ in range(3):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found) * 1e3
