"""Classical fusion of two registered gray images: what a trained model has to beat.

No parameters are learned and nothing is tuned to the images; the settings are those of the papers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ssmvision.errors import UserError

__all__ = ["METHODS", "average", "fuse", "guided_filter", "laplacian_pyramid", "maximum", "wavelet"]

Image = NDArray[np.floating[Any]]
Gray = NDArray[np.float64]

# Li, Kang & Hu 2013, section III: side of the mean filter that splits base and detail, side and sigma of the saliency's
# blur, and radius and regulariser of the guided filters of the base's and the detail's weights.
_BASE_SIDE = 31
_SALIENCY_SIDE, _SALIENCY_SIGMA = 11, 5.0
_BASE_FILTER, _DETAIL_FILTER = (45, 0.3), (7, 1e-6)
# Of an image in 0..1: saliencies closer than this differ by rounding only.
_TIE = 1e-12


def average(a: Image, b: Image) -> Image:
    """Mean of the two images.

    Args:
        a, b: (H, W) floating, gray values in 0..1.

    Returns:
        (H, W) in the inputs' dtype.

    Raises:
        TypeError, ValueError: not two finite gray images of one shape with values in 0..1.
    """
    gray_a, gray_b = _checked(a, b)
    return _finished((gray_a + gray_b) / 2, a, b)


def maximum(a: Image, b: Image) -> Image:
    """The brighter pixel of the two images.

    Args:
        a, b: (H, W) floating, gray values in 0..1.

    Returns:
        (H, W) in the inputs' dtype.

    Raises:
        TypeError, ValueError: not two finite gray images of one shape with values in 0..1.
    """
    return _finished(np.maximum(*_checked(a, b)), a, b)


def laplacian_pyramid(a: Image, b: Image, levels: int = 5) -> Image:
    """At every scale the stronger detail, and the mean of what is left (Burt & Adelson 1983, Burt & Kolczynski 1993).

    OpenCV's 5x5 binomial pyramids. Equal strength takes the mean of both details, so that the order of the images does
    not matter. Over- and undershoots are clipped to 0..1.

    Args:
        a, b: (H, W) floating, gray values in 0..1.
        levels: details taken apart; fewer where an image is smaller than 2**levels pixels.

    Returns:
        (H, W) in the inputs' dtype.

    Raises:
        TypeError, ValueError: not two finite gray images of one shape with values in 0..1, or negative `levels`.
    """
    if levels < 0:
        raise ValueError(f"levels is {levels}; expected 0 or more")
    base_a, base_b = _checked(a, b)
    details = []
    for _ in range(min(levels, min(base_a.shape).bit_length() - 1)):
        base_a, detail_a = _split(base_a)
        base_b, detail_b = _split(base_b)
        details.append(_stronger(detail_a, detail_b))
    fused = (base_a + base_b) / 2
    for detail in reversed(details):
        fused = _expanded(fused, detail.shape) + detail
    return _finished(fused, a, b)


def _split(image: Gray) -> tuple[Gray, Gray]:
    """The next coarser image, ceil(H / 2) x ceil(W / 2), and what it lacks, H x W."""
    base: Gray = np.asarray(cv2.pyrDown(image), dtype=np.float64).reshape([(n + 1) // 2 for n in image.shape])
    return base, image - _expanded(base, image.shape)


def _expanded(image: Gray, shape: tuple[int, ...]) -> Gray:
    height, width = shape
    return np.asarray(cv2.pyrUp(image, dstsize=(width, height)), dtype=np.float64).reshape(shape)


def wavelet(a: Image, b: Image, levels: int = 4) -> Image:
    """At every scale of the wavelet transform "a trous" the stronger coefficient, and the mean of what is left.

    The transform with the B3 spline (Starck & Murtagh 1994) is not decimated, so that the result does not depend on
    where the image starts, as that of decimated wavelets does (Rockinger 1997); the rule is that of Li, Manjunath &
    Mitra 1995. Equal strength takes the mean of both coefficients. Over- and undershoots are clipped to 0..1.

    Args:
        a, b: (H, W) floating, gray values in 0..1.
        levels: scales taken apart, the finest of 2 pixels; fewer where an image's shorter side is under 2**levels
            pixels.

    Returns:
        (H, W) in the inputs' dtype.

    Raises:
        TypeError, ValueError: not two finite gray images of one shape with values in 0..1, or negative `levels`.
    """
    if levels < 0:
        raise ValueError(f"levels is {levels}; expected 0 or more")
    base_a, base_b = _checked(a, b)
    fused = np.zeros_like(base_a)
    for level in range(min(levels, min(base_a.shape).bit_length() - 1)):
        smooth_a, smooth_b = _smoothed(base_a, level), _smoothed(base_b, level)
        fused += _stronger(base_a - smooth_a, base_b - smooth_b)
        base_a, base_b = smooth_a, smooth_b
    return _finished(fused + (base_a + base_b) / 2, a, b)


def _smoothed(image: Gray, level: int) -> Gray:
    """B3 spline of 2**level pixels between its taps."""
    kernel = np.zeros(4 * 2**level + 1)
    kernel[:: 2**level] = np.array([1, 4, 6, 4, 1]) / 16
    smooth = cv2.sepFilter2D(image, cv2.CV_64F, kernel, kernel)
    return np.asarray(smooth, dtype=np.float64).reshape(image.shape)


def _stronger(detail_a: Gray, detail_b: Gray) -> Gray:
    stronger = np.where(np.abs(detail_a) > np.abs(detail_b), detail_a, detail_b)
    equal: Gray = np.where(np.abs(detail_a) == np.abs(detail_b), (detail_a + detail_b) / 2, stronger)
    return equal


def guided_filter(a: Image, b: Image) -> Image:
    """GFF: base and detail layers with weights that follow the images' edges (Li, Kang & Hu 2013).

    A mean filter splits each image in two layers. The image of the larger saliency (blurred Laplacian) has weight 1;
    a guided filter (He, Sun & Tang 2013) fits these maps to the edges, widely for the base and narrowly for the detail.
    Settings of the paper. Weights are cut at 0 before they are divided by their sum; where both are 0, each is a half.
    Over- and undershoots of the result are clipped to 0..1.

    Args:
        a, b: (H, W) floating, gray values in 0..1.

    Returns:
        (H, W) in the inputs' dtype.

    Raises:
        TypeError, ValueError: not two finite gray images of one shape with values in 0..1.
    """
    images = _checked(a, b)
    saliency = [_saliency(image) for image in images]
    difference = saliency[0] - saliency[1]
    # A tie gives both images weight 1.
    chosen = [(sign * difference >= -_TIE).astype(np.float64) for sign in (1, -1)]
    bases = [_mean(image, _BASE_SIDE) for image in images]
    details = [image - base for image, base in zip(images, bases, strict=True)]
    fused = np.zeros_like(images[0])
    for layers, (radius, epsilon) in ((bases, _BASE_FILTER), (details, _DETAIL_FILTER)):
        weights = [
            np.maximum(_guided(image, chosen_here, radius, epsilon), 0)
            for image, chosen_here in zip(images, chosen, strict=True)
        ]
        total = weights[0] + weights[1]
        share = np.divide(weights[0], total, out=np.full_like(total, 0.5), where=total > _TIE)
        fused += share * layers[0] + (1 - share) * layers[1]
    return _finished(fused, a, b)


def _saliency(image: Gray) -> Gray:
    strength = np.abs(cv2.Laplacian(image, cv2.CV_64F, ksize=1)).reshape(image.shape)
    blurred = cv2.GaussianBlur(strength, (_SALIENCY_SIDE, _SALIENCY_SIDE), _SALIENCY_SIGMA)
    return np.asarray(blurred, dtype=np.float64).reshape(image.shape)


def _mean(image: Gray, side: int) -> Gray:
    """Mean over the part of a window of side x side pixels that is inside the image."""
    sums, counts = (_sum(x, side) for x in (image, np.ones_like(image)))
    mean: Gray = sums / counts
    return mean


def _sum(image: Gray, side: int) -> Gray:
    sums = cv2.boxFilter(image, cv2.CV_64F, (side, side), normalize=False, borderType=cv2.BORDER_CONSTANT)
    return np.asarray(sums, dtype=np.float64).reshape(image.shape)


def _guided(guide: Gray, image: Gray, radius: int, epsilon: float) -> Gray:
    """Guided filter of He, Sun & Tang 2013, equations 5, 6 and 8: windows of 2 radius + 1 pixels."""
    side = 2 * radius + 1
    mean_guide, mean_image = _mean(guide, side), _mean(image, side)
    covariance = _mean(guide * image, side) - mean_guide * mean_image
    variance = np.maximum(_mean(guide * guide, side) - mean_guide**2, 0)
    slope = covariance / (variance + epsilon)
    return _mean(slope, side) * guide + _mean(mean_image - slope * mean_guide, side)


def _checked(a: Image, b: Image) -> tuple[Gray, Gray]:
    """Both images as float64."""
    if a.shape != b.shape:
        raise ValueError(f"the images are {a.shape} and {b.shape}; bring them onto one grid first")
    gray = []
    for name, image in (("a", a), ("b", b)):
        if not np.issubdtype(image.dtype, np.floating):
            raise TypeError(f"{name} is {image.dtype}; expected floating gray values, divided by their range")
        if image.ndim != 2 or image.size == 0:
            raise ValueError(f"{name} is {image.shape}; expected a gray image (H, W) with at least one pixel")
        if not np.isfinite(image).all():
            raise ValueError(f"{name} has {np.count_nonzero(~np.isfinite(image))} values that are NaN or infinite")
        if image.min() < 0 or image.max() > 1:
            raise ValueError(f"{name} has values from {image.min():g} to {image.max():g}; expected 0 to 1")
        gray.append(np.ascontiguousarray(image, dtype=np.float64))
    return gray[0], gray[1]


def _finished(fused: Gray, a: Image, b: Image) -> Image:
    return np.clip(fused, 0, 1).astype(np.result_type(a, b))


METHODS: dict[str, Callable[[Image, Image], Image]] = {
    "average": average,
    "max": maximum,
    "laplacian": laplacian_pyramid,
    "wavelet": wavelet,
    "guided": guided_filter,
}


def fuse(a: Image, b: Image, method: str) -> Image:
    """Fuse by the name of a method, as a command line gives it.

    Args:
        a, b: (H, W) floating, gray values in 0..1.
        method: a key of `METHODS`.

    Returns:
        (H, W) in the inputs' dtype, values in 0..1.

    Raises:
        UserError: no such method.
        TypeError, ValueError: not two finite gray images of one shape with values in 0..1.
    """
    if method not in METHODS:
        raise UserError(f"method {method!r} is unknown; choose from {', '.join(METHODS)}")
    return METHODS[method](a, b)
