"""Settings of the fusion recipe: standard library only, so that a command line can read them at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["GradientForm", "IntensityTarget", "LossConfig", "StructureForm"]

IntensityTarget = Literal["max", "mean"]
GradientForm = Literal["magnitude", "vector"]
StructureForm = Literal["ssim", "published"]


@dataclass(frozen=True)
class LossConfig:
    """What the fused image should keep; see `ssmvision.recipes.fusion.losses` for formulas and sources.

    Args:
        structure: weight of the structural term.
        intensity: weight of the intensity term.
        gradient: weight of the gradient term.
        intensity_target: "max", the brighter pixel; or "mean".
        gradient_form: "magnitude", how strong edges are (published); or "vector", also their direction and sign.
        structure_form: "ssim"; or "published", the multi-scale form of FusionMamba's code.
        clamp: cut the fused image to [0, 1] first (published): where it is outside there is then no gradient.
        data_range: distance of white from black in the structural term; null guesses it as the published code does.
    """

    structure: float = 1.0
    intensity: float = 1.0
    gradient: float = 1.0
    intensity_target: IntensityTarget = "mean"
    gradient_form: GradientForm = "vector"
    structure_form: StructureForm = "ssim"
    clamp: bool = False
    data_range: float | None = 1.0

    @classmethod
    def published(cls) -> LossConfig:
        """FusionMamba's training code, weights for CT-MRI; its author took structure=1 for M3FD (infrared-visible)."""
        return cls(10.0, 10.0, 1.0, "max", "magnitude", "published", True, None)
