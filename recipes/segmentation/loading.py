"""Loaders of a training: patches for the network to learn from, whole volumes to validate on."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from ssmvision.errors import UserError
from ssmvision.recipes.preprocessing.case import read_case
from ssmvision.recipes.preprocessing.command import prepare_cases
from ssmvision.recipes.preprocessing.store import CaseStore
from ssmvision.recipes.segmentation.augment import NnunetAugment
from ssmvision.recipes.segmentation.batches import SharedCases, StepBatches
from ssmvision.recipes.segmentation.config import AugmentConfig, TrainConfig
from ssmvision.recipes.segmentation.datalist import Dataset
from ssmvision.recipes.segmentation.patches import Augment, MemoryCases, PatchDataset, Reader, Sampling, WholeCases
from ssmvision.recipes.segmentation.preprocessing import Preprocessing
from ssmvision.recipes.segmentation.stopping import outlive_signals
from ssmvision.recipes.segmentation.transforms import LightAugment

__all__ = ["CACHE", "cache_folder", "loaders"]

# Folder of the prepared cases within a run folder.
CACHE = "preprocessed"
MAX_WORKERS = 12
# A worker that gives nothing for so long hangs; with ending it, that takes less than a minute.
HANG_SECONDS = 50.0
# nnU-Net v2: this share of a batch, its last patches, is centred on foreground.
NNUNET_FOREGROUND = 0.33


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

    With a cache folder, cases that it lacks are prepared first.

    Args:
        config: of the training.
        dataset: its cases.
        preprocessing: what is done to each.
        spacing: voxel edges in mm that the network will typically see.
        position: number of finished steps, see `batches.StepBatches`.
        rank, ranks: this process and the number of those that share the batches.

    Raises:
        UserError: a case cannot be prepared, or settings contradict each other.
    """
    augment, sampling = choose_augment(config, preprocessing, spacing)
    training, validation = open_cases(config, dataset, preprocessing)
    t, workers = config.trainer, count_loader_workers(config)
    train: DataLoader[Any] = DataLoader(
        PatchDataset(training, sampling, augment, config.patch_size, t.seed),
        batch_sampler=StepBatches(t.steps_per_epoch, t.batch_size, position, rank, ranks),
        num_workers=workers,
        persistent_workers=workers > 0,
        timeout=HANG_SECONDS if workers else 0,
        worker_init_fn=outlive_signals,
    )
    if not dataset.validation:
        return train, None
    whole = WholeCases(validation, [case.id for case in dataset.validation])
    shared = SharedCases(len(dataset.validation), rank, ranks)
    return train, DataLoader(whole, batch_size=1, sampler=shared, collate_fn=single_case)


def cache_folder(config: TrainConfig) -> Path | None:
    """Where the prepared cases of a training are kept; None: nowhere."""
    if config.data.cache_dir is not None:
        return config.data.cache_dir
    return None if config.plan is None else config.out / CACHE


def open_cases(
    config: TrainConfig, dataset: Dataset, preprocessing: Preprocessing
) -> tuple[Sequence[Reader], Sequence[Reader]]:
    """Training and validation cases, from the cache, which is filled first, or prepared when they are asked for."""
    folder = cache_folder(config)
    if folder is not None:
        entries = prepare_cases(folder, preprocessing, dataset)
        stored = {case: CaseStore(cached.entry) for case, cached in entries.items()}
        return [stored[c.id] for c in dataset.training], [stored[c.id] for c in dataset.validation]
    read = partial(_read, preprocessing, dataset)
    training, validation = (MemoryCases(c, read, config.data.cache) for c in (dataset.training, dataset.validation))
    return training, validation


def _read(how: Preprocessing, dataset: Dataset, case: Any) -> Any:
    return read_case(how, case, dataset.channels, list(dataset.labels.values()))


def choose_augment(
    config: TrainConfig, preprocessing: Preprocessing, spacing: Sequence[float]
) -> tuple[Augment, Sampling]:
    """Augmentation and sampling by the settings' preset.

    Raises:
        UserError: a setting of the other preset was changed.
    """
    a, t = config.augment, config.trainer
    preset = a.preset if a.preset != "auto" else "light" if config.plan is None else "nnunet"
    if preset == "nnunet":
        for name in ("rotate_degrees", "noise_std", "scale", "gamma", "probability", "foreground_fraction"):
            if getattr(a, name) != getattr(AugmentConfig(), name):
                raise UserError(
                    f"augment.{name}: {getattr(a, name)} is for augment.preset=light, and the preset is nnunet; "
                    "leave it out, or set augment.preset to light"
                )
        masked = [i for i, scale in enumerate(preprocessing.scales) if scale.kind == "zscore_nonzero"]
        edges = (*spacing, *[1.0] * (3 - len(spacing)))
        augment: Augment = NnunetAugment(config.patch_size, edges, a.flip_axes, masked)
        return augment, Sampling(t.batch_size, NNUNET_FOREGROUND, by_place=True, by_chance=True)
    if len(config.patch_size) == 2:
        from ssmvision.recipes.segmentation.slices import SliceAugment  # the only user of albumentations

        augment = SliceAugment(a, config.patch_size)
    else:
        augment = LightAugment(a, config.patch_size, spacing)
    return augment, Sampling(t.batch_size, a.foreground_fraction, by_place=False, by_chance=False)


def count_loader_workers(config: TrainConfig) -> int:
    """Processes that load patches, see `DataConfig.num_workers`."""
    if config.data.num_workers is not None:
        return config.data.num_workers
    if cache_folder(config) is None:
        return 0  # every process would hold all cases
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max(cores // config.trainer.devices - 1, 0), MAX_WORKERS)


def single_case(batch: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch of one whole volume."""
    (case,) = batch
    return {key: value if key == "case" else value[None] for key, value in case.items()}
