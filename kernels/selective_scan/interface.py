"""Public selective-scan functions: argument checks, and the two layouts mapped onto the one operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ssmvision.kernels.checks import check_merge, check_routes, check_shapes, check_tensors
from ssmvision.kernels.selective_scan.op import scan
from ssmvision.kernels.selective_scan.reference import selective_scan_complex

Merge = Literal["sum", "mean", "none"]

__all__ = ["Merge", "selective_scan", "selective_scan_nd"]


def selective_scan_nd(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    *,
    routes: Sequence[str],
    merge: Merge = "sum",
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Selective scan of a 1D, 2D or 3D channels-last map along K routes, merged back on the map.

    Along each route, h_t = exp(delta_t A) h_{t-1} + delta_t B_t x_t and y_t = C_t . h_t + D x_t, from h = 0
    (Gu and Dao, arXiv 2312.00752, eq. 2). Computed in float32 (float64 where x or delta is), whatever the dtype or
    autocast.

    Args:
        x: (B, *grid, E), the same for every route, or (B, K, *grid, E).
        delta: (B, K, *grid, E) step sizes, in grid order.
        A: (K, E, N) decay rates, negative for a stable scan.
        B, C: (B, K, *grid, N), in grid order.
        D: (K, E) skip weights.
        z: (B, *grid, E) gate: the result is multiplied by silu(z). For merge "none" also (B, K, *grid, E).
        delta_bias: (K, E), added to delta.
        delta_softplus: apply softplus to delta (+ delta_bias).
        return_last_state: also return the state after each route's last step.
        routes: K names out of `ssmvision.ops.route_names(len(grid))`. Positions that a route skips get 0 from it.
        merge: "sum" or "mean" over the routes, or "none" to keep them apart.
        backend: "auto", or a backend's name, or "-name" to forbid it.

    Returns:
        (B, *grid, E), or (B, K, *grid, E) for merge "none", in x's dtype; with `return_last_state` also (B, K, E, N) in
        the compute dtype. Gradients flow through both.

    Raises:
        ValueError: shapes, routes or merge do not fit together; the message names the argument and both shapes.
        TypeError: an argument is not a real floating-point tensor.
    """
    names = (routes,) if isinstance(routes, str) else tuple(routes)
    _check_nd(x, delta, A, B, C, D, z, delta_bias, names, merge)
    if z is not None and merge == "none" and z.dim() < delta.dim():
        z = z.unsqueeze(1).expand_as(delta)
    tensors = (x, delta, A, B, C, D, z, delta_bias)
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    out, last, *_ = scan(*tensors, delta_softplus, ",".join(names), merge, save, backend)
    return (out, last) if return_last_state else out


def _check_nd(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    routes: tuple[str, ...],
    merge: str,
) -> None:
    named = {"x": x, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias}
    check_tensors(named, "x")
    check_merge(merge)
    grid = delta.shape[2:-1]
    if len(grid) not in (1, 2, 3):
        raise ValueError(f"delta must be (B, K, *grid, E) with a 1D to 3D grid, got {tuple(delta.shape)}")
    check_routes(routes, grid)
    batch, channels, n_state, k = delta.shape[0], delta.shape[-1], A.shape[-1], len(routes)
    merged, apart = (batch, *grid, channels), (batch, k, *grid, channels)
    wanted: dict[str, tuple[tuple[int, ...], ...]] = {
        "delta": (apart,),
        "x": (merged, apart),
        "A": ((k, channels, n_state),),
        "B": ((batch, k, *grid, n_state),),
        "C": ((batch, k, *grid, n_state),),
        "D": ((k, channels),),
        "z": (merged, apart) if merge == "none" else (merged,),
        "delta_bias": ((k, channels),),
    }
    check_shapes(named, wanted, k)


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    *,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Causal selective scan of sequences: a drop-in for `mamba_ssm`'s `selective_scan_fn`, on any device.

    Args:
        u, delta: (B, D, L).
        A: (D, N), real; or complex, standing for conjugate pairs (the output is then 2 Re(C . h)).
        B, C: (D, N), constant in time; (B, N, L); or (B, G, N, L) for G groups of D / G neighbouring channels. For
            complex A, (D, N) complex, or real with L doubled: real and imaginary parts interleaved along time.
        D: (D,) skip weights.
        z: (B, D, L) gate: the result is multiplied by silu(z).
        delta_bias: (D,), added to delta.
        delta_softplus: apply softplus to delta (+ delta_bias).
        return_last_state: also return the state after the last step.
        backend: see `selective_scan_nd`; complex A always runs the reference loop.

    Returns:
        (B, D, L) in u's dtype; with `return_last_state` also (B, D, N), through which gradients flow as well.

    Raises:
        ValueError, TypeError: as `selective_scan_nd`.
    """
    if u.dim() != 3 or delta.shape != u.shape:
        raise ValueError(f"u and delta must both be (B, D, L), got {tuple(u.shape)} and {tuple(delta.shape)}")
    batch, channels, length = u.shape
    if A.dim() != 2 or A.shape[0] != channels:
        raise ValueError(f"A must have shape ({channels}, N), got {tuple(A.shape)}")
    if A.is_complex():
        out, last = selective_scan_complex(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
        return (out, last) if return_last_state else out
    groups = _groups(B, C, channels)
    result = selective_scan_nd(
        _split_channels(u, groups),
        _split_channels(delta, groups),
        A.unflatten(0, (groups, -1)),
        _per_group("B", B, groups, batch, length),
        _per_group("C", C, groups, batch, length),
        None if D is None else D.unflatten(0, (groups, -1)),
        None if z is None else _split_channels(z, groups),
        None if delta_bias is None else delta_bias.unflatten(0, (groups, -1)),
        delta_softplus,
        True,
        routes=("forward",) * groups,
        merge="none",
        backend=backend,
    )
    out, last = result[0].transpose(2, 3).flatten(1, 2), result[1].flatten(1, 2)
    return (out, last) if return_last_state else out


def _groups(B: Tensor, C: Tensor, channels: int) -> int:
    """Groups of channels that share their B and C; constant ones differ by channel, so every channel is its own."""
    if B.dim() == 2 or C.dim() == 2:
        return channels
    counts = [t.shape[1] if t.dim() == 4 else 1 for t in (B, C)]
    groups = max(counts)
    if any(count not in (1, groups) for count in counts) or channels % groups:
        raise ValueError(f"B and C have {counts[0]} and {counts[1]} groups, which must agree and divide {channels}")
    return groups


def _split_channels(t: Tensor, groups: int) -> Tensor:
    """(B, D, L) -> (B, G, L, D / G)."""
    split: Tensor = t.unflatten(1, (groups, -1)).transpose(2, 3)
    return split


def _per_group(name: str, t: Tensor, groups: int, batch: int, length: int) -> Tensor:
    """(D, N), (B, N, L) or (B, G, N, L) -> (B, groups, L, N)."""
    if t.dim() == 2:
        return t[None, :, None, :].expand(batch, groups, length, t.shape[1])
    if t.dim() not in (3, 4):
        raise ValueError(f"{name} must be (D, N), (B, N, L) or (B, G, N, L), got {tuple(t.shape)}")
    grouped = t.unsqueeze(1) if t.dim() == 3 else t
    per_group: Tensor = grouped.repeat_interleave(groups // grouped.shape[1], 1).transpose(2, 3)
    return per_group
