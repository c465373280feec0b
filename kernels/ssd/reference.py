"""The definition: a plain loop over time, differentiable by autograd, exact in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from ssmvision.kernels.routes import route_index

__all__ = ["ssd_loop", "ssd_nd_reference"]


def ssd_loop(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """h_t = exp(delta_t A) h_{t-1} + delta_t B_t x_t^T and y_t = C_t h_t, from h = 0 (Dao and Gu, arXiv 2405.21060).

    Args:
        x: (B, M, H, P).
        delta: (B, M, H).
        A: (H,).
        B, C: (B, M, G, N), each group for H / G neighbouring heads.

    Returns:
        (B, M, H, P).
    """
    heads = x.shape[2]
    B, C = (t.repeat_interleave(heads // t.shape[2], 2) for t in (B, C))
    state = x.new_zeros(x.shape[0], heads, B.shape[-1], x.shape[-1])
    ys = [x.new_empty(x.shape[0], 0, *x.shape[2:])]
    for t in range(x.shape[1]):
        step = delta[:, t, :, None, None]
        state = torch.exp(step * A[:, None, None]) * state + step * B[:, t, :, :, None] * x[:, t, :, None, :]
        ys.append((C[:, t, :, :, None] * state).sum(2).unsqueeze(1))
    return torch.cat(ys, 1)


def ssd_nd_reference(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, routes: tuple[str, ...], merge: str
) -> Tensor:
    """`ssd_nd` by `ssd_loop`, in the dtype of the inputs."""
    grid = tuple(delta.shape[2:-1])
    tokens = x.flatten(1, -3)
    total = torch.zeros_like(tokens)
    for k, name in enumerate(routes):
        order = torch.from_numpy(route_index(name, grid).copy())
        u = tokens[:, order]
        y = ssd_loop(u, delta[:, k].flatten(1, -2)[:, order], A[k], *(t[:, k].flatten(1, -3)[:, order] for t in (B, C)))
        total = total.index_add(1, order, y if D is None else y + D[k, :, None] * u)
    merged = total / len(routes) if merge == "mean" else total
    return merged.view(x.shape)
