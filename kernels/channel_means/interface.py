"""The public function: argument checks in front of the operator."""

from __future__ import annotations

from torch import Tensor

from ssmvision.kernels.channel_means.op import means

__all__ = ["channel_means"]


def channel_means(x: Tensor, eps: float = 1e-5, backend: str = "auto") -> Tensor:
    """Means over the map of every channel, and of every channel after LayerNorm without weights, in one pass.

    mean_p x_pc and mean_p (x_pc - mean_c x_p) / sqrt(variance_c x_p + eps): the inputs of squeeze-and-excitation (Hu et
    al., arXiv 1709.01507, section 3.1) and of its form behind a LayerNorm. Computed in float32 (float64 where x is),
    whatever the dtype or autocast. Results and gradients are deterministic; there is no second derivative.

    Args:
        x: (B, *grid, C), at least one position.
        eps: added to the variance.
        backend: "auto", or a backend's name, or "-name" to forbid it.

    Returns:
        (B, 2, C), float32 or wider: plain means, then those of the normed map.

    Raises:
        ValueError: x has no grid or no position.
        TypeError: x is not a real floating-point tensor.
    """
    if x.dim() < 3:
        raise ValueError(f"x must be (B, *grid, C), got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"x must be a real floating-point tensor, got {x.dtype}")
    rows = x.flatten(1, -2)
    if rows.shape[1] == 0:
        raise ValueError(f"x must have a position to take means over, got {tuple(x.shape)}")
    out: Tensor = means(rows, eps, backend)
    return out
