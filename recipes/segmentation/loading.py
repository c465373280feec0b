"""Loaders of a training: patches for the network to learn from, whole volumes to validate on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.data import DataLoader

from ssmvision.recipes.segmentation.batches import SharedCases, StepBatches
from ssmvision.recipes.segmentation.config import TrainConfig
from ssmvision.recipes.segmentation.datalist import Dataset
from ssmvision.recipes.segmentation.preprocessing import Preprocessing
from ssmvision.recipes.segmentation.transforms import (
    CaseDataset,
    PatchDataset,
    ReadCase,
    patch_transforms,
    prepare_transforms,
)

__all__ = ["loaders"]

# A worker that gives nothing for so long hangs.
HANG_SECONDS = 60.0


def loaders(
    config: TrainConfig,
    dataset: Dataset,
    preprocessing: Preprocessing,
    spacing: Sequence[float],
    position: Callable[[], int],
    rank: int = 0,
    ranks: int = 1,
) -> tuple[DataLoader[Any], DataLoader[Any] | None]:
    """Training patches, and whole validation volumes if there are any.

    Args:
        config: settings.
        dataset: the cases.
        preprocessing: of every case.
        spacing: voxel size of the preprocessed cases, mm.
        position: number of finished steps, see `batches.StepBatches`.
        rank, ranks: this process and the number of those that share the batches.
    """
    classes = len(dataset.labels)
    read = ReadCase(preprocessing, dataset.channels, list(dataset.labels.values()))
    prepared = CaseDataset(dataset.training, prepare_transforms(read, config.patch_size, classes), config.data.cache)
    if len(config.patch_size) == 2:
        from ssmvision.recipes.segmentation.slices import SlicePatch  # the only user of albumentations

        augment: Any = SlicePatch(config.augment, config.patch_size)
    else:
        augment = patch_transforms(config.augment, config.patch_size, classes, spacing)
    t, workers = config.trainer, config.data.num_workers or 0
    train: DataLoader[Any] = DataLoader(
        PatchDataset(prepared, augment, t.seed),
        batch_sampler=StepBatches(t.steps_per_epoch, t.batch_size, position, rank, ranks),
        num_workers=workers,
        persistent_workers=workers > 0,
        timeout=HANG_SECONDS if workers else 0,
    )
    if not dataset.validation:
        return train, None
    whole = CaseDataset(dataset.validation, read, config.data.cache)
    cases = SharedCases(len(dataset.validation), rank, ranks)
    return train, DataLoader(whole, batch_size=1, sampler=cases, collate_fn=single_case)


def single_case(batch: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch of one whole volume as plain tensors."""
    (case,) = batch
    return {
        "image": case["image"].as_tensor()[None].float(),
        "label": case["label"].as_tensor()[None],
        "spacing_mm": case["spacing_mm"][None],
        "case": case["case"],
    }
