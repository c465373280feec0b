"""Public functions of the projected scan: argument checks, and the two layouts of its projections."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ssmvision.kernels.checks import check_merge, check_routes, check_shapes, check_tensors
from ssmvision.kernels.projected_scan.op import projected_scan
from ssmvision.kernels.selective_scan.interface import Merge

__all__ = ["projected_scan_nd", "projected_scan_packed"]


def projected_scan_nd(
    x: Tensor,
    low: Tensor,
    dt_weight: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    routes: Sequence[str],
    merge: Merge = "sum",
    backend: str = "auto",
) -> Tensor:
    """`selective_scan_nd` with delta = low dt_weight^T and softplus, where delta need never be in memory.

    Along each route, step_t = softplus(dt_weight low_t + delta_bias), h_t = exp(step_t A) h_{t-1} + step_t B_t x_t and
    y_t = C_t . h_t + D x_t, from h = 0 (Gu and Dao, arXiv 2312.00752, eq. 2 and section 3.6; the routes are those of
    Liu et al., "VMamba", arXiv 2401.10166, section 4.2). Computed in float32 (float64 where x or low is), whatever the
    dtype or autocast.

    Args:
        x: (B, *grid, E), the same for every route, or (B, K, *grid, E).
        low: (B, K, *grid, R) low-rank step sizes, in grid order.
        dt_weight: (K, E, R) their projection.
        A: (K, E, N) decay rates, negative for a stable scan.
        B, C: (B, K, *grid, N), in grid order.
        D: (K, E) skip weights.
        delta_bias: (K, E), added to the projected step sizes.
        routes: K names out of `ssmvision.ops.route_names(len(grid))`. Positions that a route skips get 0 from it.
        merge: "sum" or "mean" over the routes, or "none" to keep them apart.
        backend: "auto", or a backend's name, or "-name" to forbid it.

    Returns:
        (B, *grid, E), or (B, K, *grid, E) for merge "none", in x's dtype.

    Raises:
        ValueError: shapes, routes or merge do not fit together; the message names the argument and both shapes.
        TypeError: an argument is not a real floating-point tensor.
    """
    if low.dim() not in (4, 5, 6):
        raise ValueError(f"low must be (B, K, *grid, R) with a 1D to 3D grid, got {tuple(low.shape)}")
    _check_parameters(dt_weight, A)
    expected = (*low.shape[:-1], A.shape[-1])
    for name, t in (("B", B), ("C", C)):
        if tuple(t.shape) != expected:
            raise ValueError(f"{name} must have shape {expected}, got {tuple(t.shape)}")
        if not t.is_floating_point():
            raise TypeError(f"{name} must be a real floating-point tensor, got {t.dtype}")
    dtype = torch.promote_types(torch.promote_types(low.dtype, B.dtype), C.dtype)
    packed = torch.cat([t.to(dtype).movedim(1, -2) for t in (low, B, C)], -1)
    return projected_scan_packed(x, packed, dt_weight, A, D, delta_bias, routes=routes, merge=merge, backend=backend)


def projected_scan_packed(
    x: Tensor,
    projected: Tensor,
    dt_weight: Tensor,
    A: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    routes: Sequence[str],
    merge: Merge = "sum",
    backend: str = "auto",
) -> Tensor:
    """`projected_scan_nd` on low, B and C side by side, as one linear layer on a channels-last map leaves them.

    Args:
        x: (B, *grid, E), the same for every route, or (B, K, *grid, E).
        projected: (B, *grid, K, R + 2 N): for each position and route low, then B, then C.
        dt_weight, A, D, delta_bias, routes, merge, backend: as `projected_scan_nd`.

    Returns:
        As `projected_scan_nd`.

    Raises:
        ValueError, TypeError: as `projected_scan_nd`.
    """
    names = (routes,) if isinstance(routes, str) else tuple(routes)
    tensors = {"x": x, "projected": projected, "dt_weight": dt_weight, "A": A, "D": D, "delta_bias": delta_bias}
    check_tensors(tensors, "x")
    check_merge(merge)
    grid = tuple(projected.shape[1:-2])
    if len(grid) not in (1, 2, 3):
        raise ValueError(f"projected must be (B, *grid, K, R + 2 N) with a 1D to 3D grid, got a grid of {grid}")
    check_routes(names, grid)
    _check_parameters(dt_weight, A)
    _check_shapes(tensors, projected, dt_weight, A, names)
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors.values())
    out, _ = projected_scan(x, projected, dt_weight, A, D, delta_bias, ",".join(names), merge, save, backend)
    result: Tensor = out
    return result


def _check_parameters(dt_weight: Tensor, A: Tensor) -> None:
    if A.dim() != 3 or dt_weight.dim() != 3:
        shapes = f"{tuple(A.shape)} and {tuple(dt_weight.shape)}"
        raise ValueError(f"A and dt_weight must be (K, E, N) and (K, E, R), got {shapes}")


def _check_shapes(
    tensors: dict[str, Tensor | None], projected: Tensor, dt_weight: Tensor, A: Tensor, routes: tuple[str, ...]
) -> None:
    k, channels, states = len(routes), *A.shape[1:]
    batch, *grid = projected.shape[:-2]
    wanted: dict[str, tuple[tuple[int, ...], ...]] = {
        "x": ((batch, *grid, channels), (batch, k, *grid, channels)),
        "projected": ((batch, *grid, k, dt_weight.shape[2] + 2 * states),),
        "dt_weight": ((k, channels, dt_weight.shape[2]),),
        "A": ((k, channels, states),),
        "D": ((k, channels),),
        "delta_bias": ((k, channels),),
    }
    check_shapes(tensors, wanted, k)
