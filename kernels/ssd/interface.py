"""The public function: argument checks in front of the operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from ssmvision.kernels.checks import check_tensors
from ssmvision.kernels.routes import route_names
from ssmvision.kernels.ssd.op import ssd

__all__ = ["ssd_nd"]


def ssd_nd(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    routes: Sequence[str],
    merge: Literal["sum", "mean"] = "sum",
    backend: str = "auto",
) -> Tensor:
    """Mamba-2's scan of a 1D, 2D or 3D channels-last map of heads along K routes, merged back on the map.

    Along each route and for each head, h_t = exp(delta_t A) h_{t-1} + delta_t B_t x_t^T and y_t = C_t h_t + D x_t, from
    h = 0, where h is (N, P) and A a scalar (Dao and Gu, arXiv 2405.21060, eq. 2). The same function as
    `selective_scan_nd` with a step size and a decay rate for every head, computed by matrix products.

    In float32 (float64 where x or delta is), whatever the dtype or autocast; but matrix products of bfloat16 CUDA
    tensors have bfloat16 operands and results, and those of others TF32 operands where
    `torch.set_float32_matmul_precision` allows it. There is no second derivative.

    Args:
        x: (B, *grid, H, P) H heads of width P, the same for every route.
        delta: (B, K, *grid, H) step sizes, not negative, in grid order.
        A: (K, H) decay rates, negative for a stable scan.
        B, C: (B, K, *grid, G, N) in grid order, each of the G groups for H / G neighbouring heads.
        D: (K, H) skip weights.
        routes: K names out of `ssmvision.ops.route_names(len(grid))`. Positions that a route skips get 0 from it.
        merge: "sum" or "mean" over the routes.
        backend: "auto", or a backend's name, or "-name" to forbid it.

    Returns:
        (B, *grid, H, P), contiguous, in x's dtype.

    Raises:
        ValueError: shapes, devices, routes or merge do not fit together; the message names the argument.
        TypeError: an argument is not a real floating-point tensor.
    """
    names = (routes,) if isinstance(routes, str) else tuple(routes)
    check_tensors({"x": x, "delta": delta, "A": A, "B": B, "C": C, "D": D}, "x")
    _check_routes(x, names, merge)
    _check_shapes(x, B, {"delta": delta, "A": A, "C": C, "D": D}, len(names))
    out: Tensor = ssd(x, delta, A, B, C, D, ",".join(names), merge, backend)
    return out


def _check_routes(x: Tensor, routes: tuple[str, ...], merge: str) -> None:
    if merge not in ("sum", "mean"):
        raise ValueError(f"merge must be 'sum' or 'mean', got {merge!r}")
    if x.dim() not in (4, 5, 6):
        raise ValueError(f"x must be (B, *grid, H, P) with a 1D to 3D grid, got {tuple(x.shape)}")
    known = route_names(x.dim() - 3)
    for route in routes:
        if route not in known:
            raise ValueError(f"no route {route!r} on a {x.dim() - 3}D grid; choose from {', '.join(known)}")


def _check_shapes(x: Tensor, B: Tensor, others: dict[str, Tensor | None], k: int) -> None:
    batch, *grid, heads, _ = x.shape
    if B.dim() != x.dim() + 1 or tuple(B.shape[:-2]) != (batch, k, *grid) or heads % B.shape[-2]:
        wanted = f"({batch}, {k}, {', '.join(map(str, grid))}, G, N) with G a divisor of {heads} heads"
        raise ValueError(f"B must be {wanted}, got {tuple(B.shape)}")
    shapes = {"delta": (batch, k, *grid, heads), "A": (k, heads), "C": tuple(B.shape), "D": (k, heads)}
    for name, t in others.items():
        if t is not None and tuple(t.shape) != shapes[name]:
            raise ValueError(f"{name} must have shape {shapes[name]} for {k} routes, got {tuple(t.shape)}")
