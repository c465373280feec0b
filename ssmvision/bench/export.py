"""`ssmvision bench export`: every model at its full size through torch.compile, torch.export and ONNX, on this CPU."""

from __future__ import annotations

import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from ssmvision.bench.export_config import BenchExportConfig
from ssmvision.bench.scan import cpu_name
from ssmvision.bench.table import as_json, markdown, write_text
from ssmvision.cli.model_counts import COUNTS, full_size
from ssmvision.errors import UserError
from ssmvision.export import ExportReport, to_onnx, to_program

__all__ = ["ExportRow", "measure", "run", "table"]


@dataclass(frozen=True)
class ExportRow:
    """One model; differences are shares of the greatest value.

    Attributes:
        name: as in `ssmvision models`.
        parameters: number of weights.
        input_size: channels and sizes of each input.
        eager_ms: one input, best of three.
        compile_s, compile_error: until the first result of the compiled model, and its difference; None: left out.
        program_mb, program_s, program_error: of the torch.export program, written, loaded and run.
        onnx_mb, onnx_s, onnx_ms, onnx_error: of the ONNX file in ONNX Runtime.
        argmax_equal: share of positions (of images, for a classifier) where ONNX Runtime finds the same class.
        eager_error: how far PyTorch itself is from float64, where the ONNX error is above 1e-4; see `to_onnx`.
    """

    name: str
    parameters: int
    input_size: tuple[int, ...]
    eager_ms: float
    compile_s: float | None
    compile_error: float | None
    program_mb: float
    program_s: float
    program_error: float
    onnx_mb: float
    onnx_s: float
    onnx_ms: float
    onnx_error: float
    argmax_equal: float
    eager_error: float | None = None


def run(config: BenchExportConfig) -> list[ExportRow]:
    """Go through the models, print the table and keep it where `config.out` says.

    Raises:
        UserError: no model matches, one cannot be exported, or `config.out` holds something else.
    """
    names = [name for name in COUNTS if fnmatch(name, config.models)]
    if not names:
        raise UserError(f"--models {config.models}: no model matches; `ssmvision models` lists them")
    if config.threads:
        torch.set_num_threads(config.threads)
    machine = f"{cpu_name()}, {torch.get_num_threads()} threads; torch {torch.__version__}; timm {timm.__version__}; "
    machine += f"Python {platform.python_version()}; torch.compile with {config.backend}"
    rows = _rows_of(config.out)
    for name in sorted(names, key=lambda name: COUNTS[name][1]):
        if name in {row.name for row in rows}:
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        rows.append(measure(name, config.backend, config.voxels))
        if config.out is not None:
            write_text(config.out, as_json(machine, rows))
    print(as_json(machine, rows) if config.json else f"{machine}\n\n{table(rows)}")
    return rows


def _rows_of(path: Path | None) -> list[ExportRow]:
    if path is None or not path.exists():
        return []
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        return [ExportRow(**{**row, "input_size": tuple(row["input_size"])}) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: holds no rows of this benchmark ({error}); choose another --out") from error


def measure(name: str, backend: str, voxels: int) -> ExportRow:
    """One model's row.

    Raises:
        UserError: it cannot be exported, or the result is off.
    """
    build, shapes = full_size(name, voxels)
    torch.manual_seed(0)
    model = build().eval()
    inputs = [torch.randn(1, *shape) for shape in shapes]
    compile_s, compile_error = (None, None) if backend == "none" else _compiled(model, inputs, backend)
    with tempfile.TemporaryDirectory() as folder:
        program, onnx = (
            _checked(lambda w=write, e=ending: w(model, Path(folder) / f"{name}.{e}", inputs))  # type: ignore[misc]
            for write, ending in ((to_program, "pt2"), (to_onnx, "onnx"))
        )
    return ExportRow(
        name,
        sum(parameter.numel() for parameter in model.parameters()),
        shapes[0],
        program.eager_ms,
        compile_s,
        compile_error,
        program.megabytes,
        program.seconds,
        program.error,
        onnx.megabytes,
        onnx.seconds,
        onnx.runtime_ms,
        onnx.error,
        onnx.argmax_equal,
        onnx.eager_error,
    )


def _checked(write: Callable[[], ExportReport]) -> ExportReport:
    try:
        return write()
    except ValueError as error:
        raise UserError(f"bench export: {error}") from error


@torch.no_grad()
def _compiled(model: nn.Module, inputs: Sequence[Tensor], backend: str) -> tuple[float, float]:
    """Seconds until the compiled model's first result, and its difference."""
    wanted = model(*inputs)
    torch._dynamo.reset()
    start = time.perf_counter()
    found = torch.compile(model, fullgraph=True, backend=backend)(*inputs)
    seconds = time.perf_counter() - start
    return seconds, float((found - wanted).abs().max() / wanted.abs().max())


def table(rows: Sequence[ExportRow]) -> str:
    """Markdown; seconds of one export, milliseconds of one input, 10^6 bytes."""
    return markdown([_cells(row) for row in rows])


def _cells(row: ExportRow) -> dict[str, str]:
    compiled = row.compile_s is not None and row.compile_error is not None
    own = "" if row.eager_error is None else f" (PyTorch {row.eager_error:.0e})"
    return {
        "model": row.name,
        "M parameters": f"{row.parameters / 1e6:.1f}",
        "input": "x".join(map(str, row.input_size)),
        "eager ms": f"{row.eager_ms:.0f}",
        "compile s / error": f"{row.compile_s:.0f} / {row.compile_error:.0e}" if compiled else "",
        "program s / MB / error": f"{row.program_s:.0f} / {row.program_mb:.0f} / {row.program_error:.0e}",
        "ONNX s / MB": f"{row.onnx_s:.0f} / {row.onnx_mb:.0f}",
        "ONNX Runtime ms": f"{row.onnx_ms:.0f}",
        "ONNX error": f"{row.onnx_error:.0e}" + own,
        "same class": f"{row.argmax_equal:.2%}",
    }
