from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from ssmvision.errors import UserError
from ssmvision.recipes.preprocessing.case import OUTSIDE, Prepared, read_case
from ssmvision.recipes.preprocessing.locations import find_locations
from ssmvision.recipes.segmentation.augment import NnunetAugment, Spatial, transform_patch
from ssmvision.recipes.segmentation.config import AugmentConfig, DataConfig, TrainConfig, TrainerConfig
from ssmvision.recipes.segmentation.datalist import read_dataset
from ssmvision.recipes.segmentation.loading import choose_augment, loaders
from ssmvision.recipes.segmentation.patches import MemoryCase, MemoryCases, Patch, PatchDataset, Reader, Sampling, place
from ssmvision.recipes.segmentation.preprocessing import ChannelScale, Preprocessing
from ssmvision.recipes.training.sampler import EpochSampler
from tests.recipes.synthetic import nnunet_folder

HOW = Preprocessing("RAS", None, (ChannelScale("zscore"),))
SPACING = (1.0, 1.5, 2.0)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> MemoryCases:
    root = nnunet_folder(tmp_path_factory.mktemp("raw"), [(20, 18, 12), (18, 20, 14)])
    return MemoryCases(read_dataset(root).training, lambda case: read_case(HOW, case, ("MRI",), (0, 1)), keep=True)


def patches(cases: MemoryCases, size: tuple[int, ...], seed: int = 0, **augment: object) -> PatchDataset:
    config = TrainConfig(
        DataConfig(Path()),
        Path(),
        augment=AugmentConfig(**augment),  # type: ignore[arg-type]
        trainer=TrainerConfig(batch_size=3),
        patch_size=size,
    )
    found, sampling = choose_augment(config, HOW, SPACING[: len(size)])
    return PatchDataset(cases, sampling, found, size, seed)


@pytest.mark.parametrize("preset", ["light", "nnunet"])
@pytest.mark.parametrize("size", [(12, 10, 8), (32, 32, 32), (12, 10), (32, 32)])
def test_shapes_types_and_repeatability(cases: MemoryCases, size: tuple[int, ...], preset: str) -> None:
    light = {"rotate_degrees": 15.0, "probability": 0.9} if preset == "light" else {}
    first, second, other = (patches(cases, size, seed, preset=preset, **light) for seed in (0, 0, 1))
    ahead = first[5]  # items depend on their index alone, not on what was drawn before
    for i in range(5):
        assert set(second[i]) == {"image", "label", "spacing_mm"}
    for key, dtype in (("image", torch.float32), ("label", torch.int64)):
        assert ahead[key].shape == (1, *size)
        assert ahead[key].dtype == dtype
        assert type(ahead[key]) is torch.Tensor
        assert torch.equal(ahead[key], second[5][key])
    assert ahead["spacing_mm"].shape == (len(size),)
    assert not torch.equal(ahead["image"], other[5]["image"])
    assert set(ahead["label"].unique().tolist()) <= {0, 1}


@pytest.mark.parametrize("size", [(6, 6, 4), (6, 6)])
def test_foreground_patches_hold_foreground_and_stay_aligned(cases: MemoryCases, size: tuple[int, ...]) -> None:
    dataset = patches(cases, size, flip_axes=(), probability=0.0, foreground_fraction=1.0)
    for i in range(12):
        patch = dataset[i]
        assert patch["label"].any()
        inside, outside = patch["image"][patch["label"] == 1], patch["image"][patch["label"] == 0]
        if len(outside):  # the ball is brighter by ten standard deviations of the noise
            assert inside.min() > outside.max()


def one_case(label: np.ndarray, classes: int) -> MemoryCase:
    image = np.arange(label.size, dtype=np.float32).reshape(1, *label.shape)
    return MemoryCase(Prepared(image, label.astype(np.int16), (1.0, 1.0, 1.0), find_locations(label, classes)))


class Untouched:
    """No augmentation."""

    def __init__(self, *read_size: int) -> None:
        self.read_size = read_size

    def __call__(self, read: Callable[[tuple[int, ...]], Patch], generator: np.random.Generator) -> Patch:
        return read((5, 5, 3))


def test_the_last_third_of_a_batch_is_centred_on_classes_in_equal_shares() -> None:
    label = np.zeros((24, 20, 10), np.int16)
    label[12, 10, 5], label[4:9, 4:16, 2:8] = 2, 1
    dataset = PatchDataset([one_case(label, 4)], Sampling(2, 0.33, True, True), Untouched(9, 9, 3), (5, 5, 3), 0)  # type: ignore[list-item]
    centres = [int(dataset[i]["label"][0, 2, 2, 1]) for i in range(200)]
    assert 0 in centres[::2]
    # Class 2 has one voxel and class 1 has 360: each is every second centre; class 3 is in no case.
    assert set(centres[1::2]) == {1, 2}
    assert 35 <= centres[1::2].count(2) <= 65
    assert [Sampling(b, 0.33, True, True).forced(i, np.random.default_rng(0)) for b in (2, 9) for i in range(b)] == [
        *(False, True),
        *([False] * 6 + [True] * 3),
    ]


def test_places_stay_in_reach_and_far_voxels_are_clamped() -> None:
    generator = np.random.default_rng(0)
    empty = find_locations(np.zeros((20, 6, 10)), 2)
    starts = {place(empty, (20, 6, 10), (12, 8, 4), (8, 8, 4), False, generator) for _ in range(500)}
    x, y, z = (sorted(set(axis)) for axis in zip(*starts, strict=True))
    # Along x the box may reach out by half of 12 - 8, along y the case is smaller than the patch.
    assert (x[0], x[-1], y, z[0], z[-1]) == (-2, 10, [-1], 0, 6)
    corner = np.zeros((20, 6, 10))
    corner[19, 5, 9] = 1
    assert place(find_locations(corner, 2), (20, 6, 10), (12, 8, 4), (8, 8, 4), True, generator) == (10, -1, 6)


def test_locations_are_enough_and_the_same_every_time() -> None:
    label = np.ones((120, 120, 100), np.int16)
    label[:2] = 2
    found = find_locations(label, 4)
    assert [found.count(i) for i in (1, 2, 3)] == [14160, 10000, 0]
    assert found.present == [1, 2]
    assert np.array_equal(found.voxels, find_locations(label, 4).voxels)
    assert {int(label.reshape(-1)[found.voxel(2, i)]) for i in range(0, 10000, 97)} == {2}


def test_turns_and_zooms_move_image_and_label_alike() -> None:
    label = torch.zeros(17, 17, 9, dtype=torch.int16)
    label[4:8, 6:9, 3:6], label[10:13, 5:12, 2:7] = 1, 2
    patch = Patch(torch.stack([(label == i).float() for i in (1, 2)]), label)
    quarter = transform_patch(patch, Spatial((0.0, 0.0, np.pi / 2), (1.0, 1.0, 1.0)), (17, 17, 9))
    assert torch.equal(quarter.label, torch.rot90(label, -1, (0, 1)))
    torch.testing.assert_close(quarter.image, torch.rot90(patch.image, -1, (1, 2)), atol=1e-4, rtol=0)
    any_way = transform_patch(patch, Spatial((0.3, -0.2, 0.5), (0.8, 0.8, 0.8)), (9, 11, 7))
    for i in (1, 2):
        assert torch.equal(any_way.label == i, any_way.image[i - 1] >= 0.5)
    still = transform_patch(patch, Spatial((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), (9, 9, 9))
    assert torch.equal(still.label, label[4:13, 4:13])


def test_nnunets_rules_for_flat_patches_and_masked_channels() -> None:
    assert NnunetAugment((64, 64, 64), (1, 1, 1)).read_size == (102, 102, 102)
    flat = NnunetAugment((96, 80, 16), (1, 1, 5))
    assert (flat.flat, flat.degrees, flat.read_size) == (2, 180.0, (112, 112, 16))
    generator = np.random.default_rng(1)
    drawn = [flat.draw_spatial(generator) for _ in range(400)]
    changed = [how for how in drawn if how is not None]
    assert 400 * 0.28 < len(changed) < 400 * 0.44  # 1 - 0.8^2 = 0.36
    assert all(how.angles[:2] == (0.0, 0.0) and how.scales[2] == 1.0 for how in changed)
    assert [NnunetAugment(size, (1, 1, 1)).degrees for size in ((64, 64), (64, 32))] == [180.0, 15.0]

    label = torch.zeros(8, 8, 8, dtype=torch.int16)
    label[:, :3] = OUTSIDE
    augment = NnunetAugment((8, 8, 8), (1, 1, 1), (), masked=[1])
    for seed in range(6):
        found = augment(lambda size: Patch(torch.ones(2, *size), label[: size[0]]), np.random.default_rng(seed + 2))
        if found.label.shape == label.shape and torch.equal(found.label, label):
            assert not found.image[1][label == OUTSIDE].any()
            assert found.image[0].all()


def test_intensity_changes_come_as_often_as_they_should() -> None:
    augment = NnunetAugment((6, 6, 6), (1, 1, 1))
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 6, 6, 6)).astype(np.float32))
    same = sum(torch.equal(augment.intensities(image, np.random.default_rng(i)), image) for i in range(300))
    # Nothing of noise, blur, brightness, contrast, low resolution and the two gammas.
    expected = 0.9 * (1 - 0.2 * 0.5) * 0.85**2 * (1 - 0.25 * 0.5) * 0.9 * 0.7
    assert abs(same / 300 - expected) < 0.09


def test_settings_of_the_other_preset_are_refused(cases: MemoryCases) -> None:
    with pytest.raises(UserError, match=r"augment\.noise_std: 0\.5 is for augment\.preset=light"):
        patches(cases, (6, 6, 4), preset="nnunet", noise_std=0.5)


def test_patches_do_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    data = nnunet_folder(tmp_path / "raw", [(12, 10, 8)] * 2)
    found = []
    for workers in (0, 2):
        config = TrainConfig(
            DataConfig(data, cache_dir=tmp_path / "cache", num_workers=workers),
            tmp_path / "run",
            augment=AugmentConfig("nnunet"),
            trainer=TrainerConfig(steps_per_epoch=3),
            patch_size=(8, 8, 8),
        )
        train, validation = loaders(config, read_dataset(data), HOW, SPACING, lambda: 0)
        found.append(list(train))
    assert validation is None
    assert len(found[0]) == 3
    for one, two in zip(*found, strict=True):
        assert all(torch.equal(one[key], two[key]) for key in one)
    assert isinstance(train, DataLoader)


def test_every_case_is_seen_equally_often_in_rounds() -> None:
    label = np.zeros((6, 6, 4), np.int16)
    seen: list[int] = []

    class Spy(list[Reader]):
        def __getitem__(self, index):  # type: ignore[no-untyped-def]
            seen.append(index)
            return super().__getitem__(index)

    dataset = PatchDataset(
        Spy([one_case(label, 2)] * 2), Sampling(2, 1.0, False, False), Untouched(5, 5, 3), (5, 5, 3), 0
    )  # type: ignore[list-item]
    for i in range(8):
        dataset[i]
    assert np.bincount(seen).tolist() == [4, 4]


def test_sampler_moves_on_with_the_epoch() -> None:
    epochs = iter([0, 2])
    sampler = EpochSampler(3, lambda: next(epochs))
    assert (list(sampler), list(sampler)) == ([0, 1, 2], [6, 7, 8])
