"""Random calls of the selective scan, drawn from a seed: sizes, routes, dtypes, memory layouts and extreme values.

Seeded by number instead of searched for, so that a failure on a GPU is named by its seed and drawn again anywhere.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ssmvision.kernels.routes import route_names

__all__ = ["Layout", "ScanCase", "Values", "draw", "tensors"]

Values = str
Layout = str
CHANNELS = (1, 2, 3, 5, 7, 8, 16, 17, 31, 32, 33, 40, 61, 64, 65, 67, 96, 97, 113, 127, 128, 130)
STATES = (1, 2, 3, 4, 5, 8, 15, 16, 17, 32, 37, 64, 256)
AXES = (1, 2, 3, 5, 7, 8, 11, 13, 16, 17, 23, 25)
VALUES = ("mild", "tiny_steps", "huge_steps", "wide", "fast_decay", "slow_decay", "big_bias", "zeros")
LAYOUTS = ("contiguous", "offset", "transposed", "sliced", "strided", "expanded")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class ScanCase:
    """One call; `layouts` are those of x, delta, A, B, C, D, z, delta_bias and the gradients of out and last."""

    seed: int
    grid: tuple[int, ...]
    routes: tuple[str, ...]
    batch: int
    channels: int
    states: int
    dtype: torch.dtype
    half_parameters: bool
    shared_x: bool
    gate: str
    skip: bool
    bias: bool
    softplus: bool
    merge: str
    values: Values
    use_last: bool
    layouts: tuple[Layout, ...]

    @property
    def positions(self) -> int:
        """Size of the grid."""
        return math.prod(self.grid)


def _grid(rng: random.Random, most: int) -> tuple[int, ...]:
    dims = rng.choice((1, 2, 2, 3))
    if dims == 1:
        return (rng.choice((1, 2, 63, 64, 65, 127, 128, 129, most, rng.randint(1, most))),)
    while True:
        grid = tuple(rng.choice(AXES) for _ in range(dims))
        if math.prod(grid) <= most:
            return grid


def _routes(rng: random.Random, dims: int) -> tuple[str, ...]:
    """Any, or each with its reverse, which backends may walk together."""
    names = route_names(dims)
    if rng.random() < 0.5:
        return tuple(rng.choices(names, k=rng.randint(1, 6)))
    whole = [name for name in names if name != "backward" and not name.startswith("skip") and "reverse" not in name]
    picked = rng.sample(whole, k=min(rng.randint(1, 3), len(whole)))
    pairs = [*picked, *("backward" if name == "forward" else f"{name}_reverse" for name in picked)]
    rng.shuffle(pairs)
    return tuple(pairs)


def draw(seed: int, most_positions: int = 700, most_channels: int = 130, most_states: int = 256) -> ScanCase:
    """The case of a seed."""
    rng = random.Random(seed)
    grid = _grid(rng, most_positions)
    routes = _routes(rng, len(grid))
    merge = rng.choice(("sum", "mean", "none"))
    values = rng.choice(("mild", *VALUES))
    dtype = rng.choice(DTYPES)
    return ScanCase(
        seed=seed,
        grid=grid,
        routes=routes,
        batch=rng.choice((0, 1, 1, 2, 2, 3, 5)) if seed % 10 == 0 else rng.choice((1, 2, 3, 5)),
        channels=min(rng.choice(CHANNELS), most_channels),
        states=min(rng.choice(STATES), most_states),
        dtype=dtype,
        half_parameters=dtype is not torch.float32 and rng.random() < 0.15,
        shared_x=rng.random() < 0.5,
        gate=rng.choice(("none", "shared", "per_route" if merge == "none" else "shared")),
        skip=rng.random() < 0.6,
        bias=values == "big_bias" or rng.random() < 0.5,
        softplus=values == "big_bias" or rng.random() < 0.6,
        merge=merge,
        values=values,
        use_last=rng.random() < 0.5,
        layouts=tuple(rng.choice(("contiguous", *LAYOUTS)) for _ in range(10)),
    )


def _log_uniform(g: torch.Generator, shape: tuple[int, ...], low: float, high: float) -> Tensor:
    return torch.exp(torch.rand(shape, generator=g, dtype=torch.float64) * math.log(high / low) + math.log(low))


def _steps(case: ScanCase, g: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    """Step sizes after bias and softplus, as far as these are to be chosen."""
    most = 1e3 if case.dtype is not torch.float16 else 10.0  # beyond that, gradients overflow float16
    ranges = {"tiny_steps": (1e-6, 1e-4), "huge_steps": (0.1 * most, most), "wide": (1e-6, most)}
    return _log_uniform(g, shape, *ranges.get(case.values, (1e-3, 1.0)))


def _delta(case: ScanCase, g: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    dt = _steps(case, g, shape)
    # The inverse of softplus, exact for small and large arguments.
    return dt + torch.log(-torch.expm1(-dt)) if case.softplus else dt


def _decay_rates(case: ScanCase, g: torch.Generator) -> Tensor:
    shape = (len(case.routes), case.channels, case.states)
    ranges = {"wide": (1e-3, 1e3), "fast_decay": (10.0, 1e3), "slow_decay": (1e-6, 1e-3), "tiny_steps": (1e-3, 1e3)}
    A = -_log_uniform(g, shape, *ranges.get(case.values, (0.1, 16.0)))
    if case.values == "zeros":
        A[..., 0] = 0
    return A


def _bias(case: ScanCase, g: torch.Generator) -> Tensor:
    shape = (len(case.routes), case.channels)
    noise = torch.randn(shape, generator=g, dtype=torch.float64)
    if case.values == "big_bias":
        return 20 * noise
    # Without softplus a negative step would let states grow without bound.
    return noise if case.softplus and case.values == "mild" else 1e-6 * noise.abs()


def _zeroed(t: Tensor, g: torch.Generator) -> Tensor:
    return t * (torch.rand(t.shape, generator=g) < 0.5)


def _lay(t: Tensor, layout: Layout) -> Tensor:
    """The same values (those of the first batch entry for "expanded") in another place or order of memory."""
    if layout == "offset":
        return torch.empty(t.numel() + 1, dtype=t.dtype, device=t.device)[1:].view(t.shape).copy_(t)
    if layout == "transposed" and t.dim() >= 2:
        return t.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout in ("sliced", "strided"):
        size, step = t.shape[-1], 1 if layout == "sliced" else 2
        wider = torch.full((*t.shape[:-1], size * step + 3), float("nan"), dtype=t.dtype, device=t.device)
        return wider[..., 3::step][..., :size].copy_(t)
    if layout == "expanded" and t.dim() >= 2 and t.shape[0] > 1:
        return t[:1].expand_as(t)
    return t.clone()


def tensors(case: ScanCase, device: str) -> tuple[dict[str, Tensor | None], Tensor, Tensor]:
    """The call's tensors, laid out as the case says, and the gradients of out and of the last states."""
    g = torch.Generator().manual_seed(case.seed)
    k, e, n = len(case.routes), case.channels, case.states
    merged, apart = (case.batch, *case.grid, e), (case.batch, k, *case.grid, e)
    states = (case.batch, k, *case.grid, n)
    parameters = case.dtype if case.half_parameters else torch.float32

    def normal(*shape: int) -> Tensor:
        values = torch.randn(shape, generator=g, dtype=torch.float64)
        return _zeroed(values, g) if case.values == "zeros" else values

    parts: list[tuple[str, Callable[[], Tensor] | None, torch.dtype]] = [
        ("x", lambda: normal(*(merged if case.shared_x else apart)), case.dtype),
        ("delta", lambda: _delta(case, g, apart), case.dtype),
        ("A", lambda: _decay_rates(case, g), parameters),
        ("B", lambda: normal(*states), case.dtype),
        ("C", lambda: normal(*states), case.dtype),
        ("D", (lambda: normal(k, e)) if case.skip else None, parameters),
        ("z", _gate(case, normal, merged, apart), case.dtype),
        ("delta_bias", (lambda: _bias(case, g)) if case.bias else None, parameters),
    ]
    made: dict[str, Any] = {}
    for (name, make, dtype), layout in zip(parts, case.layouts[:8], strict=True):
        made[name] = None if make is None else _lay(make().to(dtype).to(device), layout).requires_grad_()
    dout = _lay(normal(*(apart if case.merge == "none" else merged)).to(case.dtype).to(device), case.layouts[8])
    dlast = _lay(normal(case.batch, k, e, n).float().to(device), case.layouts[9])
    return made, dout, dlast if case.use_last else torch.zeros_like(dlast)


def _gate(
    case: ScanCase, normal: Callable[..., Tensor], merged: tuple[int, ...], apart: tuple[int, ...]
) -> Callable[[], Tensor] | None:
    if case.gate == "none":
        return None
    return lambda: 3 * normal(*(apart if case.gate == "per_route" else merged))
