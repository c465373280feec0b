"""Entropy and mutual information from histograms of 256 gray levels."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ssmvision.metrics.fusion.images import OverSources, gray_images, over_sources, per_image

__all__ = ["LEVELS", "entropy", "mutual_information", "normalized_mutual_information"]

LEVELS = 256


def entropy(fused: Tensor, *, data_range: float | None = None) -> Tensor:
    """EN: Shannon entropy of the fused image in bits, from 256 bins after rounding to 8 bits; 0 for a constant image.

    Agrees with CDDFuse's evaluator and, on 8-bit images, with scikit-image's `shannon_entropy`.

    Args:
        fused: (H, W) or (B, 1, H, W).
        data_range: value that stands for white; None takes the range of uint8 or uint16.

    Raises:
        TypeError, ValueError: see `ssmvision.metrics.fusion.images.gray_images`.
    """
    (image,) = gray_images(data_range, fused=fused)
    return per_image(_bits(_histogram(_levels(image), LEVELS)), fused)


def mutual_information(
    a: Tensor, b: Tensor, fused: Tensor, *, data_range: float | None = None, unit: Literal["bits", "nats"] = "bits"
) -> Tensor:
    """MI: I(A; F) + I(B; F) from joint histograms of 256 x 256 bins after rounding to 8 bits (Qu et al. 2002).

    MATLAB's fusion tool boxes report bits, CDDFuse's evaluator nats (a factor of ln 2 = 0.693 less). A constant image
    shares no information: 0.

    Args:
        a, b, fused: (H, W) or (B, 1, H, W), all of one shape.
        data_range: value that stands for white; None takes the range of uint8 or uint16.
        unit: "bits" or "nats".

    Raises:
        TypeError, ValueError: see `ssmvision.metrics.fusion.images.gray_images`; or an unknown unit.
    """
    if unit not in ("bits", "nats"):
        raise ValueError(f"unit is {unit!r}; expected 'bits' or 'nats'")
    gray = gray_images(data_range, a=a, b=b, fused=fused)
    shared = torch.zeros((), dtype=torch.float64, device=gray[0].device)
    for source in gray[:2]:
        of_source, of_fused, joint = _entropies(source, gray[2])
        shared = shared + (of_source + of_fused - joint).clamp(min=0)
    return per_image(shared * (math.log(2) if unit == "nats" else 1.0), fused)


def normalized_mutual_information(
    a: Tensor, b: Tensor, fused: Tensor, *, data_range: float | None = None, reduction: OverSources = "sum"
) -> Tensor:
    """Studholme's (H(S) + H(F)) / H(S, F), 1..2 for each source S, from the histograms of `mutual_information`.

    The measure of registration software (scikit-image's `normalized_mutual_information` with 256 bins). Two constant
    images, of no entropy at all, count as 1.

    Args:
        a, b, fused: (H, W) or (B, 1, H, W), all of one shape.
        data_range: value that stands for white; None takes the range of uint8 or uint16.
        reduction: sum or mean over the two sources.

    Raises:
        TypeError, ValueError: see `ssmvision.metrics.fusion.images.gray_images`; or an unknown reduction.
    """
    gray = gray_images(data_range, a=a, b=b, fused=fused)
    ratios = []
    for source in gray[:2]:
        of_source, of_fused, joint = _entropies(source, gray[2])
        ratios.append(((of_source + of_fused) / joint.where(joint > 0, 1.0)).where(joint > 0, 1.0))
    return per_image(over_sources(ratios[0], ratios[1], reduction), fused)


def _entropies(source: Tensor, fused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Entropies (B,) in bits of a source, of the fused image and of their pairs of gray levels."""
    joint = _histogram(_levels(source) * LEVELS + _levels(fused), LEVELS * LEVELS)
    pairs = joint.unflatten(1, (LEVELS, LEVELS))
    return _bits(pairs.sum(2)), _bits(pairs.sum(1)), _bits(joint)


def _levels(image: Tensor) -> Tensor:
    return image.round().to(torch.int64).flatten(1)


def _histogram(values: Tensor, bins: int) -> Tensor:
    """Relative frequencies (B, bins) of integer values (B, N) in 0..bins - 1."""
    batch, count = values.shape
    offsets = torch.arange(batch, device=values.device).unsqueeze(1) * bins
    counts = torch.bincount((values + offsets).flatten(), minlength=batch * bins)
    return counts.view(batch, bins).double() / count


def _bits(frequencies: Tensor) -> Tensor:
    return 0.0 - torch.xlogy(frequencies, frequencies).sum(1) / math.log(2)  # 0.0, not -0.0, of a single level
