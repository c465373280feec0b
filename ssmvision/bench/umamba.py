"""`ssmvision bench umamba`: training steps of 3D U-Mamba networks beside their twin without state-space layers."""

from __future__ import annotations

import gc
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from ssmvision.bench.scan import cpu_name
from ssmvision.bench.table import markdown, publish
from ssmvision.bench.umamba_config import BenchUMambaConfig
from ssmvision.errors import UserError
from ssmvision.models.umamba import UMambaBot, UMambaEnc

__all__ = ["NETWORKS", "PRECISIONS", "SHAPES", "UMambaRow", "UMambaSize", "measure", "run", "supervised_loss", "table"]

NETWORKS = ("twin", "bot", "enc")
PRECISIONS = {
    "float32": None,
    "tf32": None,
    "bfloat16": torch.bfloat16,
    "bfloat16_ssm": torch.bfloat16,
    "float16": torch.float16,
}
WARM_UP = 3
CLIP_NORM = 12.0
SMOOTH = 1e-5


@dataclass(frozen=True)
class UMambaSize:
    """A network and its batch, as nnU-Net would plan them."""

    patch: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]
    features: tuple[int, ...]
    classes: int
    batch: int = 2


SHAPES = {
    "abdomen_ct": UMambaSize(
        (40, 224, 192),
        ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2)),
        ((1, 3, 3), *((3, 3, 3),) * 5),
        (32, 64, 128, 256, 320, 320),
        14,
    ),
    "tiny": UMambaSize((8, 16, 16), ((1, 1, 1), (1, 2, 2), (2, 2, 2)), ((1, 3, 3), *((3, 3, 3),) * 2), (4, 8, 12), 3),
}


@dataclass(frozen=True)
class UMambaRow:
    """One network in one precision.

    Attributes:
        network: "twin", "bot" or "enc".
        precision: one of `PRECISIONS`.
        batch: patches per step.
        step_ms: median milliseconds of a training step.
        peak_gb: most memory allocated at once in a step, weights, optimiser and batch included, 10^9 bytes; None on a
            CPU.
        time_ratio, memory_ratio: to the twin in the same precision and run (with bfloat16_ssm, the twin in bfloat16);
            None without it.
        missing: why there are no figures, or "".
    """

    network: str
    precision: str
    batch: int
    step_ms: float = 0.0
    peak_gb: float | None = None
    time_ratio: float | None = None
    memory_ratio: float | None = None
    missing: str = ""


def run(config: BenchUMambaConfig) -> list[UMambaRow]:
    """Time every network, print the table and write it where `config.out` says.

    Raises:
        UserError: CUDA is asked for and there is none, or a network or precision does not exist.
    """
    networks = _names("networks", config.networks, NETWORKS)
    precisions = _names("precisions", config.precisions, tuple(PRECISIONS))
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch sees no CUDA device here; run `ssmvision doctor` or use --device cpu")
    if config.threads:
        torch.set_num_threads(config.threads)
    rows: list[UMambaRow] = []
    for precision in precisions:
        for network in networks:
            if precision == "bfloat16_ssm" and network == "twin":  # there is nothing that would differ
                continue
            print(f"{network}, {precision} ...", file=sys.stderr, flush=True)
            rows.append(_beside_twin(measure(config, network, precision), rows))
    publish(config, _machine(config), rows, f"{_machine(config)}\n\n{table(rows)}")
    return rows


def _names(option: str, wish: str, known: Sequence[str]) -> list[str]:
    names = [name.strip() for name in wish.split(",")]
    for name in names:
        if name not in known:
            raise UserError(f"--{option} {wish}: {name!r} is not known; choose from {', '.join(known)}")
    return names


def _machine(config: BenchUMambaConfig) -> str:
    size = SHAPES[config.shape]
    batch = f"{size.batch} x {'x'.join(map(str, size.patch))}, {'channels last' if config.channels_last else 'NCDHW'}"
    versions = f"torch {torch.__version__}; Python {platform.python_version()}"
    if config.device == "cpu":
        return f"{cpu_name()}, {torch.get_num_threads()} threads; {batch}; {versions}"
    kind = "TF32" if torch.backends.cudnn.allow_tf32 else "float32"
    return f"{torch.cuda.get_device_name()}; {batch}; convolutions of float32 layers in {kind}; {versions}"


def measure(config: BenchUMambaConfig, network: str, precision: str) -> UMambaRow:
    """One row, on a network of its own, without ratios."""
    row = UMambaRow(network, precision, SHAPES[config.shape].batch)
    before = torch.backends.cudnn.benchmark, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.benchmark, torch.backends.cuda.matmul.allow_tf32 = True, precision == "tf32"
    try:
        return _timed(row, config)
    except torch.OutOfMemoryError:
        return replace(row, missing="out of memory")
    finally:
        torch.backends.cudnn.benchmark, torch.backends.cuda.matmul.allow_tf32 = before
        gc.collect()
        if config.device == "cuda":
            torch.cuda.empty_cache()


def _timed(row: UMambaRow, config: BenchUMambaConfig) -> UMambaRow:
    work = _step(config, row.network, row.precision)
    if config.device == "cpu":
        return replace(row, step_ms=_median_ms(work, config.steps, lambda: None))
    step_ms = _median_ms(work, config.steps, torch.cuda.synchronize)
    return replace(row, step_ms=step_ms, peak_gb=torch.cuda.max_memory_allocated() / 1e9)


def _median_ms(work: Callable[[], object], steps: int, wait: Callable[[], None]) -> float:
    for _ in range(WARM_UP):
        work()
    wait()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        work()
        wait()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def _network(size: UMambaSize, name: str) -> UMambaBot | UMambaEnc:
    settings: dict[str, Any] = {
        "features_per_stage": size.features,
        "kernel_sizes": size.kernels,
        "strides": size.strides,
        "deep_supervision": True,
    }
    if name == "bot":
        return UMambaBot(3, 1, size.classes, **settings)
    return UMambaEnc(3, 1, size.classes, input_size=size.patch, mixer="none" if name == "twin" else "mamba", **settings)


def _step(config: BenchUMambaConfig, name: str, precision: str) -> Callable[[], Tensor]:
    size, device = SHAPES[config.shape], config.device
    layout = torch.channels_last_3d if config.channels_last else torch.contiguous_format
    torch.manual_seed(0)
    net = _network(size, name)
    net.set_mixer_autocast(precision == "bfloat16_ssm")
    net.to(device).to(memory_format=layout)  # type: ignore[call-overload]  # missing in PyTorch's stubs
    images = torch.randn(size.batch, 1, *size.patch, device=device).to(memory_format=layout)
    labels = [torch.randint(size.classes, (size.batch, *size.patch), device=device)]
    for d, h, w in size.strides[1:-1]:
        labels.append(labels[-1][:, ::d, ::h, ::w].contiguous())
    optimizer = torch.optim.SGD(net.parameters(), 1e-3, momentum=0.99, nesterov=True, weight_decay=3e-5)
    dtype = PRECISIONS[precision]
    scaler = GradScaler(device, enabled=dtype == torch.float16)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype, enabled=dtype is not None):
            outputs = net(images)
        loss = supervised_loss(outputs, labels)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(net.parameters(), CLIP_NORM)
        scaler.step(optimizer)
        scaler.update()
        return loss.detach()

    return step


def supervised_loss(outputs: Sequence[Tensor], labels: Sequence[Tensor]) -> Tensor:
    """nnU-Net's loss: cross entropy minus soft Dice of the foreground, weighted 1, 1/2, ... and 0 for the coarsest.

    Args:
        outputs: logits (B, C, *spatial), full resolution first.
        labels: class of every voxel (B, *spatial), int64, for each.
    """
    weights = [0.5**i for i in range(len(outputs))]
    if len(weights) > 1:
        weights[-1] = 0.0
    levels = [
        weight * _dice_cross_entropy(logits.float(), target)
        for weight, logits, target in zip(weights, outputs, labels, strict=True)
        if weight
    ]
    return torch.stack(levels).sum() / sum(weights)


def _dice_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    found = logits.softmax(1)
    wanted = torch.zeros_like(found).scatter_(1, target.unsqueeze(1), 1.0)
    axes = tuple(range(2, logits.dim()))
    both, sizes = (found * wanted).sum(axes), found.sum(axes) + wanted.sum(axes)
    dice = (2 * both + SMOOTH) / (sizes + SMOOTH)
    return F.cross_entropy(logits, target) - dice[:, 1:].mean()


def _beside_twin(row: UMambaRow, rows: Sequence[UMambaRow]) -> UMambaRow:
    precision = row.precision.removesuffix("_ssm")
    twin = next((r for r in (*rows, row) if r.network == "twin" and r.precision == precision and not r.missing), None)
    if twin is None or row.missing:
        return row
    memory = None if row.peak_gb is None or twin.peak_gb is None else row.peak_gb / twin.peak_gb
    return replace(row, time_ratio=row.step_ms / twin.step_ms, memory_ratio=memory)


def table(rows: Sequence[UMambaRow]) -> str:
    """Markdown; milliseconds, patches per second and 10^9 bytes, and how many times the twin's they are."""
    return markdown([_cells(row) for row in rows])


def _cells(row: UMambaRow) -> dict[str, str]:
    def figure(value: float | None, digits: int = 2) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    timed = not row.missing
    return {
        "network": row.network,
        "precision": row.precision,
        "step ms": figure(row.step_ms, 1) if timed else row.missing,
        "patches/s": figure(row.batch / row.step_ms * 1e3) if timed else "",
        "peak GB": figure(row.peak_gb, 1),
        "time / twin": figure(row.time_ratio),
        "memory / twin": figure(row.memory_ratio),
    }
