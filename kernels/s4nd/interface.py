"""The public long convolution: argument checks, and short forms of the kernels brought to the full one."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ssmvision.kernels.checks import check_tensors
from ssmvision.kernels.s4nd.args import PRECISIONS, Precision
from ssmvision.kernels.s4nd.op import long_conv

__all__ = ["long_conv_nd"]


def long_conv_nd(
    u: Tensor,
    kernels: Sequence[Tensor],
    D: Tensor | None = None,
    *,
    centers: Sequence[int] | int = 0,
    dense: bool = False,
    precision: Precision = "auto",
    backend: str = "auto",
) -> Tensor:
    """Zero-padded convolution with a sum over ranks of outer products of 1D kernels, in 1D, 2D or 3D.

    y[b, c, h] = D[c, h] u[b, h] + sum_r (k_1[r, c, h] x ... x k_d[r, c, h]) * u[b, h], cropped to u's grid; tap t of
    axis a has lag t - centers[a], so a center of 0 is causal. With `dense`, y[b, c] sums that over h. Exact for every
    backend: "toeplitz" multiplies each axis by a matrix; "cuda" (planes) and "triton" (volumes) do so in bfloat16 on
    NVIDIA GPUs without writing every axis' result to memory; "fft" transforms all axes (Nguyen et al., arXiv
    2210.06583, section 3). Bitwise the same for the same call. The backward recomputes what lies between the axes.

    Args:
        u: (B, H, L_1, ..., L_d), d = 1, 2 or 3; any strides. float64, float32, bfloat16 or float16.
        kernels: one tensor an axis, (R, C, H, T_a), (C, H, T_a) or (H, T_a); the same R, C and H for all.
        D: (C, H) or (H,) skip weights.
        centers: index of lag 0 in every kernel, one for all axes or one an axis.
        dense: sum over the features h.
        precision: of all but "fft": "auto" computes float32 in full float32 and bfloat16 on GPUs with bfloat16 products
            (float32 on CPUs); "fp32" forces float32; "tf32" allows TF32 where the device has it; "bf16" rounds the
            operands and what lies between the axes to bfloat16, with float32 sums (0.4 % of the maximum). float64 is
            never lowered but by "bf16". float16 is computed in float32, since the values between the axes of a 3D
            convolution can leave its range; a result beyond 65504 is infinite.
        backend: "auto", or a backend's name, or "-name" to forbid it.

    Returns:
        (B, C, H, L_1, ..., L_d), or (B, C, L_1, ..., L_d) for `dense`, contiguous, in u's dtype.

    Raises:
        ValueError: shapes do not fit together, or a kernel reaches further than its axis is long.
        TypeError: a tensor is not real floating-point.
    """
    full = [_full(kernel, axis) for axis, kernel in enumerate(kernels)]
    places = [centers] * len(full) if isinstance(centers, int) else [int(c) for c in centers]
    weight = D.unsqueeze(0) if D is not None and D.dim() == 1 else D
    _check(u, full, places, weight, dense)
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r}: choose from {', '.join(PRECISIONS)}")
    y: Tensor = long_conv(u, full, places, weight, dense, precision, backend)
    return y


def _full(kernel: Tensor, axis: int) -> Tensor:
    if kernel.dim() not in (2, 3, 4):
        raise ValueError(f"kernels[{axis}] must be (H, T), (C, H, T) or (R, C, H, T), got {tuple(kernel.shape)}")
    return kernel[(None,) * (4 - kernel.dim())]


def _check(u: Tensor, kernels: list[Tensor], centers: list[int], D: Tensor | None, dense: bool) -> None:
    check_tensors({"u": u, "D": D, **{f"kernels[{a}]": kernel for a, kernel in enumerate(kernels)}}, "u")
    axes = u.dim() - 2
    if axes not in (1, 2, 3):
        raise ValueError(f"u must be (B, H, L_1, ..., L_d) with 1 to 3 axes, got {tuple(u.shape)}")
    if len(kernels) != axes or len(centers) != axes:
        raise ValueError(f"u has {axes} axes, but there are {len(kernels)} kernels and {len(centers)} centers")
    first = tuple(kernels[0].shape[:3])
    for a, (kernel, center, length) in enumerate(zip(kernels, centers, u.shape[2:], strict=True)):
        if tuple(kernel.shape[:3]) != first or kernel.shape[2] != u.shape[1]:
            raise ValueError(
                f"kernels[{a}] is {tuple(kernel.shape)}: its rank and channels must be those of kernels[0], "
                f"{first[:2]}, and its features u's, {u.shape[1]}"
            )
        if not 0 <= center <= kernel.shape[3]:
            raise ValueError(f"centers[{a}]={center} lies outside of kernels[{a}] with {kernel.shape[3]} taps")
        reach = max(center, kernel.shape[3] - center)
        if reach > length:
            raise ValueError(
                f"kernels[{a}] reaches {reach} taps to one side, further than its axis of {length}; "
                f"cut it to at most {length} a side"
            )
    if D is not None and (dense or tuple(D.shape) != first[1:]):
        wanted = "None: a dense convolution has no skip" if dense else f"{first[1:]} (channels, features)"
        raise ValueError(f"D must be {wanted}, got {tuple(D.shape)}")
