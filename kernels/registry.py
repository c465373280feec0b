"""Which backend runs an op: one table per op, a stated choice, and the reason every other backend was refused.

`backend=` in a call, or the environment variable SSMVISION_BACKEND, forces one by name ("chunked") or forbids some
("-triton" or "-triton,-cuda"); the call's argument wins over the variable. The variable speaks to all ops at once: an
op that has no backend of a name is left as it is.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch

__all__ = ["Backend", "NoBackendError", "Request", "choose", "explain", "ops", "register"]

ENV_VAR = "SSMVISION_BACKEND"
# What backends are called in any op, so that the variable can be checked before all ops are imported.
NAMES = ("cuda", "triton", "numba", "chunked", "toeplitz", "fft", "composition", "reference")
logger = logging.getLogger("ssmvision")


@dataclass(frozen=True)
class Request:
    """What a call asks of a backend: where it runs and in which dtype."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Backend:
    """One implementation of an op.

    Attributes:
        name: what `backend=` and SSMVISION_BACKEND call it.
        priority: the highest that can run is picked.
        can_run: None where it can run the request, else the reason in one line.
        forward, backward: the implementation; signatures belong to the op.
        slow: picked only where nothing else runs, and then with a visible log line.
        slow_on: types of device on which others are expected to run, so that picking this one is told as well.
    """

    name: str
    priority: int
    can_run: Callable[[Request], str | None]
    forward: Callable[..., Any]
    backward: Callable[..., Any]
    slow: bool = False
    slow_on: tuple[str, ...] = ()


class NoBackendError(RuntimeError):
    """No backend may run the call; the message gives every backend's reason."""


@dataclass
class _Op:
    backends: list[Backend] = field(default_factory=list)
    told: set[tuple[str, str]] = field(default_factory=set)


_OPS: dict[str, _Op] = {}


def register(op: str, backend: Backend) -> None:
    """Add a backend to an op's table."""
    table = _OPS.setdefault(op, _Op()).backends
    table.append(backend)
    table.sort(key=lambda b: -b.priority)
    _choose.cache_clear()


def ops() -> tuple[str, ...]:
    """Names of all ops with a table."""
    return tuple(_OPS)


@dataclass(frozen=True)
class _Wish:
    """What the call or, failing that, the environment asks for."""

    text: str
    forced: tuple[str, ...]
    forbidden: tuple[str, ...]


def _wish(op: str, backend: str, environment: str) -> _Wish:
    source, asked = ("backend", backend) if backend != "auto" else (ENV_VAR, environment)
    words = [w.strip() for w in asked.split(",") if w.strip() not in ("", "auto")]
    known = [b.name for b in _OPS[op].backends]
    for word in words:
        if word.removeprefix("-") not in (*known, *(NAMES if source == ENV_VAR else ())):
            raise ValueError(f"{source}={asked}: {op} has no backend {word!r}; choose from {', '.join(known)}")
    forced = tuple(w for w in words if w in known)
    return _Wish(f"{source}={asked}", forced, tuple(w[1:] for w in words if w.startswith("-")))


def explain(op: str, request: Request, backend: str = "auto") -> dict[str, str | None]:
    """For each backend of `op`, best first: None where it may run the request, else why not.

    Raises:
        ValueError: `backend` or SSMVISION_BACKEND names a backend that `op` does not have.
    """
    wish = _wish(op, backend, os.environ.get(ENV_VAR, ""))
    reasons: dict[str, str | None] = {}
    for b in _OPS[op].backends:
        if wish.forced and b.name not in wish.forced:
            reasons[b.name] = f"{wish.text} asks for another"
        elif b.name in wish.forbidden:
            reasons[b.name] = f"forbidden by {wish.text}"
        else:
            reasons[b.name] = b.can_run(request)
    return reasons


def choose(op: str, request: Request, backend: str = "auto") -> Backend:
    """The best backend of `op` that may run the request.

    Raises:
        NoBackendError: none may, with each one's reason.
        ValueError: see `explain`.
    """
    return _choose(op, request, backend, os.environ.get(ENV_VAR, ""))


@lru_cache(maxsize=256)
def _choose(op: str, request: Request, backend: str, environment: str) -> Backend:
    """Kept, because the reasons take longer to collect than a small kernel runs."""
    reasons = explain(op, request, backend)
    for b in _OPS[op].backends:
        if reasons[b.name] is None:
            slow = b.slow or torch.device(request.device).type in b.slow_on
            if slow and b.name not in _wish(op, backend, environment).forced:
                _tell(op, b, request, reasons)
            return b
    lines = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    raise NoBackendError(f"no backend of {op} can run {request.dtype} on {request.device} ({lines})")


def _tell(op: str, backend: Backend, request: Request, reasons: dict[str, str | None]) -> None:
    """One visible line, once a device."""
    told = _OPS[op].told
    if (backend.name, request.device) in told:
        return
    told.add((backend.name, request.device))
    refused = "; ".join(f"{name}: {reason}" for name, reason in reasons.items() if reason)
    logger.warning("%s on %s runs on the slow backend %r (%s)", op, request.device, backend.name, refused)
