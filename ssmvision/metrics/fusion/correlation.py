"""Linear correlation between fused image and sources."""

from __future__ import annotations

from torch import Tensor

from ssmvision.metrics.fusion.images import gray_images, per_image

__all__ = ["correlation_coefficient", "sum_of_correlations_of_differences"]

# In gray levels of 0..255: below it a standard deviation is that of a constant, rounded in float64.
_ROUNDING = 1e-9


def correlation_coefficient(
    a: Tensor, b: Tensor, fused: Tensor, *, data_range: float | None = None, undefined: float = 0.0
) -> Tensor:
    """CC: mean of the two Pearson correlations of the fused image with a source.

    Args:
        a, b, fused: (H, W) or (B, 1, H, W), all of one shape.
        data_range: value that stands for white; None takes the range of uint8 or uint16.
        undefined: what the correlation with a constant image counts as. CDDFuse's evaluator gives NaN.

    Raises:
        TypeError, ValueError: see `ssmvision.metrics.fusion.images.gray_images`.
    """
    gray_a, gray_b, gray_fused = gray_images(data_range, a=a, b=b, fused=fused)
    both = _pearson(gray_a, gray_fused, undefined) + _pearson(gray_b, gray_fused, undefined)
    return per_image(both / 2, fused)


def sum_of_correlations_of_differences(
    a: Tensor, b: Tensor, fused: Tensor, *, data_range: float | None = None, undefined: float = 0.0
) -> Tensor:
    """SCD: r(F - B, A) + r(F - A, B), in -2..2 (Aslantas & Bendes 2015).

    Args:
        a, b, fused: (H, W) or (B, 1, H, W), all of one shape.
        data_range: value that stands for white; None takes the range of uint8 or uint16.
        undefined: what a correlation with a constant counts as. A fused image that is a copy of B has added nothing of
            A, so it is 0 unless said; CDDFuse's evaluator gives NaN for the whole.

    Raises:
        TypeError, ValueError: see `ssmvision.metrics.fusion.images.gray_images`.
    """
    gray_a, gray_b, gray_fused = gray_images(data_range, a=a, b=b, fused=fused)
    of_a = _pearson(gray_a, gray_fused - gray_b, undefined)
    return per_image(of_a + _pearson(gray_b, gray_fused - gray_a, undefined), fused)


def _pearson(x: Tensor, y: Tensor, undefined: float) -> Tensor:
    """Pearson correlations (B,) of images (B, 1, H, W)."""
    x, y = (v.flatten(1) for v in (x, y))
    x, y = (v - v.mean(1, keepdim=True) for v in (x, y))
    norms = [v.square().mean(1).sqrt() for v in (x, y)]
    defined = (norms[0] > _ROUNDING) & (norms[1] > _ROUNDING)
    product = norms[0] * norms[1]
    return ((x * y).mean(1) / product.where(defined, 1.0)).where(defined, undefined)
