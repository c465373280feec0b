"""The definition of the selective scan (S6): a plain loop over time, differentiable by autograd, exact in float64.

Source: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces" (arXiv 2312.00752), eq. 2 and
algorithm 2: A by zero-order hold, B by Euler's rule.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ssmvision.kernels.routes import route_index
from ssmvision.kernels.selective_scan.args import (
    Grads,
    ScanArgs,
    as_inputs,
    compute_dtype,
    gate_gradient,
    merged_gradient,
)
from ssmvision.kernels.selective_scan.config import n_saved

__all__ = [
    "backward",
    "forward",
    "scan_loop",
    "scan_loop_adjoint",
    "selective_scan_complex",
    "selective_scan_nd_reference",
]


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


def selective_scan_nd_reference(args: ScanArgs) -> tuple[Tensor, Tensor]:
    """The multi-route scan by its definition, route by route.

    Returns:
        out (B, L, E), or (B, K, L, E) for merge "none", in x's dtype; and the last states (B, K, E, N).
    """
    dtype = compute_dtype(args.x, args.delta)
    ys, states = [], []
    for k, name in enumerate(args.routes):
        index = torch.tensor(route_index(name, args.grid), device=args.x.device)

        def walk(t: Tensor, index: Tensor = index) -> Tensor:
            return t.index_select(1, index).to(dtype)

        u = walk(args.x if args.x.dim() == 3 else args.x[:, k])
        dt = walk(args.delta[:, k])
        if args.delta_bias is not None:
            dt = dt + args.delta_bias[k].to(dtype)
        if args.delta_softplus:
            dt = F.softplus(dt)
        y, state = scan_loop(u, dt, args.A[k].to(dtype), walk(args.B[:, k]), walk(args.C[:, k]))
        if args.D is not None:
            y = y + args.D[k].to(dtype) * u
        ys.append(torch.zeros_like(args.delta[:, k], dtype=dtype).index_copy(1, index, y))
        states.append(state)
    out = torch.stack(ys, 1)
    if args.merge != "none":
        out = out.sum(1) if args.merge == "sum" else out.mean(1)
    if args.z is not None:
        out = out * F.silu(args.z.to(dtype))
    return out.to(args.x.dtype), torch.stack(states, 1)


def forward(args: ScanArgs, save_states: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The definition as a backend; saved states are left zero, its backward does not need them."""
    with torch.no_grad():
        out, last = selective_scan_nd_reference(args)
    batch, routes, length = args.delta.shape[:3]
    saved = n_saved(length, args.delta.device.type) if save_states else 0
    ungated = selective_scan_nd_reference(args._replace(z=None))[0] if save_states and args.z is not None else None
    return out.clone(), last, last.new_zeros(saved, batch, routes, *args.A.shape[:0:-1]), ungated


def scan_loop_adjoint(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, dy: Tensor, dlast: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `scan_loop` (real, shared B and C) in u, delta, A, B and C, by the adjoint recurrence.

    g_t = C_t dy_t + exp(delta_{t+1} A) g_{t+1}, from the gradient of the last state (B, E, N).
    """
    states = [A.new_zeros(u.shape[0], *A.shape)]
    for t in range(u.shape[1]):
        decay = torch.exp(delta[:, t].unsqueeze(-1) * A)
        states.append(decay * states[-1] + (delta[:, t] * u[:, t]).unsqueeze(-1) * B[:, t].unsqueeze(1))
    du, ddelta, dB, dC, dA = (torch.zeros_like(t) for t in (u, delta, B, C, A))
    g = dlast
    for t in reversed(range(u.shape[1])):
        g = g + dy[:, t].unsqueeze(-1) * C[:, t].unsqueeze(1)
        dC[:, t] = (dy[:, t].unsqueeze(-1) * states[t + 1]).sum(1)
        dB[:, t] = ((delta[:, t] * u[:, t]).unsqueeze(-1) * g).sum(1)
        d_input = (g * B[:, t].unsqueeze(1)).sum(-1)
        decay = torch.exp(delta[:, t].unsqueeze(-1) * A)
        d_exponent = g * decay * states[t]
        du[:, t] = d_input * delta[:, t]
        ddelta[:, t] = d_input * u[:, t] + (d_exponent * A).sum(-1)
        dA += (d_exponent * delta[:, t].unsqueeze(-1)).sum(0)
        g = g * decay
    return du, ddelta, dA, dB, dC


def backward(args: ScanArgs, saved: Tensor, ungated: Tensor | None, dout: Tensor, dlast: Tensor | None) -> Grads:
    """Gradients of x, delta, A, B, C, D, z and delta_bias (None where there is no input), route by route."""
    dtype = compute_dtype(args.x, args.delta)
    dx, ddelta, dA, dB, dC = (torch.zeros_like(t, dtype=dtype) for t in args[:5])
    dz = None if args.z is None or ungated is None else gate_gradient(args.z, dout.to(dtype), ungated)
    dy = merged_gradient(dout.to(dtype), args)
    dD, dbias = (None if t is None else torch.zeros_like(t, dtype=dtype) for t in (args.D, args.delta_bias))
    for k, name in enumerate(args.routes):
        index = torch.tensor(route_index(name, args.grid), device=args.x.device)
        x_k, dx_k = (t if t.dim() == 3 else t[:, k] for t in (args.x, dx))
        u, raw, B, C, dy_k = (
            t.index_select(1, index).to(dtype)
            for t in (x_k, args.delta[:, k], args.B[:, k], args.C[:, k], dy if args.merge != "none" else dy[:, k])
        )
        raw = raw if args.delta_bias is None else raw + args.delta_bias[k].to(dtype)
        dt = F.softplus(raw) if args.delta_softplus else raw
        end = args.A.new_zeros(u.shape[0], *args.A.shape[1:], dtype=dtype) if dlast is None else dlast[:, k].to(dtype)
        du, d_dt, dA[k], dB_k, dC_k = scan_loop_adjoint(u, dt, args.A[k].to(dtype), B, C, dy_k, end)
        d_raw = d_dt * torch.sigmoid(raw) if args.delta_softplus else d_dt
        if args.D is not None and dD is not None:
            du = du + dy_k * args.D[k].to(dtype)
            dD[k] = (dy_k * u).sum((0, 1))
        if dbias is not None:
            dbias[k] = d_raw.sum((0, 1))
        dx_k.index_add_(1, index, du)
        for target, value in ((ddelta, d_raw), (dB, dB_k), (dC, dC_k)):
            target[:, k].index_copy_(1, index, value)
    return as_inputs((dx, ddelta, dA, dB, dC, dD, dz, dbias), args)


def selective_scan_complex(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor]:
    """The 1D scan with complex A, by the definition; shapes as `selective_scan`."""
    batch, channels, length = u.shape
    inputs, dt = u.float().transpose(1, 2), delta.float().transpose(1, 2)
    if delta_bias is not None:
        dt = dt + delta_bias.float()
    if delta_softplus:
        dt = F.softplus(dt)

    def per_channel(t: Tensor) -> Tensor:
        """-> (B, L, D, N), broadcast views."""
        if t.dim() == 2:
            return t[None, None].expand(batch, length, *t.shape)
        t = torch.view_as_complex(t.float().unflatten(-1, (length, 2)).contiguous())
        t = t.unsqueeze(1) if t.dim() == 3 else t
        return t.repeat_interleave(channels // t.shape[1], 1).permute(0, 3, 1, 2)

    y, state = scan_loop(inputs, dt, A, per_channel(B), per_channel(C))
    if D is not None:
        y = y + D.float() * inputs
    out = y.transpose(1, 2)
    if z is not None:
        out = out * F.silu(z.float())
    return out.to(u.dtype), state
