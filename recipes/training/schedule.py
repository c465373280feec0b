"""A schedule that is a function of the step alone: a resumed run takes its length from the settings."""

from __future__ import annotations

import math

__all__ = ["warmup_cosine"]


def warmup_cosine(step: int, warm: int, steps: int) -> float:
    """Share of the largest learning rate at a step: linear to 1 over `warm` steps, then half a cosine to 0.

    Args:
        step: from 0.
        warm: at most half of all steps are taken.
        steps: in all.
    """
    warm = min(warm, steps // 2)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, steps - warm))))
