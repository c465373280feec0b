"""What a classifier learns from: pictures and volumes of every layout, and what the network sees of them."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import cv2
import nibabel
import numpy as np
import pytest
import torch

from ssmvision.errors import UserError
from ssmvision.recipes.classification.config import (
    AugmentConfig,
    ClassifyTrainConfig,
    DataConfig,
)
from ssmvision.recipes.classification.data import (
    Scale,
    TrainingPictures,
    make_pipeline,
    measure_scale,
    open_data,
)
from ssmvision.recipes.classification.pictures import ArrayReader, Pictures
from ssmvision.recipes.classification.sources import open_sets
from tests.recipes.bars import bars, write_folder, write_medmnist, write_volume
from tests.recipes.dicom_files import Scanner, classic, save, slice_of

pytestmark = pytest.mark.usefixtures("one_thread")


def test_folders_of_pictures_and_slices(tmp_path: Path) -> None:
    write_folder(tmp_path, "train", 30, 0)
    write_folder(tmp_path, "test", 6, 1)
    sets = open_data(DataConfig(str(tmp_path), validation_fraction=0.2))
    assert sets.classes == ("a", "b", "c")
    assert sets.validation is not None
    assert sets.test is not None
    assert np.bincount(sets.training.labels).tolist() == [8, 8, 8]
    assert np.bincount(sets.validation.labels).tolist() == [2, 2, 2]
    assert set(sets.training.names).isdisjoint(sets.validation.names)
    for i, name in enumerate(sets.test.names):
        assert np.array_equal(sets.test.read(i), cv2.imread(str(tmp_path / name), cv2.IMREAD_UNCHANGED))

    values = np.arange(12, dtype=np.float32).reshape(4, 3, 1)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "train" / "a" / "z.nii.gz")
    first = open_sets(DataConfig(str(tmp_path))).training
    plane = first.read(list(first.names).index("train/a/z.nii.gz"))
    assert np.allclose(plane, np.flip(values[..., 0].T) / 11)  # the patient's left is on the right, the front above

    (tmp_path / "test" / "d").mkdir()
    with pytest.raises(UserError, match="no class of that name"):
        open_data(DataConfig(str(tmp_path)))


def test_slices_of_a_case_stay_together(tmp_path: Path) -> None:
    for label, name in enumerate("ab"):
        for i in range(3):
            write_volume(tmp_path / name / f"{i}.nii.gz", i, label)
        write_volume(tmp_path / name / "both" / "x.nii", 3, label, slices=2)
        values = np.moveaxis(write_volume(tmp_path / "twin.nii", 9, label), 0, -1).swapaxes(0, 1)
        scanner = Scanner(tags={"PatientID": f"P{label}"})
        classic(tmp_path / name / "scan", values.astype(np.int64), scanner)
        classic(tmp_path / name / "scan2", values[:, :, :1].astype(np.int64), replace(scanner, series=f"1.2.{label}"))
    config = DataConfig(str(tmp_path), validation_fraction=0.4, class_names=("one", "two"))
    sets = open_data(config)
    assert sets.validation is not None
    parts = (sets.training, sets.validation)
    assert sorted(len(part) for part in parts) != [0, 30]
    assert sum(len(part) for part in parts) == 30
    first, second = (set(part.cases or ()) for part in parts)
    assert first.isdisjoint(second)
    # Volumes of one folder name or patient are one case, whatever their class.
    assert {case for case in first | second if "/" not in case} == {"both", "patient P0", "patient P1"}
    every = open_data(replace(config, validation_fraction=0)).training
    twin = write_volume(tmp_path / "twin.nii", 9, 1)[::-1] / 1.0  # from the head on
    places = [i for i, name in enumerate(every.names) if name.startswith("b/scan slice")]
    found = np.stack([every.read(i) for i in places])
    assert np.allclose(found, (twin - twin.min()) / (twin.max() - twin.min()), atol=1e-6)
    for slices, names in ((2, ["1", "3"]), ("middle", ["2"])):
        some = open_data(replace(config, validation_fraction=0, slices=slices)).training  # type: ignore[arg-type]
        assert [name[-1] for name in some.names if name.startswith("a/0.nii.gz")] == names

    for part in ("train", "test"):
        classic(tmp_path / "parts" / part / "a" / "x", values.astype(np.int64), Scanner())
        classic(tmp_path / "parts" / part / "b" / "y", values.astype(np.int64), Scanner().with_tags(PatientID=part))
    with pytest.raises(UserError, match=r"the patient of test/a/x slice 1 .* is in the training part"):
        open_data(DataConfig(str(tmp_path / "parts")))


def test_radiographs_are_pictures(tmp_path: Path) -> None:
    pictures = bars(6, 5)[0].astype(np.int64)
    scanner = Scanner().with_tags(PhotometricInterpretation="MONOCHROME1", Modality="DX")
    for i, picture in enumerate(pictures):
        data = slice_of(scanner, picture, i, intercept=0)
        data.PatientID = f"P{i // 2}"
        for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
            delattr(data, name)
        save(tmp_path / "all" / "ab"[i % 2] / f"{i}.dcm", data)
        if i in (0, 1, 3, 4):  # of P0, P0, P1 and P2
            save(tmp_path / "parts" / ("train" if i < 2 else "test") / "ab"[i % 2] / f"{i}.dcm", data)
    assert open_data(DataConfig(str(tmp_path / "parts"), validation_fraction=0)).test is not None
    save(tmp_path / "parts" / "test" / "a" / "again.dcm", slice_of(Scanner().with_tags(PatientID="P0"), pictures[0], 0))
    with pytest.raises(UserError, match=r"the patient of test/a/again\.dcm .* is in the training part"):
        open_data(DataConfig(str(tmp_path / "parts"), validation_fraction=0))
    sets = open_data(DataConfig(str(tmp_path / "all"), validation_fraction=0, window=(0, 300)))
    assert sets.training.volumes is None
    assert sorted(sets.training.cases or ()) == [f"patient P{i // 2}" for i in range(6)]
    for i, name in enumerate(sets.training.names):
        assert np.allclose(sets.training.read(i), 1 - pictures[int(name[2])] / 300, atol=1e-6)


def test_mnist_files_of_torchvision(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, seed in (("train", 0), ("t10k", 1)):
        images, labels = bars(20, seed, size=28, kinds=10)
        for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            header = np.array([0x800 + array.ndim, *array.shape], dtype=">i4").tobytes()
            (raw / name).write_bytes(header + array.tobytes())
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(header + array.tobytes()))
    theirs = open_data(DataConfig(str(tmp_path), kind="torchvision", dataset="MNIST", validation_fraction=0))
    ours = open_data(DataConfig(str(tmp_path), validation_fraction=0))
    for one, other in ((theirs.training, ours.training), (theirs.test, ours.test)):
        assert one is not None
        assert other is not None
        assert np.array_equal(one.labels, other.labels)
        assert all(np.array_equal(one.read(i), other.read(i)) for i in range(20))
    with pytest.raises(UserError, match=r"no CIFAR10 as torchvision stores it"):
        open_data(DataConfig(str(tmp_path), kind="torchvision", dataset="CIFAR10"))


def test_unusable_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder"):
        open_data(DataConfig(str(tmp_path / "nowhere")))
    path = tmp_path / "x.npz"
    np.savez(path, train_images=np.zeros((4, 8, 8, 8), np.uint8), train_labels=np.zeros((4, 1)))
    with pytest.raises(UserError, match="expected 8-bit 2D pictures"):
        open_data(DataConfig(str(path)))
    np.savez(path, train_images=np.zeros((4, 8, 8), np.uint8), train_labels=np.zeros((4, 14)))
    with pytest.raises(UserError, match="expected one class"):
        open_data(DataConfig(str(path)))
    with pytest.raises(UserError, match="class_names: 2 names for the 3 classes"):
        open_data(DataConfig(str(write_medmnist(path)), class_names=("a", "b")))


# What the network sees


def test_pictures_are_fitted_coloured_and_scaled(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (40, 20, 3), dtype=np.uint8)
    scale = Scale((10, 10), (0.5,), (0.25,))
    gray = scale.coloured(picture)
    assert gray.shape == (40, 20, 1)
    fitted = scale.fitted(gray)
    assert np.allclose(fitted[..., 0], gray[10:30, :, 0].reshape(10, 2, 10, 2).mean((1, 3)), atol=0.51)
    assert Scale((10, 10), (0.5,), (0.25,), "squash").fitted(gray).shape == (10, 10, 1)
    assert torch.allclose(scale.normalised(torch.full((1, 2, 2), 255, dtype=torch.uint8)), torch.tensor(2.0))
    config = ClassifyTrainConfig(DataConfig(str(write_medmnist(tmp_path / "bars.npz"))), tmp_path)
    found = measure_scale(open_data(config.data).training, config)
    values = bars(60, 0)[0] / 255
    assert found.size == (12, 12)
    assert found.mean == pytest.approx((values.mean(),), abs=1e-5)
    assert found.std == pytest.approx((values.std(),), abs=1e-5)


@pytest.mark.parametrize("library", ["albumentations", "torchvision"])
def test_both_libraries_change_pictures_by_their_seed_alone(library: str) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    changes = {
        "crop_scale": 0.5,
        "shift": 2,
        "flip_axes": (0, 1),
        "rotate_degrees": 20,
        "brightness": 0.2,
        "erase": 0.5,
    }
    pipeline = make_pipeline(AugmentConfig(library, **changes), (12, 12))  # type: ignore[arg-type]
    state = torch.get_rng_state()
    draws = [pipeline(picture, seed=seed)["image"] for seed in (1, 2, 1)]
    assert torch.equal(state, torch.get_rng_state())
    assert draws[0].shape == (3, 12, 12)
    assert torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[1])
    flip = make_pipeline(AugmentConfig(library, flip_axes=(1,)), (16, 16))  # type: ignore[arg-type]
    seen = {flip(picture, seed=seed)["image"].numpy().tobytes() for seed in range(20)}
    plain = np.moveaxis(picture, -1, 0)
    assert seen == {np.ascontiguousarray(plain).tobytes(), np.ascontiguousarray(plain[..., ::-1]).tobytes()}


def test_every_picture_is_seen_once_an_epoch() -> None:
    images, labels = bars(12, 0)
    pictures = Pictures(ArrayReader(images), labels.astype(np.int64), [str(i) for i in range(12)])
    data = TrainingPictures(pictures, Scale((12, 12), (0.0,), (1.0,)), AugmentConfig(), seed=3)
    epochs = [[tuple(data[12 * epoch + i]["image"].flatten().tolist()) for i in range(12)] for epoch in range(2)]
    assert len(set(epochs[0])) == 12
    assert set(epochs[0]) == set(epochs[1])
    assert epochs[0] != epochs[1]
