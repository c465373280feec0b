"""Public functions: argument checks in front of the operators."""

from __future__ import annotations

from torch import Tensor

from ssmvision.kernels.subgrids.op import conv, norm

__all__ = ["subgrid_conv", "subgrid_norm"]


def subgrid_conv(x: Tensor, weight: Tensor, bias: Tensor, backend: str = "auto") -> Tensor:
    """`split_subgrids` of SiLU of a zero-padded depthwise 3x3 convolution, in one pass over the map.

    The sub-grids are those of Pei et al., "EfficientVMamba" (arXiv 2403.09977), section 3.2. Computed in float32 on
    CUDA (float64 where x is), whatever the dtype or autocast. The backward convolves again.

    Args:
        x: (B, H, W, E), its last axis dense in memory or copied.
        weight: (E, 1, 3, 3).
        bias: (E,).
        backend: "auto", or a backend's name, or "-name" to forbid it.

    Returns:
        (B, 4, ceil(H / 2), ceil(W / 2), E) in x's dtype, sub-grids first in memory; where H or W is odd, the added
        positions are zero.

    Raises:
        ValueError: shapes or devices do not fit; the message names the argument and what it got.
        TypeError: an argument is not a real floating-point tensor.
    """
    if x.dim() != 4:
        raise ValueError(f"x must be (B, H, W, E), got {tuple(x.shape)}")
    channels = x.shape[3]
    _check({"x": x, "weight": weight, "bias": bias}, {"weight": (channels, 1, 3, 3), "bias": (channels,)})
    parts: Tensor = conv(x, weight, bias, backend)
    return parts.transpose(0, 1)


def subgrid_norm(
    y: Tensor,
    gate: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-5,
    silu: bool = True,
    backend: str = "auto",
) -> Tensor:
    """LayerNorm of `join_subgrids(y)` times silu(gate), in one pass over the map.

    Computed in float32 (float64 where y is), whatever the dtype or autocast. The backward norms again.

    Args:
        y: (B, 4, ceil(H / 2), ceil(W / 2), E).
        gate: (B, H, W, E), its last axis dense in memory or copied.
        weight, bias: (E,), of the norm.
        eps: of the norm.
        silu: False multiplies by the gate itself.
        backend: "auto", or a backend's name, or "-name" to forbid it.

    Returns:
        (B, H, W, E) in y's dtype.

    Raises:
        ValueError: shapes or devices do not fit; the message names the argument and what it got.
        TypeError: an argument is not a real floating-point tensor.
    """
    if gate.dim() != 4:
        raise ValueError(f"gate must be (B, H, W, E), got {tuple(gate.shape)}")
    batch, height, width, channels = gate.shape
    expected = {
        "y": (batch, 4, (height + 1) // 2, (width + 1) // 2, channels),
        "weight": (channels,),
        "bias": (channels,),
    }
    _check({"y": y, "gate": gate, "weight": weight, "bias": bias}, expected)
    out: Tensor = norm(y, gate, weight, bias, eps, silu, backend)
    return out


def _check(tensors: dict[str, Tensor], expected: dict[str, tuple[int, ...]]) -> None:
    device = next(iter(tensors.values())).device
    for name, t in tensors.items():
        if not t.is_floating_point():
            raise TypeError(f"{name} must be a real floating-point tensor, got {t.dtype}")
        if t.device != device:
            raise ValueError(f"{name} is on {t.device} but {next(iter(tensors))} is on {device}; move it there")
        if name in expected and tuple(t.shape) != expected[name]:
            raise ValueError(f"{name} must have shape {expected[name]}, got {tuple(t.shape)}")
