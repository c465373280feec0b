from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ssmvision.errors import UserError
from ssmvision.recipes.planning import measure
from ssmvision.recipes.planning.fingerprint import Fingerprint
from ssmvision.recipes.planning.measure import CaseTask, measure_case, measure_dataset, pool_intensities
from ssmvision.recipes.segmentation.datalist import Case, read_dataset
from tests.recipes.synthetic import nnunet_folder, save

DRAWS = 1000


def make_case(folder: Path, image: np.ndarray, mask: np.ndarray, affine: np.ndarray) -> Case:
    return Case("a", (save(folder / "a_0000.nii.gz", image, affine),), save(folder / "a.nii.gz", mask, affine))


def task(case: Case, orientation: str | None = None, channels: tuple[str, ...] = ("MRI",)) -> CaseTask:
    return CaseTask(case, channels, (0, 1), orientation, DRAWS)


@pytest.fixture
def noise() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    image = np.zeros((12, 10, 8), np.float32)
    image[2:9, 1:9, 3:8] = rng.normal(100, 10, (7, 8, 5))
    mask = np.zeros(image.shape, np.uint8)
    mask[3:6, 2:7, 4:7] = 1
    return image, mask


def test_case_is_cropped_and_its_axes_are_z_y_x(tmp_path: Path, noise: tuple[np.ndarray, np.ndarray]) -> None:
    case = make_case(tmp_path, *noise, np.diag([0.5, 0.75, 3.0, 1.0]))
    found = measure_case(task(case))
    assert found.shape == (5, 8, 7)
    assert found.spacing == (3.0, 0.75, 0.5)
    assert found.share == pytest.approx(5 * 8 * 7 / (12 * 10 * 8))


def test_draws_are_those_of_nnunet(tmp_path: Path, noise: tuple[np.ndarray, np.ndarray]) -> None:
    image, mask = noise
    case = make_case(tmp_path, image, mask, np.eye(4))
    two = Case("a", (case.images[0], save(tmp_path / "a_0001.nii.gz", -2 * image, np.eye(4))), case.label)
    found = measure_case(task(two, channels=("T1", "T2")))
    voxels = image.T[mask.T > 0]
    generator = np.random.RandomState(1234)
    for channel, factor in enumerate((1, -2)):
        values, counts = np.unique(generator.choice(factor * voxels, DRAWS, replace=True), return_counts=True)
        np.testing.assert_array_equal(found.values[channel], values)
        np.testing.assert_array_equal(found.counts[channel], counts)


def test_draws_do_not_depend_on_how_many_are_made_at_once(
    tmp_path: Path, noise: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make_case(tmp_path, *noise, np.eye(4))
    whole = measure_case(task(case))
    monkeypatch.setattr(measure, "DRAWS_AT_ONCE", 77)
    np.testing.assert_array_equal(measure_case(task(case)).counts[0], whole.counts[0])


def test_turning_brings_differently_stored_copies_to_the_same_measure(
    tmp_path: Path, noise: tuple[np.ndarray, np.ndarray]
) -> None:
    image, mask = noise
    plain = make_case(tmp_path / "plain", image, mask, np.diag([0.5, 0.75, 3.0, 1.0]))
    # Stored as (z, x, -y).
    affine = np.array([[0, 0.5, 0, 0], [0, 0, -0.75, 9 * 0.75], [3.0, 0, 0, 0], [0, 0, 0, 1]])
    turned = make_case(
        tmp_path / "turned", *(np.ascontiguousarray(a.transpose(2, 0, 1)[:, :, ::-1]) for a in noise), affine
    )
    expected, found = (measure_case(task(case, "RAS")) for case in (plain, turned))
    assert found.shape == expected.shape
    assert found.spacing == pytest.approx(expected.spacing)
    np.testing.assert_array_equal(found.values[0], expected.values[0])
    np.testing.assert_array_equal(found.counts[0], expected.counts[0])
    assert measure_case(task(turned)).spacing == pytest.approx((0.75, 0.5, 3.0))


def test_pictures_get_the_spacing_that_makes_their_third_axis_lead(tmp_path: Path) -> None:
    picture = np.arange(1, 31, dtype=np.float32).reshape(6, 5)
    case = make_case(tmp_path, picture, np.ones((6, 5), np.uint8), np.eye(4))
    assert measure_case(task(case, "RAS")).spacing == (999.0, 1.0, 1.0)


def test_pooled_statistics_are_those_of_all_draws() -> None:
    rng = np.random.default_rng(1)
    drawn = [rng.integers(-50, 400, n).astype(np.float32) for n in (300, 10, 77)]
    split = [np.unique(values, return_counts=True) for values in drawn]
    pool = pool_intensities([v for v, _ in split], [c for _, c in split])
    values = np.concatenate(drawn).astype(np.float64)
    assert pool is not None
    assert (pool.min, pool.max) == (values.min(), values.max())
    assert pool.mean == pytest.approx(values.mean(), rel=1e-12)
    assert pool.std == pytest.approx(values.std(), rel=1e-12)
    found = [pool.percentile_00_5, pool.median, pool.percentile_99_5]
    assert found == pytest.approx(np.percentile(values, [0.5, 50, 99.5]).tolist(), rel=1e-12)
    assert pool_intensities([values[:0].astype(np.float32)], [np.zeros(0, np.int64)]) is None


def test_dataset_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "DRAWS", 30_000)
    dataset = read_dataset(nnunet_folder(tmp_path, [(10, 12, 8), (10, 12, 6), (12, 12, 8)], channels=2))
    seen: list[str] = []
    fingerprint = measure_dataset(dataset, "RAS", workers=1, done=seen.append)
    assert seen == ["case_0", "case_1", "case_2"]
    assert fingerprint.shapes_after_crop == ((8, 12, 10), (6, 12, 10), (8, 12, 12))
    assert fingerprint.median_relative_size_after_cropping == 1.0
    first, second = fingerprint.foreground_intensity_properties_per_channel
    assert 290 < first.mean < 310
    assert second.mean == pytest.approx(first.mean + 1, abs=2)
    assert Fingerprint.from_json(fingerprint.to_json()) == fingerprint


def test_a_bad_case_is_named_and_the_others_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "DRAWS", 1000)
    root = nnunet_folder(tmp_path, [(6, 6, 6)] * 3)
    save(root / "imagesTr" / "case_1_0000.nii.gz", np.zeros((6, 6, 6), np.float32))
    save(root / "labelsTr" / "case_2.nii.gz", np.full((6, 6, 6), 7, np.uint8))
    with pytest.raises(UserError, match=r"case_1_0000\.nii\.gz: every voxel is 0, .*\(and 1 more; `ssmvision check`"):
        measure_dataset(read_dataset(root), None, workers=1)
