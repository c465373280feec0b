"""FMI: mutual information of local features, with the joint distribution estimated from the marginals."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ssmvision.metrics.fusion.images import gray_images, per_image, require_side

__all__ = ["Feature", "feature_mutual_information"]

Feature = Literal["none", "gradient", "dct"]
_SIDE = 3
_CELLS = _SIDE * _SIDE
# Windows at a time: a joint distribution has 81 cells, so a temporary of this many stays in a CPU's cache.
_CHUNK = 4096


def feature_mutual_information(
    a: Tensor, b: Tensor, fused: Tensor, *, data_range: float | None = None, feature: Feature = "none"
) -> Tensor:
    """FMI: normalised mutual information of 3x3 windows of features, mean over windows and sources, about 0..1.

    Fast-FMI by Haghighat & Razian (2014): a window, stretched to 0..1 and divided by its sum, is taken as a
    distribution over its nine cells; the joint distribution is the mixture of independence and a Frechet bound that has
    the windows' correlation (Nelsen 1987); the value is 2 I / (H + H). Equal windows count as 1, windows of no entropy
    as 0. Agrees with the authors' MATLAB `fmi(a, b, f, feature, 3)`; that tool's default feature is `edge`, which is
    what some tables call FMI_pixel, and its wavelet feature is not offered here.

    Args:
        a, b, fused: (H, W) or (B, 1, H, W), all of one shape, at least 3x3 pixels.
        data_range: value that stands for white; None takes the range of uint8 or uint16.
        feature: "none" (gray values), "gradient" (horizontal central differences) or "dct" (the orthonormal DCT-II of
            the whole image).

    Raises:
        TypeError, ValueError: see `ssmvision.metrics.fusion.images.gray_images`; or a small image, an unknown feature.
    """
    if feature not in ("none", "gradient", "dct"):
        raise ValueError(f"feature is {feature!r}; expected 'none', 'gradient' or 'dct'")
    gray = gray_images(data_range, a=a, b=b, fused=fused)
    require_side(fused, _SIDE, "FMI")
    windows_a, windows_b, windows_fused = (_windows(_features(image, feature)) for image in gray)
    of_a, of_b = (_mean_information(windows, windows_fused) for windows in (windows_a, windows_b))
    return per_image((of_a + of_b) / 2, fused)


def _features(image: Tensor, feature: Feature) -> Tensor:
    if feature == "gradient":
        (across,) = torch.gradient(image, dim=-1)
        return across
    if feature == "dct":
        rows, columns = (_dct_matrix(n, image) for n in image.shape[-2:])
        return rows @ image @ columns.T
    return image


def _dct_matrix(size: int, like: Tensor) -> Tensor:
    """The orthonormal DCT-II (frequency, position)."""
    index = torch.arange(size, dtype=like.dtype, device=like.device)
    matrix = torch.cos(math.pi / size * index.unsqueeze(1) * (index + 0.5)) * math.sqrt(2 / size)
    matrix[0] = 1 / math.sqrt(size)
    return matrix


def _windows(features: Tensor) -> Tensor:
    """All 3x3 windows (B, N, 9), each in column order, on which the cumulative distributions depend."""
    return F.unfold(features.mT, _SIDE).mT


def _mean_information(source: Tensor, fused: Tensor) -> Tensor:
    """Mean (B,) over the windows (B, N, 9)."""
    batch, count, _ = source.shape
    pairs = zip(source.flatten(0, 1).split(_CHUNK), fused.flatten(0, 1).split(_CHUNK), strict=True)
    return torch.cat([_information(s, f) for s, f in pairs]).view(batch, count).mean(1)


def _information(source: Tensor, fused: Tensor) -> Tensor:
    """Normalised mutual information (N,) of windows (N, 9)."""
    p, q = _distribution(source), _distribution(fused)
    total = _entropy(p) + _entropy(q)
    shared = total - _entropy(_joint(p, q).flatten(1))
    value = (2 * shared / total.where(total > 0, 1.0)).where(total > 0, 0.0)
    return value.where((source != fused).any(1), 1.0)


def _distribution(window: Tensor) -> Tensor:
    """Windows (N, 9) from 0 at their minimum to 1 at their maximum, then of sum 1; a constant one is uniform."""
    low, high = window.aminmax(dim=1, keepdim=True)
    spread = high - low
    stretched = ((window - low) / spread.where(spread > 0, 1.0)).where(spread > 0, 1.0)
    return stretched / stretched.sum(1, keepdim=True)


def _entropy(p: Tensor) -> Tensor:
    """Entropy (N,) in nats of (N, cells); a mixture with weight above 1 has small negative cells, taken by size."""
    return -torch.xlogy(p, p.abs()).sum(1)


def _joint(p: Tensor, q: Tensor) -> Tensor:
    """Joint distributions (N, 9, 9) with the marginals p, q and their correlation."""
    cumulative_p, cumulative_q = p.cumsum(1).unsqueeze(2), q.cumsum(1).unsqueeze(1)
    correlation = _correlation(p, q)
    upper = torch.minimum(cumulative_p, cumulative_q)
    lower = (cumulative_p + cumulative_q - 1).clamp(min=0)
    bound = torch.where((correlation >= 0)[:, None, None], upper, lower)
    covariance = (bound - cumulative_p * cumulative_q).sum((1, 2))
    deviations = _deviation(p) * _deviation(q)
    # A bound without covariance (a marginal in one cell) is independence already.
    mixed = (correlation != 0) & (deviations > 0) & (covariance != 0)
    weight = (correlation * deviations / covariance.where(mixed, 1.0)).where(mixed, 0.0)[:, None, None]
    cells = F.pad(bound, (1, 0, 1, 0)).diff(dim=1).diff(dim=2)
    return weight * cells + (1 - weight) * p.unsqueeze(2) * q.unsqueeze(1)


def _correlation(p: Tensor, q: Tensor) -> Tensor:
    """Pearson correlation (N,) of the cells' probabilities; 0 where one distribution is uniform."""
    p, q = p - 1 / _CELLS, q - 1 / _CELLS
    norms = (p.square().sum(1) * q.square().sum(1)).sqrt()
    # Stretched windows that are not uniform have a cell of 0, so 1e-12 is rounding only.
    defined = norms > 1e-12
    return ((p * q).sum(1) / norms.where(defined, 1.0)).where(defined, 0.0)


def _deviation(p: Tensor) -> Tensor:
    """Standard deviation (N,) of a cell's number."""
    number = torch.arange(_CELLS, dtype=p.dtype, device=p.device)
    mean = p @ number
    return (p @ number.square() - mean.square()).clamp(min=0).sqrt()
