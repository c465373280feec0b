"""r_t = f_t r_{t-1} + (1 - f_t) x_t, the running weighted mean behind gated recurrences, on the selective scan."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ssmvision.kernels.selective_scan import selective_scan_nd
from ssmvision.kernels.selective_scan.interface import Merge

__all__ = ["gated_recurrence"]

# Below it 1 - exp(-decay) is the decay itself, and a gate of exactly one must not divide by zero.
SMALLEST = 1e-30


def gated_recurrence(
    x: Tensor, decay: Tensor, *, routes: Sequence[str], merge: Merge = "sum", backend: str = "auto"
) -> Tensor:
    """Along each route r_t = f_t r_{t-1} + (1 - f_t) x_t from r = 0, with f_t = exp(-decay_t).

    A selective scan of one state a channel: with A = -1 and a step size of decay_t, its input is decay_t u_t, so
    u_t = x_t (1 - f_t) / decay_t makes it exact. Gates close to one keep their digits, since only decays are handled.

    Args:
        x: (B, *grid, E), the same for every route.
        decay: -log f, not negative: (B, *grid, E), the same for every route, or (B, K, *grid, E).
        routes, merge, backend: see `selective_scan_nd`.

    Returns:
        (B, *grid, E), or (B, K, *grid, E) for merge "none", in x's dtype.
    """
    dtype = torch.promote_types(torch.promote_types(x.dtype, decay.dtype), torch.float32)
    step, wide = decay.to(dtype).clamp_min(SMALLEST), x.to(dtype)
    u = (wide if decay.dim() == x.dim() else wide.unsqueeze(1)) * (-torch.expm1(-step) / step)
    if decay.dim() == x.dim():
        step = step.unsqueeze(1).expand(-1, len(routes), *x.shape[1:])
    ones = step.new_ones(()).expand(*step.shape[:-1], 1)
    A = step.new_full((), -1.0).expand(len(routes), x.shape[-1], 1)
    r = selective_scan_nd(u, step, A, ones, ones, routes=routes, merge=merge, backend=backend)
    assert isinstance(r, Tensor)
    return r.to(x.dtype)
