"""What is done to the cases of a training: from its plan where it has one, else from its settings and the data."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from ssmvision.recipes.segmentation.config import TrainConfig
from ssmvision.recipes.segmentation.datalist import Dataset
from ssmvision.recipes.segmentation.planned import planned_preprocessing
from ssmvision.recipes.segmentation.preprocessing import Preprocessing, fit_preprocessing
from ssmvision.recipes.segmentation.volumes import read_grid

__all__ = ["decide_preprocessing"]


def decide_preprocessing(config: TrainConfig, dataset: Dataset) -> tuple[Preprocessing, tuple[float, ...]]:
    """Grid, intensity scales and rules.

    Args:
        config: of the training, its plan already applied (`planned.apply_plan`).
        dataset: with a plan, only headers are read, and only of 2D configurations; without one, every case is opened.

    Returns:
        The preprocessing, and the voxel size in mm per axis that the network will typically see.

    Raises:
        UserError: a case is unusable, or a setting or the plan does not fit the data.
    """
    wanted = config.data.resampling
    if config.plan is None:
        fitted, spacing = fit_preprocessing(config.data, dataset, len(config.patch_size))
        rules: Literal["linear", "nnunet"] = "linear" if wanted == "auto" else wanted
        return replace(fitted, rules=rules), spacing
    target = np.asarray(config.data.spacing_mm, dtype=np.float64).tolist()
    flat = len(target) == 2
    # Turning files of one slice could make the slice axis an in-plane one.
    pictures = flat and all(read_grid(case.images[0]).shape[2] == 1 for case in dataset.training)
    orientation = None if pictures else config.data.orientation
    edges = (*target, -1.0) if flat else tuple(target)
    how = Preprocessing(orientation, edges, (), "nnunet" if wanted == "auto" else wanted)
    return planned_preprocessing(config, dataset, how), tuple(target)
