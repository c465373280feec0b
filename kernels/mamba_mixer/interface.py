"""The public function: argument checks in front of the operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ssmvision.kernels.mamba_mixer.args import Parameters
from ssmvision.kernels.mamba_mixer.op import autocast_enabled, run

__all__ = ["MAX_TAPS", "Recompute", "compute_dtype", "mamba_mixer", "run_mixer"]

Recompute = Literal["none", "least", "scan", "all"]
MAX_TAPS = 8
KEEP = {"none": "everything", "least": "states", "scan": "activations", "all": "tokens"}


def mamba_mixer(
    tokens: Tensor,
    in_weight: Tensor,
    conv_weight: Sequence[Tensor],
    x_weight: Sequence[Tensor],
    dt_weight: Sequence[Tensor],
    dt_bias: Sequence[Tensor],
    A_log: Sequence[Tensor],
    D: Sequence[Tensor],
    out_weight: Tensor,
    in_bias: Tensor | None = None,
    conv_bias: Sequence[Tensor] = (),
    out_bias: Tensor | None = None,
    *,
    routes: Sequence[str] = ("forward",),
    merge: Literal["sum", "mean"] = "mean",
    recompute: Recompute = "least",
    backend: str = "auto",
) -> Tensor:
    """Mamba-1 mixer of a token sequence, along K directions with convolution, projections, A and D of their own.

    With (x, z) = in_proj(tokens), every direction takes u = silu(conv(x)), (low, B, C) = x_proj(u) and
    delta = dt_proj(low); the directions' selective scans of u are merged, gated by silu(z), and projected by out_proj
    (Gu and Dao, arXiv 2312.00752, figure 3; Zhu et al., arXiv 2401.09417, algorithm 1).

    GEMMs and activations have the tokens' dtype, or autocast's where that is on; the convolution, the steps and the
    scan are computed in at least float32. Gradients are deterministic, in the parameters' dtypes; there is no second
    derivative.

    Args:
        tokens: (B, L, D).
        in_weight, in_bias: (2E, D) and (2E,) or None; the first E rows make x, the others z.
        conv_weight, conv_bias: K of (E, 1, W) or (E, W), W from 1 to 8, and K of (E,) or none; depthwise, causal along
            the direction.
        x_weight: K of (R + 2N, E).
        dt_weight, dt_bias: K of (E, R) and of (E,).
        A_log: K of (E, N); A = -exp(A_log).
        D: K of (E,), skip weights.
        out_weight, out_bias: (D, E) and (D,) or None. Both projections have a bias or none has.
        routes: K times "forward" or "backward".
        merge: how directions are joined.
        recompute: what the backward computes again instead of having it stored. "none": nothing but the result after
            the gate. "least": also the convolutions and step sizes, which cost little and would take 4 E elements a
            token for two directions. "scan": also the scan, for its states and its result before the gate. "all":
            everything, so that only the tokens are stored.
        backend: of the scan, see `selective_scan_nd`. On "cuda" the mixer's own kernels run, on "numba" the
            convolution's, else plain PyTorch around the scan.

    Returns:
        (B, L, D), in the compute dtype.

    Raises:
        ValueError: shapes, routes, merge, recompute or devices do not fit; the message names the argument.
        TypeError: an argument is not a real floating-point tensor.
    """
    names = (routes,) if isinstance(routes, str) else tuple(routes)
    groups = (conv_weight, conv_bias, x_weight, dt_weight, dt_bias, A_log, D)
    p = Parameters(in_weight, in_bias, out_weight, out_bias, *map(tuple, groups))
    if recompute not in KEEP:
        raise ValueError(f"recompute must be one of {', '.join(KEEP)}, got {recompute!r}")
    _check(tokens, p, names, merge)
    return run_mixer(tokens, p, names, merge, recompute, backend)


def compute_dtype(tokens: Tensor) -> torch.dtype:
    """Autocast's dtype where that is on and would cast the tokens, else their own."""
    device = tokens.device.type
    if tokens.dtype == torch.float64 or not autocast_enabled(device):
        return tokens.dtype
    return torch.get_autocast_dtype(device)


def run_mixer(
    tokens: Tensor, p: Parameters, routes: tuple[str, ...], merge: str, recompute: Recompute, backend: str
) -> Tensor:
    """`mamba_mixer` without its checks, for callers whose parameters fit by construction."""
    needs_grad = torch.is_grad_enabled() and any(t.requires_grad for t in (tokens, *p.flat()))
    keep = KEEP[recompute] if needs_grad else "nothing"
    return run(tokens.to(compute_dtype(tokens)), p, routes, merge, keep, backend)


def _check(tokens: Tensor, p: Parameters, routes: tuple[str, ...], merge: str) -> None:
    if merge not in ("sum", "mean"):
        raise ValueError(f"merge must be 'sum' or 'mean', got {merge!r}")
    for route in routes:
        if route not in ("forward", "backward"):
            raise ValueError(f"unknown route {route!r}; choose from forward, backward")
    if (p.in_bias is None) != (p.out_bias is None):
        raise ValueError("in_bias and out_bias must both be given or both be None")
    groups = p._asdict()
    for name, value in {"tokens": tokens, **groups}.items():
        for t in value if isinstance(value, tuple) else (value,):
            _check_tensor(name, t, tokens)
        if isinstance(value, tuple) and len(value) not in ({0, len(routes)} if name == "conv_bias" else {len(routes)}):
            raise ValueError(f"{name} must have one tensor for each of {len(routes)} routes, got {len(value)}")
    _check_shapes(tokens, p)


def _check_tensor(name: str, t: Tensor | None, tokens: Tensor) -> None:
    if t is None:
        return
    if not t.is_floating_point():
        raise TypeError(f"{name} must be a real floating-point tensor, got {t.dtype}")
    if t.device != tokens.device:
        raise ValueError(f"{name} is on {t.device} but tokens are on {tokens.device}; move it there")


def _check_shapes(tokens: Tensor, p: Parameters) -> None:
    if tokens.dim() != 3:
        raise ValueError(f"tokens must be (B, L, D), got {tuple(tokens.shape)}")
    dim, (inner, state), rank = tokens.shape[-1], p.A_log[0].shape, p.dt_weight[0].shape[-1]
    wanted: dict[str, tuple[int, ...]] = {
        "in_weight": (2 * inner, dim),
        "in_bias": (2 * inner,),
        "out_weight": (dim, inner),
        "out_bias": (dim,),
        "conv_bias": (inner,),
        "x_weight": (rank + 2 * state, inner),
        "dt_weight": (inner, rank),
        "dt_bias": (inner,),
        "A_log": (inner, state),
        "D": (inner,),
    }
    for name, shape in wanted.items():
        value = getattr(p, name)
        for t in value if isinstance(value, tuple) else () if value is None else (value,):
            if tuple(t.shape) != shape:
                raise ValueError(f"{name} must have shape {shape}, got {tuple(t.shape)}")
    taps = p.conv_weight[0].shape[-1]
    for t in p.conv_weight:
        if tuple(t.shape) not in ((inner, 1, taps), (inner, taps)) or not 1 <= taps <= MAX_TAPS:
            want = f"({inner}, 1, W) for W from 1 to {MAX_TAPS}, the same in all directions"
            raise ValueError(f"conv_weight must have shape {want}, got {tuple(t.shape)}")
