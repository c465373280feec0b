"""Settings of `ssmvision preprocess`: standard library only, so that a command line can read them at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["PreprocessConfig"]


@dataclass(frozen=True)
class PreprocessConfig:
    """Prepares the cases of a dataset once, as a plan has them, so that trainings start at once.

    Finished cases are kept: running the command again goes on where it stopped, and prepares anew only what changed.
    Train with `--plan PLAN --data.cache_dir OUT`.

    Args:
        data: an nnU-Net raw or Decathlon dataset folder (holds dataset.json), or a MONAI datalist JSON file.
        plan: plan file of `ssmvision plan`.
        out: folder of the cache; several datasets and plans may share one.
        configuration: of the plan, "3d_fullres", "3d_lowres" or "2d".
        workers: processes, each with one case in memory; 0: one per CPU core, at most 8.
    """

    data: Path
    plan: Path = Path("plan.json")
    out: Path = Path("preprocessed")
    configuration: str = "3d_fullres"
    workers: int = 0
