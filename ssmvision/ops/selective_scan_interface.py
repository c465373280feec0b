"""Drop-in names: `mamba_ssm.ops.selective_scan_interface` with the package name swapped, on any device.

Code written for the Mamba-1 extension runs unchanged after replacing `mamba_ssm` by `ssmvision` in its imports.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ssmvision.kernels.selective_scan import selective_scan

__all__ = ["mamba_inner_fn", "mamba_inner_ref", "selective_scan_fn", "selective_scan_ref"]

selective_scan_fn = selective_scan


def selective_scan_ref(
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
) -> Tensor | tuple[Tensor, Tensor]:
    """`selective_scan` on the reference backend: the defining loop over time."""
    return selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state, backend="reference")


def mamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    *,
    backend: str = "auto",
) -> Tensor:
    """The Mamba block after its input projection: causal convolution, SiLU, projections, gated scan, output projection.

    Args:
        xz: (B, 2D, L), the scan's input and the gate.
        conv1d_weight: (D, 1, W) depthwise taps; the convolution is causal.
        conv1d_bias: (D,).
        x_proj_weight: (R + n, D), n counting N for B and for C where they are not given (2N for complex A).
        delta_proj_weight: (D, R).
        out_proj_weight, out_proj_bias: (dim, D), (dim,).
        A: (D, N), real or complex.
        B, C: (D, N) where constant in time; made from x where None.
        D, delta_bias: (D,).
        B_proj_bias, C_proj_bias: added to the projected B and C.
        delta_softplus: apply softplus to the step sizes.
        backend: see `ssmvision.ops.selective_scan_nd`.

    Returns:
        (B, L, dim).
    """
    length, rank = xz.shape[-1], delta_proj_weight.shape[1]
    width = A.shape[-1] * (2 if A.is_complex() else 1)
    x, z = xz.chunk(2, dim=1)
    taps = conv1d_weight.shape[-1]
    x = F.silu(F.conv1d(F.pad(x, (taps - 1, 0)), conv1d_weight, conv1d_bias, groups=x.shape[1]))
    projected = F.linear(x.transpose(1, 2), x_proj_weight)
    delta = F.linear(projected[..., :rank], delta_proj_weight).transpose(1, 2)
    if B is None:
        B = _over_time(projected[..., rank : rank + width], B_proj_bias, A, length)
    if C is None:
        C = _over_time(projected[..., -width:], C_proj_bias, A, length)
    y = selective_scan(x, delta, A, B, C, D, z, delta_bias, delta_softplus, backend=backend)
    assert isinstance(y, Tensor)
    return F.linear(y.transpose(1, 2), out_proj_weight, out_proj_bias)


def _over_time(projected: Tensor, bias: Tensor | None, A: Tensor, length: int) -> Tensor:
    """(B, L, N) -> (B, N, L); for complex A (B, L, 2N) -> (B, N, 2L), real and imaginary parts interleaved."""
    if bias is not None:
        projected = projected + bias.to(projected.dtype)
    if not A.is_complex():
        return projected.transpose(1, 2)
    interleaved: Tensor = projected.unflatten(-1, (-1, 2)).transpose(1, 2)
    return interleaved.reshape(projected.shape[0], -1, 2 * length)


# Upstream's reference is the unfused composition around the same scan, which is what `mamba_inner_fn` is here.
mamba_inner_ref = mamba_inner_fn
