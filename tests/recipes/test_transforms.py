from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms import Compose

from ssmvision.recipes.segmentation.config import AugmentConfig
from ssmvision.recipes.segmentation.datalist import Case, read_dataset
from ssmvision.recipes.segmentation.preprocessing import ChannelScale, Preprocessing
from ssmvision.recipes.segmentation.slices import SlicePatch
from ssmvision.recipes.segmentation.transforms import (
    CaseDataset,
    EpochSampler,
    PatchDataset,
    ReadCase,
    patch_transforms,
    prepare_transforms,
)
from tests.recipes.synthetic import nnunet_folder

HOW = Preprocessing("RAS", None, (ChannelScale("zscore"),))
STILL = AugmentConfig(flip_axes=(), probability=0.0, foreground_fraction=1.0)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nnunet_folder(tmp_path_factory.mktemp("raw"), [(20, 18, 12), (18, 20, 14)])


def patches(root: Path, config: AugmentConfig, size: tuple[int, ...], seed: int = 0) -> PatchDataset:
    read = ReadCase(HOW, ("MRI",), (0, 1))
    cases = CaseDataset(read_dataset(root).training, prepare_transforms(read, size, 2), cache=True)
    augment = SlicePatch(config, size) if len(size) == 2 else patch_transforms(config, size, 2, (1, 1.5, 2))
    return PatchDataset(cases, augment, seed)


@pytest.mark.parametrize("size", [(12, 10, 8), (32, 32, 32), (12, 10), (32, 32)])
def test_shapes_types_and_repeatability(root: Path, size: tuple[int, ...]) -> None:
    config = AugmentConfig(rotate_degrees=15, probability=0.9)
    first, second, other = (patches(root, config, size, seed) for seed in (0, 0, 1))
    ahead = first[5]  # items depend on their index alone, not on what was drawn before
    for i in range(5):
        assert set(second[i]) == {"image", "label", "spacing_mm"}
    for key, dtype in (("image", torch.float32), ("label", torch.int64)):
        assert ahead[key].shape == (1, *size)
        assert ahead[key].dtype == dtype
        assert type(ahead[key]) is torch.Tensor
        assert torch.equal(ahead[key], second[5][key])
    assert not torch.equal(ahead["image"], other[5]["image"])
    assert set(ahead["label"].unique().tolist()) <= {0, 1}


@pytest.mark.parametrize("size", [(6, 6, 4), (6, 6)])
def test_foreground_patches_hold_foreground_and_stay_aligned(root: Path, size: tuple[int, ...]) -> None:
    dataset = patches(root, STILL, size)
    for i in range(12):
        patch = dataset[i]
        assert patch["label"].any()
        inside, outside = patch["image"][patch["label"] == 1], patch["image"][patch["label"] == 0]
        if len(outside):  # the ball is brighter by ten standard deviations of the noise
            assert inside.min() > outside.max()


@pytest.mark.parametrize("fraction", [0.0, 1.0])
@pytest.mark.parametrize("only", [0, 1])
@pytest.mark.parametrize("size", [(6, 6, 4), (6, 6)])
def test_cases_of_one_class_alone(root: Path, fraction: float, only: int, size: tuple[int, ...]) -> None:
    dataset = patches(root, AugmentConfig(foreground_fraction=fraction), size)
    read = dataset.cases.prepare.transforms[0]

    def uniform(case: Case) -> dict[str, Any]:
        data = read(case)
        return data | {"label": data["label"] * 0 + only}

    dataset.cases.prepare = Compose([uniform, *dataset.cases.prepare.transforms[1:]])
    assert dataset[0]["label"].unique().tolist() == [only]


def test_every_case_is_seen_equally_often(root: Path) -> None:
    dataset = patches(root, STILL, (6, 6, 4))
    seen: list[int] = []
    original = dataset.cases
    dataset.cases = type(
        "Spy", (), {"__len__": lambda s: 2, "__getitem__": lambda s, i: seen.append(i) or original[i]}
    )()
    for i in range(8):
        dataset[i]
    assert np.bincount(seen).tolist() == [4, 4]


def test_sampler_moves_on_with_the_epoch() -> None:
    epochs = iter([0, 2])
    sampler = EpochSampler(3, lambda: next(epochs))
    assert (list(sampler), list(sampler)) == ([0, 1, 2], [6, 7, 8])
