"""How large a network the planner may choose: nnU-Net v2's presets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

__all__ = ["BUDGETS", "Budget", "BudgetName"]

BudgetName = Literal["default", "resenc_m", "resenc_l", "resenc_xl"]
MAX_STAGES = 13


@dataclass(frozen=True)
class Budget:
    """A memory budget and the U-Net that it is counted on (nnU-Net v2; Isensee et al., arXiv 2404.09556, section 3).

    Memory is counted in voxels of convolution outputs times channels, see `memory.count_activations`; nothing is
    measured.

    Args:
        residual: count nnU-Net's residual encoder U-Net instead of its plain one.
        activations_3d: allowed count for 3D patches at the reference batch size of 2.
        activations_2d: the same for 2D patches at the reference batch size of 12.
        vram_gb: GPU memory that these counts stand for; another target scales them in proportion.
        dataset_share: a batch may cover at most this share of the dataset's voxels.
        full_batch_2d: shrink a 2D patch until the whole reference batch fits, not only two patches.
    """

    residual: bool
    activations_3d: float
    activations_2d: float
    vram_gb: float
    dataset_share: float
    full_batch_2d: bool

    @property
    def network(self) -> str:
        """Name of the counted network in nnU-Net."""
        return "ResidualEncoderUNet" if self.residual else "PlainConvUNet"

    def blocks(self, n_stages: int) -> tuple[int, ...]:
        """Convolutions (plain) or residual blocks per encoder stage."""
        return ((1, 3, 4) + (6,) * MAX_STAGES)[:n_stages] if self.residual else (2,) * n_stages

    def decoder_blocks(self, n_stages: int) -> tuple[int, ...]:
        """Convolutions per decoder level."""
        return (1 if self.residual else 2,) * (n_stages - 1)

    def scaled(self, vram_gb: float | None) -> Budget:
        """The same budget for another amount of GPU memory; None leaves it as it is."""
        if vram_gb is None:
            return self
        factor = vram_gb / self.vram_gb
        return replace(
            self,
            activations_3d=self.activations_3d * factor,
            activations_2d=self.activations_2d * factor,
            vram_gb=vram_gb,
        )


BUDGETS: dict[BudgetName, Budget] = {
    "default": Budget(False, 560e6, 85e6, 8.0, 0.05, False),
    "resenc_m": Budget(True, 680e6, 135e6, 8.0, 1.0, True),
    "resenc_l": Budget(True, 2100e6, 380e6, 24.0, 1.0, True),
    "resenc_xl": Budget(True, 3600e6, 560e6, 40.0, 1.0, True),
}
