"""Chooses the intensity scale of each channel by its name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

__all__ = ["SCHEMES", "Scheme", "mask_for_norm", "scheme_of"]

Scheme = Literal["ct", "zscore", "none", "rescale_to_0_1", "rgb_to_0_1"]
SCHEMES: tuple[Scheme, ...] = ("ct", "zscore", "none", "rescale_to_0_1", "rgb_to_0_1")
_BY_NAME: dict[str, Scheme] = {
    "ct": "ct",
    "nonorm": "none",
    "zscore": "zscore",
    "rescale_to_0_1": "rescale_to_0_1",
    "rgb_to_0_1": "rgb_to_0_1",
}
# Below this share of voxels left by cropping to the non-zero part, the zeros around it would rule mean and deviation.
MASK_BELOW = 0.75


def scheme_of(channel: str) -> Scheme:
    """The scale of a channel: by its name where that is a scheme of nnU-Net v2 (case does not matter), else z-score."""
    return _BY_NAME.get(channel.casefold(), "zscore")


def mask_for_norm(schemes: Sequence[Scheme], size_after_cropping: float) -> tuple[bool, ...]:
    """Per channel, whether mean and deviation are taken inside the non-zero part only; only z-scores can be.

    Args:
        schemes: per channel.
        size_after_cropping: median share of a case's voxels that cropping to the non-zero part leaves.
    """
    return tuple(scheme == "zscore" and size_after_cropping < MASK_BELOW for scheme in schemes)
