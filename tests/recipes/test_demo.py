"""The demo: its data, its baseline, and the whole of it in small."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from importlib.resources import files
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml

from ssmvision.errors import UserError
from ssmvision.recipes.segmentation import demo_data
from ssmvision.recipes.segmentation.baselines import fit_oracle_thresholds
from ssmvision.recipes.segmentation.datalist import read_dataset
from ssmvision.recipes.segmentation.demo_config import CorruptionConfig, DemoConfig, SlabConfig
from ssmvision.recipes.segmentation.demo_data import (
    Anatomy,
    bias_field,
    corrupt,
    load_anatomy,
    split_slabs,
    write_dataset,
)

COARSE = SlabConfig(voxel_mm=4)


@pytest.fixture(scope="module")
def head() -> Anatomy:
    return load_anatomy(4)


@pytest.fixture(scope="module")
def template() -> nib.Nifti1Image:
    return nib.Nifti1Image.from_filename(demo_data._template_file("t1"))


def y_mm(slab: Anatomy) -> np.ndarray:
    return slab.affine[1, 3] + slab.affine[1, 1] * np.arange(slab.labels.shape[1])


def test_head_holds_three_classes_in_plausible_volumes(head: Anatomy) -> None:
    ml = np.bincount(head.labels.ravel()) * 4**3 / 1000
    assert len(ml) == 3
    assert 1000 < ml[1] < 1250, "grey matter, ml"
    assert 550 < ml[2] < 720, "white matter, ml"


@pytest.mark.parametrize("voxel_mm", [2, 3, 4])
def test_voxel_is_the_template_mean_around_its_world_coordinate(voxel_mm: int, template: nib.Nifti1Image) -> None:
    _, back = split_slabs(load_anatomy(voxel_mm), SlabConfig(voxel_mm=voxel_mm))
    index = np.array(back.t1.shape) // 2
    world = back.affine @ [*index, 1]
    centre = np.linalg.inv(template.affine) @ world
    offsets = np.arange(voxel_mm) - (voxel_mm - 1) / 2
    around = [tuple(np.rint(centre[:3] + d).astype(int)) for d in product(offsets, repeat=3)]
    np.testing.assert_allclose(centre[:3] + offsets[0], around[0], atol=1e-9)
    expected = np.mean([float(template.dataobj[i]) for i in around])
    assert back.t1[tuple(index)] == pytest.approx(expected, rel=1e-5)


def test_slabs_leave_a_gap_and_keep_the_full_width(head: Anatomy) -> None:
    front, back = split_slabs(head, COARSE)
    assert y_mm(front).min() >= COARSE.train_from_mm
    assert y_mm(back).max() <= COARSE.test_to_mm
    assert y_mm(front).min() - y_mm(back).max() > 4, "at least one voxel lies in neither"
    for slab in (front, back):
        assert (slab.labels.shape[0], slab.labels.shape[2]) == (head.labels.shape[0], head.labels.shape[2])


def test_a_hemisphere_split_would_leak_which_is_why_there_is_none(template: nib.Nifti1Image) -> None:
    t1 = np.asarray(template.dataobj)
    assert np.array_equal(t1, t1[::-1])
    assert not [name for name in SlabConfig.__dataclass_fields__ if "x" in name.split("_") or "left" in name]


def test_touching_or_empty_slabs_are_refused(head: Anatomy) -> None:
    with pytest.raises(UserError, match=r"train_from_mm: -24\.0.*move the cuts apart"):
        SlabConfig(train_from_mm=-24.0, test_to_mm=-24.0)
    with pytest.raises(ValueError, match=r"500.*the head spans y = -1\d\d to [78]\d mm"):
        split_slabs(head, SlabConfig(voxel_mm=4, train_from_mm=500.0))


def test_corruption_is_fixed_by_its_seed_and_differs_between_seeds(head: Anatomy) -> None:
    config = CorruptionConfig()
    first, again, other = (corrupt(head, config, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.allclose(first, other)
    assert first.dtype == np.float32
    assert first.min() >= 0


def test_no_corruption_leaves_the_image_alone(head: Anatomy) -> None:
    clean = corrupt(head, CorruptionConfig(bias_strength=0.0, noise_sd=0.0), np.random.default_rng(0))
    np.testing.assert_allclose(clean, head.t1, rtol=1e-6)


def test_bias_field_has_the_stated_peak_and_noise_the_stated_size(head: Anatomy) -> None:
    field = np.log(bias_field(head.t1.shape, 4.0, CorruptionConfig(bias_strength=0.6), np.random.default_rng(3)))
    assert np.abs(field).max() == pytest.approx(0.6, rel=1e-3)
    assert np.abs(np.diff(field, axis=0)).max() < 0.1, "smooth"
    noisy = corrupt(head, CorruptionConfig(bias_strength=0.0, noise_sd=20.0), np.random.default_rng(3))
    air = noisy[head.t1 == 0]
    assert air.mean() == pytest.approx(20 * np.sqrt(np.pi / 2), rel=0.02), "Rayleigh, the Rician of no signal"


def test_dataset_is_readable_and_on_the_grids_of_its_slabs(tmp_path: Path, head: Anatomy) -> None:
    made = write_dataset(tmp_path / "raw", COARSE, CorruptionConfig(), train_copies=2, seed=5)
    dataset = read_dataset(made.root)
    assert sorted(case.id for case in dataset.training) == sorted([*made.train, made.validation])
    assert dataset.labels == demo_data.LABELS
    front, back = split_slabs(head, COARSE)
    for folder, case, slab in (("Tr", made.train[0], front), ("Ts", made.test, back)):
        image = nib.Nifti1Image.from_filename(made.root / f"images{folder}" / f"{case}_0000.nii.gz")
        labels = nib.Nifti1Image.from_filename(made.root / f"labels{folder}" / f"{case}.nii.gz")
        assert np.array_equal(np.asarray(labels.dataobj), slab.labels)
        for file in (image, labels):
            np.testing.assert_allclose(file.affine, slab.affine, atol=1e-6)
            np.testing.assert_allclose(file.get_qform(), slab.affine, atol=1e-4)


def test_more_copies_do_not_change_the_test_image(tmp_path: Path) -> None:
    images = []
    for copies in (1, 3):
        made = write_dataset(tmp_path / str(copies), COARSE, CorruptionConfig(), copies, seed=5)
        images.append(np.asarray(nib.Nifti1Image.from_filename(made.root / "imagesTs" / "back_0000.nii.gz").dataobj))
    assert np.array_equal(*images)


def test_a_changed_template_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(demo_data.SHA256, "t1", "0" * 64)
    with pytest.raises(UserError, match=r"t1.*\.nii\.gz: SHA-256 is 421a10e8.*expected 0000.*reinstall it"):
        load_anatomy(4)


def test_missing_nilearn_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_data.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'ssmvision\[demo\]'"):
        load_anatomy(4)


def test_oracle_thresholds_match_brute_force() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 400).astype(np.uint8)
    image = (labels + rng.normal(0, 0.6, 400)).astype(np.float32)
    oracle = fit_oracle_thresholds(image, labels, n_bins=40)

    def mean_dice(found: np.ndarray) -> float:
        pairs = [((found == k) & (labels == k), (found == k).sum() + (labels == k).sum()) for k in (1, 2)]
        return float(np.mean([2 * both.sum() / size for both, size in pairs]))

    edges = np.linspace(image.min(), image.max(), 41)
    best = max(mean_dice(np.digitize(image, (a, b))) for i, a in enumerate(edges) for b in edges[i:])
    assert oracle.dice == pytest.approx(best, abs=5e-3)
    assert mean_dice(oracle(image)) == pytest.approx(oracle.dice, abs=5e-3)


def test_oracle_separates_what_is_separable() -> None:
    image = np.repeat(np.array([10, 100, 200], dtype=np.float32), 50).reshape(3, 5, 10)
    labels = np.repeat(np.arange(3, dtype=np.uint8), 50).reshape(3, 5, 10)
    oracle = fit_oracle_thresholds(image, labels)
    assert oracle.dice == 1.0
    assert np.array_equal(oracle(image), labels)


@pytest.mark.parametrize(
    ("image", "labels", "message"),
    [
        (np.zeros((2, 3)), np.zeros((3, 2), int), "one shape"),
        (np.arange(3.0), np.array([0, 1, 1]), "classes 0, 1 and 2"),
        (np.ones(3), np.arange(3), "not constant"),
        (np.array([0, np.nan, 1]), np.arange(3), "finite"),
    ],
)
def test_oracle_refuses_what_it_cannot_fit(image: np.ndarray, labels: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_oracle_thresholds(image.astype(np.float32), labels)


@pytest.mark.parametrize(
    ("setting", "value"), [("epochs", 0), ("seed", -1), ("max_minutes", 0.0), ("threads", 0), ("train_copies", 0)]
)
def test_impossible_settings_are_named(setting: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"{setting}: {value}"):
        DemoConfig(**{setting: value})


def test_shipped_configuration_is_the_defaults_written_out() -> None:
    shipped = yaml.safe_load(files("ssmvision.configs").joinpath("segmentation/demo.yaml").read_text(encoding="utf-8"))
    defaults = json.loads(json.dumps(asdict(DemoConfig()), default=str))
    del defaults["overwrite"]
    assert shipped == defaults


def test_reported_command_gives_the_same_settings() -> None:
    from ssmvision.recipes.segmentation.demo_report import demo_command

    config = DemoConfig(out=Path("my demo"), twin=True, features=(4, 8), slabs=COARSE)
    assert demo_command(config) == ("ssmvision demo --out 'my demo' --twin true --slabs.voxel_mm 4 --features '[4, 8]'")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> DemoConfig:
    return DemoConfig(
        out=tmp_path_factory.mktemp("demo") / "run",
        twin=True,
        slabs=COARSE,
        train_copies=1,
        patch_size=(16, 16, 16),
        features=(4, 8),
        epochs=1,
        steps_per_epoch=2,
        threads=1,
    )


def test_whole_demo_in_small(small: DemoConfig, capsys: pytest.CaptureFixture[str]) -> None:
    from ssmvision.recipes.segmentation.demo import run
    from ssmvision.recipes.segmentation.demo_report import FIGURES, ORACLE, TWIN, UMAMBA

    result = run(small)
    assert set(result.evaluations) == {UMAMBA, TWIN, ORACLE}
    assert result.finished
    scores = json.loads((result.out / "scores.json").read_text())
    assert scores["margin"] == pytest.approx(result.margin)
    assert scores["methods"][ORACLE]["mean"]["dice"] == pytest.approx(scores["oracle_thresholds"]["dice"], abs=0.01)
    reference = nib.Nifti1Image.from_filename(result.out / "data/Dataset001_MNI152Slabs/labelsTs/back.nii.gz")
    for folder in ("u-mamba", "twin-without-ssm", "oracle-thresholds"):
        prediction = nib.Nifti1Image.from_filename(result.out / "predictions" / folder / "back.nii.gz")
        assert prediction.shape == reference.shape
        np.testing.assert_array_equal(prediction.affine, reference.affine)
    html = result.report.read_text()
    for text in ("simulated artefacts", "not clinical generalisation", "not a medical device", "one seed, one slab"):
        assert text in html
    assert str(result.out.parent) not in html, "paths name people and places"
    assert {path.stem for path in (result.out / "figures").iterdir()} == set(FIGURES)
    assert "Oracle thresholds" in capsys.readouterr().out

    with pytest.raises(UserError, match=r"holds a demo .*--overwrite"):
        run(small)
    kept = [result.out / "notes.txt", result.out / "data" / "scan.nii.gz"]
    for file in kept:
        file.write_text("mine")
    again = run(replace(small, overwrite=True, twin=False))
    assert [file.read_text() for file in kept] == ["mine", "mine"], "only the demo's own files are replaced"
    assert not (result.out / "models" / "twin-without-ssm").exists(), "nothing of the earlier run is left"
    assert again.evaluations[UMAMBA].scores == result.evaluations[UMAMBA].scores, "same seed, same result"
    assert TWIN not in again.evaluations
    assert "What its state-space layer adds is not tested here" in again.report.read_text()
