"""The public function: argument checks in front of the operator."""

from __future__ import annotations

from torch import Tensor

from ssmvision.kernels.channel_scale.op import scale

__all__ = ["scale_channels"]


def scale_channels(*maps: Tensor, weights: Tensor, backend: str = "auto") -> Tensor:
    """Sum of one or two maps, each weighed by channel and image, in one pass.

    sum_i maps_i weights_i, as the last step of squeeze-and-excitation (Hu et al., arXiv 1709.01507, section 3.1). On
    CUDA computed in float32 and rounded once. There is no second derivative.

    Args:
        maps: one or two (B, *grid, C) of one shape and dtype.
        weights: (B, maps, C), in any floating dtype.
        backend: "auto", or a backend's name, or "-name" to forbid it.

    Returns:
        (B, *grid, C) in the maps' dtype.

    Raises:
        ValueError: shapes or devices do not fit; the message names the argument and what it got.
        TypeError: an argument is not a real floating-point tensor, or the maps differ in dtype.
    """
    if len(maps) not in (1, 2):
        raise ValueError(f"scale_channels takes one or two maps, got {len(maps)}")
    _check(maps, weights)
    rows = [t.flatten(1, -2) for t in maps]
    out: Tensor = scale(rows[0], rows[1] if len(rows) == 2 else None, weights, backend)
    return out.view(maps[0].shape)


def _check(maps: tuple[Tensor, ...], weights: Tensor) -> None:
    first = maps[0]
    for name, t in (*((f"maps[{i}]", t) for i, t in enumerate(maps)), ("weights", weights)):
        if not t.is_floating_point():
            raise TypeError(f"{name} must be a real floating-point tensor, got {t.dtype}")
        if t.device != first.device:
            raise ValueError(f"{name} is on {t.device} but maps[0] is on {first.device}; move it there")
    if first.dim() < 3:
        raise ValueError(f"maps must be (B, *grid, C), got {tuple(first.shape)}")
    if maps[-1].shape != first.shape:
        raise ValueError(f"maps must have one shape, got {tuple(first.shape)} and {tuple(maps[-1].shape)}")
    if maps[-1].dtype != first.dtype:
        raise TypeError(f"maps must have one dtype, got {first.dtype} and {maps[-1].dtype}")
    expected = (first.shape[0], len(maps), first.shape[-1])
    if tuple(weights.shape) != expected:
        raise ValueError(f"weights must have shape {expected}, got {tuple(weights.shape)}")
