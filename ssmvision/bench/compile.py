"""`ssmvision bench compile`: what torch.compile gains, on a GPU beside CUDA graphs of the same step."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import timm
import torch
from torch import Tensor, nn

import ssmvision.models  # noqa: F401  (registers them with timm)
from ssmvision.bench.compile_config import BenchCompileConfig
from ssmvision.bench.scan import cpu_name
from ssmvision.bench.table import as_json, markdown, write_text
from ssmvision.bench.timing import capture, in_rounds_us, in_turns_on_cpu_ms, in_turns_us, side_stream
from ssmvision.bench.vim import LEARNING_RATE, create_model
from ssmvision.errors import UserError
from ssmvision.models import UMambaBot

__all__ = ["CompileRow", "make_step", "run", "table"]

VOLUMES = "UMambaBot"
PAIR = 2
CPU_ROUNDS = 7
Step = Callable[[], Tensor]


@dataclass(frozen=True)
class CompileRow:
    """One model and step.

    Attributes:
        model: as given.
        step: "infer" or "train".
        batch: images or volumes.
        compile_s: seconds that the first compiled step took.
        eager_ms, compiled_ms: a step in a loop of steps launched by Python; on a CPU the best of several.
        graph_ms, compiled_graph_ms: of the same step as one CUDA graph, from a cold L2 cache; None on a CPU.
        missing: why there are no figures, or "".
    """

    model: str
    step: str
    batch: int
    compile_s: float = 0.0
    eager_ms: float = 0.0
    compiled_ms: float = 0.0
    graph_ms: float | None = None
    compiled_graph_ms: float | None = None
    missing: str = ""


def run(config: BenchCompileConfig) -> list[CompileRow]:
    """Time every model, print the table and write it where `config.out` says.

    Raises:
        UserError: there is no CUDA device and one is asked for, or a model does not exist.
    """
    names = [name.strip() for name in config.models.split(",")]
    for name in names:
        if name != VOLUMES and not timm.is_model(name):
            raise UserError(f"--models {config.models}: timm has no {name!r}; give its models, or {VOLUMES}")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "bench compile needs a CUDA device and PyTorch sees none here: --device cpu, or `ssmvision doctor`"
        )
    where = (
        torch.cuda.get_device_name() if config.device == "cuda" else f"{cpu_name()}, {torch.get_num_threads()} threads"
    )
    about = f"{where}; {config.dtype}; torch {torch.__version__}; timm {timm.__version__}; "
    about += f"{config.pixels} px, {config.voxels}^3 voxels; sizes {'open' if config.dynamic else 'fixed'}"
    rows: list[CompileRow] = []
    for name in names:
        for step in ("infer", "train") if config.steps == "both" else (config.steps,):
            print(f"{name}, {step} ...", file=sys.stderr, flush=True)
            rows.append(_measured(config, name, step))
            if config.out is not None:
                write_text(config.out, as_json(about, rows))
    print(as_json(about, rows) if config.json else f"{about}\n\n{table(rows)}")
    return rows


def _measured(config: BenchCompileConfig, name: str, step: str) -> CompileRow:
    batch = PAIR if name == VOLUMES else config.batch
    try:
        with side_stream() if config.device == "cuda" else nullcontext():
            return _timed(config, name, step, batch)
    except torch.OutOfMemoryError:
        return CompileRow(name, step, batch, missing="out of memory")
    finally:
        torch._dynamo.reset()
        gc.collect()
        torch.cuda.empty_cache()


def _timed(config: BenchCompileConfig, name: str, step: str, batch: int) -> CompileRow:
    torch.manual_seed(0)
    model, shape = _model(config, name)
    images = torch.randn(batch, *shape, device=config.device)
    dtype: torch.dtype = getattr(torch, config.dtype)
    eager = make_step(model.to(config.device), model, images, step, dtype)
    eager()  # what a first input fixes, and our kernels
    whole: nn.Module = torch.compile(model, fullgraph=True, dynamic=config.dynamic)  # type: ignore[assignment]
    compiled = make_step(model, whole, images, step, dtype)
    wait: Callable[[], None] = torch.cuda.synchronize if config.device == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    compiled()
    wait()
    seconds = time.perf_counter() - start
    if config.device == "cpu":
        times = in_turns_on_cpu_ms({"eager": eager, "compiled": compiled}, CPU_ROUNDS)
        return CompileRow(name, step, batch, seconds, min(times["eager"]), min(times["compiled"]))
    loops = in_rounds_us([eager, compiled])
    graphs = in_turns_us([capture(work).replay for work in (eager, compiled)])
    times_ms = [us / 1e3 for us in (*loops, *graphs)]
    return CompileRow(name, step, batch, seconds, times_ms[0], times_ms[1], times_ms[2], times_ms[3])


def _model(config: BenchCompileConfig, name: str) -> tuple[nn.Module, tuple[int, ...]]:
    if name == VOLUMES:
        return UMambaBot(3, 1, 2), (1, *(config.voxels,) * 3)
    return create_model(name, config.pixels), (3, config.pixels, config.pixels)


def make_step(model: nn.Module, forward: nn.Module, images: Tensor, step: str, dtype: torch.dtype) -> Step:
    """An inference, or a whole training step.

    Args:
        model: whose mode is set and whose parameters are trained.
        forward: it, or what torch.compile made of it.
        images: the batch.
        step: "infer" or "train".
        dtype: of the computation, by autocast where it is not float32.
    """
    device = images.device.type
    if step == "infer":

        @torch.no_grad()
        def infer() -> Tensor:
            model.eval()
            with torch.autocast(device, dtype, enabled=dtype != torch.float32, cache_enabled=False):
                out: Tensor = forward(images)
            return out

        return infer
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True, capturable=device == "cuda")

    def train() -> Tensor:
        model.train()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype, enabled=dtype != torch.float32, cache_enabled=False):
            loss: Tensor = forward(images).float().square().mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return train


def table(rows: Sequence[CompileRow]) -> str:
    """Markdown; milliseconds a step, and how many times faster than eager."""
    return markdown([_cells(row) for row in rows])


def _cells(row: CompileRow) -> dict[str, str]:
    def gain(ms: float | None, base: float) -> str:
        return "" if row.missing or ms is None else f"{ms:.2f} ({base / ms:.2f}x)"

    return {
        "model": row.model,
        "batch": str(row.batch),
        "step": row.step,
        "eager ms": row.missing or f"{row.eager_ms:.2f}",
        "compiled ms": gain(row.compiled_ms, row.eager_ms),
        "graph ms": gain(row.graph_ms, row.eager_ms),
        "compiled, graph ms": gain(row.compiled_graph_ms, row.eager_ms),
        "first compiled step, s": "" if row.missing else f"{row.compile_s:.0f}",
    }
