"""`ssmvision bench cpu`: a state-space model beside a vision transformer, and its scan beside the loop, on this CPU."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ssmvision.models  # noqa: F401  (registers them with timm)
from ssmvision.bench.config import BenchCpuConfig
from ssmvision.bench.scan import SHAPES, cpu_name, scan_inputs, scan_loop, scan_ours
from ssmvision.bench.table import markdown, publish
from ssmvision.bench.timing import in_turns_on_cpu_ms
from ssmvision.bench.vim import CLASSES, check_models, create_model
from ssmvision.errors import UserError
from ssmvision.kernels import registry

__all__ = ["CpuRow", "run"]


@dataclass(frozen=True)
class CpuRow:
    """One contender.

    Attributes:
        what: "scan" (of the model's kind: 197 tokens, 384 channels, 16 states, two directions) or the image's size.
        step: "forward", or "training" (forward and backward; for models with cross-entropy).
        name: the scan's backend, "loop" for the one that defines it, or the model, its scan's backend in brackets.
        best_ms, median_ms: over the rounds.
        times: its best as a multiple of the first contender's.
    """

    what: str
    step: str
    name: str
    best_ms: float
    median_ms: float
    times: float


def run(config: BenchCpuConfig) -> list[CpuRow]:
    """Time scans and models in turns and print the table.

    Raises:
        UserError: a model does not exist, or numba is not installed.
    """
    reason = registry.explain("selective_scan", registry.Request())["numba"]
    if reason is not None:
        raise UserError(f"bench cpu: the fast backend cannot run ({reason})")
    check_models(config.model, config.peer)
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(0)
    rows = [*_scans(config), *_models(config)]
    machine = (
        f"{cpu_name()}, {torch.get_num_threads()} threads; float32; torch {torch.__version__}; "
        f"Python {platform.python_version()}; {config.rounds} rounds in turns"
    )
    shown = [
        {
            "what": r.what,
            "step": r.step,
            "contender": r.name,
            "best ms": f"{r.best_ms:.2f}",
            "median ms": f"{r.median_ms:.2f}",
            "times ours": f"{r.times:.2f}",
        }
        for r in rows
    ]
    publish(config, machine, rows, f"{machine}\n\n{markdown(shown)}")
    return rows


def _scans(config: BenchCpuConfig) -> list[CpuRow]:
    case = SHAPES["vim"]
    t = scan_inputs(case, "float32")
    contenders: dict[str, Callable[[], Tensor]] = {
        "numba": lambda: scan_ours(t, case, "numba"),
        "chunked": lambda: scan_ours(t, case, "chunked"),
        "loop": lambda: scan_loop(t, case),
    }
    with torch.no_grad():
        forward = in_turns_on_cpu_ms(contenders, config.rounds)

    def step(f: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(f().sum(), list(t.values()))

    training = in_turns_on_cpu_ms({name: step(f) for name, f in contenders.items()}, config.rounds)
    return [*_rows("scan", "forward", forward), *_rows("scan", "training", training)]


def _models(config: BenchCpuConfig) -> list[CpuRow]:
    image = torch.randn(config.batch, 3, config.pixels, config.pixels)
    target = torch.randint(CLASSES, (config.batch,))
    ours, peer = (create_model(name, config.pixels).eval() for name in (config.model, config.peer))

    def infer(model: nn.Module, backend: str = "") -> Callable[[], object]:
        def step() -> None:
            with _forced(backend), torch.inference_mode():
                model(image)

        return step

    def train(model: nn.Module, backend: str = "") -> Callable[[], object]:
        def step() -> None:
            with _forced(backend):
                F.cross_entropy(model(image), target).backward()
            model.zero_grad(set_to_none=True)

        return step

    rows: list[CpuRow] = []
    for name, make in (("forward", infer), ("training", train)):
        contenders = {
            f"{config.model} (numba)": make(ours, "numba"),
            f"{config.model} (chunked)": make(ours, "chunked"),
            config.peer: make(peer),
        }
        what = f"{config.batch} x {config.pixels} px"
        rows += _rows(what, name, in_turns_on_cpu_ms(contenders, config.rounds))
    return rows


@contextmanager
def _forced(backend: str) -> Iterator[None]:
    """The scan's backend while a model runs; convolutions follow, where they have one of that name."""
    before = os.environ.get(registry.ENV_VAR)
    if backend:
        os.environ[registry.ENV_VAR] = backend if backend == "numba" else "-numba,-cuda,-triton"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(registry.ENV_VAR, None)
        else:
            os.environ[registry.ENV_VAR] = before


def _rows(what: str, step: str, times: dict[str, list[float]]) -> Sequence[CpuRow]:
    first = min(next(iter(times.values())))
    return [CpuRow(what, step, n, min(v), statistics.median(v), min(v) / first) for n, v in times.items()]
