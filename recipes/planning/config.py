"""Settings of `ssmvision plan`: standard library only, so that a command line can read them at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ssmvision.recipes.planning.budgets import BudgetName

__all__ = ["NetworkName", "PlanConfig"]

NetworkName = Literal["UMambaBot", "UMambaEnc", "DynUNet", "SegResNet", "MedNeXt"]


@dataclass(frozen=True)
class PlanConfig:
    """Chooses voxel size, patch, batch and network of a segmentation from its data, by the rules of nnU-Net v2.

    Args:
        data: an nnU-Net raw or Decathlon dataset folder (holds dataset.json), or a MONAI datalist JSON file.
        out: plan file to write.
        budget: preset of nnU-Net: its default, or one of the residual encoder presets M, L and XL.
        vram: GPU memory in GB to plan for; null: the preset's own (8, 8, 24 and 40). nnU-Net's networks take about
            that much; it is counted, not measured, and U-Mamba's own layers come on top.
        network: that the plan is for, see `ModelConfig.name`.
        mixer: of that network, see `ModelConfig.mixer`; the others than U-Mamba have none.
        orientation: axis codes that cases are turned to before they are measured, as in training; null keeps the stored
            axes, which is nnU-Net's own way.
        spacing_mm: voxel edges (x, y, z) to resample to; null: by nnU-Net's rule.
        fingerprint: read the data's sizes and intensities from this file, written by `save_fingerprint` or by nnU-Net
            (dataset_fingerprint.json), instead of opening the images.
        save_fingerprint: also write them to this file.
        workers: processes that read cases; 0: one per CPU core, at most 8.
        overwrite: replace existing files.
    """

    data: Path
    out: Path = Path("plan.json")
    budget: BudgetName = "default"
    vram: float | None = None
    network: NetworkName = "UMambaBot"
    mixer: str = "mamba"
    orientation: str | None = "RAS"
    spacing_mm: tuple[float, ...] | None = None
    fingerprint: Path | None = None
    save_fingerprint: Path | None = None
    workers: int = 0
    overwrite: bool = False
