"""The definition of the selective scan (S6): a plain loop over time, differentiable by autograd, exact in float64.

Source: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces" (arXiv 2312.00752), eq. 2 and
algorithm 2: A by zero-order hold, B by Euler's rule.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ssmvision.kernels.routes import route_index

__all__ = ["scan_loop", "selective_scan_nd_reference"]


def scan_loop(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """The recurrence h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t, y_t = C_t . h_t, from h = 0.

    Args:
        u: (B, M, E) input sequence.
        delta: (B, M, E) step sizes, after bias and softplus.
        A: (E, N) decay rates.
        B: (B, M, N), or (B, M, E, N) where every channel has its own.
        C: like B.

    Returns:
        y (B, M, E) and the last state (B, E, N). For complex A, y is 2 Re(C . h): A stands for conjugate pairs.
    """
    B, C = (p if p.dim() == 4 else p.unsqueeze(2) for p in (B, C))
    state = A.new_zeros(u.shape[0], *A.shape)
    ys = []
    for u_t, delta_t, B_t, C_t in zip(u.unbind(1), delta.unbind(1), B.unbind(1), C.unbind(1), strict=True):
        state = torch.exp(delta_t.unsqueeze(-1) * A) * state + (delta_t * u_t).unsqueeze(-1) * B_t
        y = (state * C_t).sum(-1)
        ys.append(2 * y.real if y.is_complex() else y)
    return torch.stack(ys, 1) if ys else torch.zeros_like(u), state


def selective_scan_nd_reference(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    routes: tuple[str, ...],
    merge: str,
) -> tuple[Tensor, Tensor]:
    """`selective_scan_nd` by its definition, route by route; shapes as there.

    Returns:
        out as `selective_scan_nd`, in x's dtype, and the last states (B, K, E, N) in the compute dtype.
    """
    grid = tuple(delta.shape[2:-1])
    dtype = torch.promote_types(torch.promote_types(x.dtype, delta.dtype), torch.float32)
    shared = x.dim() < delta.dim()
    ys, states = [], []
    for k, name in enumerate(routes):
        index = torch.tensor(route_index(name, grid), device=x.device)

        def walk(t: Tensor, index: Tensor = index) -> Tensor:
            return t.flatten(1, -2).index_select(1, index).to(dtype)

        u = walk(x if shared else x[:, k])
        dt = walk(delta[:, k])
        if delta_bias is not None:
            dt = dt + delta_bias[k].to(dtype)
        if delta_softplus:
            dt = F.softplus(dt)
        y, state = scan_loop(u, dt, A[k].to(dtype), walk(B[:, k]), walk(C[:, k]))
        if D is not None:
            y = y + D[k].to(dtype) * u
        flat = y.new_zeros(y.shape[0], delta[0, 0, ..., 0].numel(), y.shape[2])
        ys.append(flat.index_copy(1, index, y).unflatten(1, grid))
        states.append(state)
    out = torch.stack(ys, 1)
    if merge != "none":
        out = out.sum(1) if merge == "sum" else out.mean(1)
    if z is not None:
        gate = F.silu(z.to(dtype))
        out = out * (gate if gate.dim() == out.dim() else gate.unsqueeze(1))
    return out.to(x.dtype), torch.stack(states, 1)
