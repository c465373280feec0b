"""Times of training steps and other calls, with nothing else running on the device."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["autocast", "device_name", "median_seconds", "peak_bytes", "training_step"]

WARM_UP, CALLS = 4, 10
AUTOCAST = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """What Lightning's precision of that name computes in."""
    dtype = AUTOCAST[precision]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def training_step(
    parameters: Iterable[nn.Parameter], optimizer: Optimizer, loss: Callable[[], Tensor], clip: float
) -> Callable[[], None]:
    """Forward, loss, backward, clipping and optimiser.

    Args:
        parameters: whose gradients are clipped.
        optimizer: of a whole module.
        loss: computes it anew.
        clip: largest norm; 0: none, though the norm is computed.
    """
    clipped = list(parameters)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        nn.utils.clip_grad_norm_(clipped, clip or float("inf"))
        optimizer.step()

    return step


def median_seconds(call: Callable[[], object], device: torch.device, calls: int = CALLS) -> float:
    """Median time of a call, the device's work included, after some to warm up; peak memory counts from there."""
    cuda = device.type == "cuda"

    def once() -> float:
        started = time.perf_counter()
        call()
        if cuda:
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    for _ in range(WARM_UP):
        once()
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    return sorted(once() for _ in range(calls))[calls // 2]


def peak_bytes(device: torch.device) -> int | None:
    """Most that torch had allocated on the GPU since `median_seconds` had warmed up; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def device_name(device: torch.device) -> str:
    """For tables."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
