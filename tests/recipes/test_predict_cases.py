"""Prediction of files: geometry on re-read, mirroring, ensembles, extra maps, and memory that is planned and short."""

from __future__ import annotations

import itertools
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ssmvision.errors import UserError
from ssmvision.recipes.segmentation import job as job_module
from ssmvision.recipes.segmentation import maps as maps_module
from ssmvision.recipes.segmentation import predict, prediction_memory
from ssmvision.recipes.segmentation.architecture import build_network, plan_network
from ssmvision.recipes.segmentation.config import ModelConfig, PredictConfig
from ssmvision.recipes.segmentation.ensemble import mirrored
from ssmvision.recipes.segmentation.infer import Predictor, load_model
from ssmvision.recipes.segmentation.maps import Maps
from ssmvision.recipes.segmentation.memory_plan import Placement, container_bytes
from ssmvision.recipes.segmentation.preprocessing import ChannelScale, Preprocessing
from ssmvision.recipes.segmentation.weights import ModelCard, save_model
from ssmvision.recipes.segmentation.writing import GEOMETRY
from tests.recipes.synthetic import OBLIQUE, ball, save

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (12, 14, 10)
SHEAR = np.array([[1, 0.2, -0.1, 0], [0, 1, 0.3, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
TURNS = list(itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)))
CPU = torch.device("cpu")


class Threshold(nn.Module):
    """Class 1 one standard deviation above the mean of the volume."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))

    def forward(self, window: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(window), self.gain * (window - 1)], 1)


def card(
    spacing: tuple[float, ...] | None = None, kind: str = "zscore", patch: tuple[int, ...] = (6, 8, 6)
) -> ModelCard:
    how = Preprocessing("RAS", spacing, (ChannelScale(kind),))  # type: ignore[arg-type]
    return ModelCard({}, ("MRI",), {"background": 0, "ball": 1}, patch, how)


def convolution() -> nn.Module:
    torch.manual_seed(0)
    return nn.Conv3d(1, 2, 3, padding=1)


def predicted(predictor: Predictor, path: Path, out: Path, **changes: object) -> predict.Job:
    job = predict.Job((path,), out)
    predict.predict_case(predictor, job, PredictConfig(Path(), path, out, **changes), lambda line: None)
    return job


def same_grid(path: Path, image: Path) -> None:
    found, expected = nibabel.load(path), nibabel.load(image)
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found.affine, expected.affine)
    for name in GEOMETRY:
        np.testing.assert_array_equal(found.header[name], expected.header[name])


def turned(array: NDArray, affine: NDArray, axes: tuple[int, ...], signs: tuple[int, ...]) -> tuple[NDArray, NDArray]:
    """The same object stored in another order and direction of axes."""
    move = np.eye(4)
    for axis, (source, sign) in enumerate(zip(axes, signs, strict=True)):
        move[:3, axis] = 0
        move[source, axis] = sign
        move[source, 3] = array.shape[source] - 1 if sign < 0 else 0
    return array.transpose(axes)[tuple(slice(None, None, sign) for sign in signs)], affine @ move


@pytest.mark.parametrize("spacing", [None, (1.3, 1.2, 1.6)], ids=["as stored", "resampled"])
@pytest.mark.parametrize("affine", [np.diag([1, 1.5, 2, 1.0]), OBLIQUE], ids=["straight", "oblique"])
def test_all_48_orientations_give_the_same_object_on_the_inputs_grid(
    tmp_path: Path, affine: NDArray, spacing: tuple[float, ...] | None
) -> None:
    image, mask = ball(SHAPE)
    predictor = Predictor(Threshold(), card(spacing, patch=(8, 8, 8)), "cpu")
    expected = predictor(image, affine)
    assert (expected == mask).mean() > (0.97 if spacing is None else 0.85)
    for i, (axes, signs) in enumerate(TURNS):
        stored, placed = turned(image, affine, axes, signs)
        path = save(tmp_path / f"{i}.nii", stored, placed)
        predicted(predictor, path, tmp_path / "out" / f"{i}.nii")
        same_grid(tmp_path / "out" / f"{i}.nii", path)
        labels = np.asanyarray(nibabel.load(tmp_path / "out" / f"{i}.nii").dataobj)
        wanted, _ = turned(expected, affine, axes, signs)
        # NIfTI keeps affines in float32, which moves samples by less than a millionth of a voxel.
        assert (labels != wanted).sum() <= (0 if spacing is None else 1)


@pytest.mark.parametrize("spacing", [None, (1.3, 1.2, 1.6)], ids=["as stored", "resampled"])
def test_a_sheared_sform_without_qform_survives(tmp_path: Path, spacing: tuple[float, ...] | None) -> None:
    image, mask = ball(SHAPE)
    for axes, signs in TURNS[::7]:
        stored, affine = turned(image, OBLIQUE @ SHEAR, axes, signs)
        written = nibabel.Nifti1Image(np.ascontiguousarray(stored), affine)
        written.set_sform(affine, code=2)
        written.set_qform(None, code=0)
        nibabel.save(written, tmp_path / "sheared.nii")
        out = predicted(
            Predictor(Threshold(), card(spacing), "cpu"), tmp_path / "sheared.nii", tmp_path / "out.nii", overwrite=True
        ).output
        same_grid(out, tmp_path / "sheared.nii")
        assert int(nibabel.load(out).header["sform_code"]) == 2
        labels = np.asanyarray(nibabel.load(out).dataobj)
        assert (labels == turned(mask, affine, axes, signs)[0]).mean() > (0.97 if spacing is None else 0.85)


def test_mirroring_averages_every_window_over_all_axes() -> None:
    network, window = convolution(), torch.randn(2, 1, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    total = torch.zeros(2, 2, 4, 5, 6)
    for n in range(4):
        dims = [d for i, d in enumerate((2, 4)) if n >> i & 1]
        total += network(window.flip(dims)).flip(dims)
    torch.testing.assert_close(mirrored(network, (0, 2))(window), total / 4)
    assert mirrored(network, ()) is network
    # Along every axis the last window ends with a whole step, so that the windows' places are symmetric.
    image = ball((12, 16, 9))[0]
    predictor = Predictor(network, card(), "cpu", mirror_axes=None)
    assert predictor.mirror_axes == (0, 1, 2)
    logits = predictor.logits(image, np.eye(4))
    for axis in range(3):
        found = predictor.logits(np.flip(image, axis).copy(), np.eye(4))
        torch.testing.assert_close(found.flip(1 + axis), logits, rtol=0, atol=1e-5)


def test_an_ensemble_is_the_mean_of_logits_each_in_its_own_scale() -> None:
    image = ball(SHAPE)[0]
    parts = [(Threshold(1.0), card()), (Threshold(0.3), card(kind="rescale")), (convolution(), card())]
    single = [Predictor(network, own, "cpu").logits(image, OBLIQUE) for network, own in parts]
    together = Predictor(*parts[0], "cpu", ensemble=parts[1:])
    assert len(together.networks.scales) == 2
    torch.testing.assert_close(together.logits(image, OBLIQUE), sum(single) / 3, rtol=0, atol=1e-5)
    for other, message in (
        (card((1.0, 1.0, 1.0)), r"model 2 of the ensemble has spacing_mm .*one plan"),
        (replace(card(), labels={"background": 0, "other": 1}), r"has labels \{.*'other'"),
        (replace(card(), patch_size=(8, 8, 8)), r"has patch_size \(8, 8, 8\)"),
    ):
        with pytest.raises(ValueError, match=message):
            Predictor(*parts[0], "cpu", ensemble=[(Threshold(), other)])


@pytest.mark.parametrize("mapped", [False, True])
def test_probabilities_and_uncertainty_are_those_of_the_logits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mapped: bool
) -> None:
    monkeypatch.setattr(maps_module, "MAPPED_FROM_BYTES", 1 if mapped else 2**40)
    image = ball(SHAPE)[0]
    predictor = Predictor(convolution(), card(), "cpu")
    path = save(tmp_path / "image.nii.gz", image)
    job = predicted(predictor, path, tmp_path / "out" / "labels.nii.gz", probabilities=True, uncertainty=True)
    p = predictor.logits(image, nibabel.load(path).affine).softmax(0).numpy()
    np.testing.assert_allclose(np.load(job.probabilities)["probabilities"], p, atol=1e-6)
    labels = np.asanyarray(nibabel.load(job.output).dataobj)
    np.testing.assert_array_equal(labels, p.argmax(0))
    assert labels.dtype == np.uint8
    entropy = nibabel.load(job.uncertainty)
    np.testing.assert_allclose(entropy.dataobj, -(p * np.log2(p)).sum(0), atol=1e-5)
    assert entropy.get_data_dtype() == np.float32
    same_grid(job.uncertainty, path)
    assert sorted(p.name for p in job.output.parent.iterdir()) == [
        "labels.nii.gz",
        "labels_probabilities.npz",
        "labels_uncertainty.nii.gz",
    ]


class Short(nn.Module):
    """Out of memory for more windows at a time than `most`."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.network, self.most, self.calls = convolution(), most, 0

    def forward(self, window: Tensor) -> Tensor:
        self.calls += 1
        if len(window) > self.most:
            raise torch.OutOfMemoryError("forced")
        return self.network(window)


def test_fewer_windows_at_a_time_when_memory_is_short_and_the_same_labels() -> None:
    image = ball(SHAPE)[0]
    expected = Predictor(convolution(), card((1.2, 1.2, 1.2)), "cpu")(image, OBLIQUE)
    predictor = Predictor(Short(2), card((1.2, 1.2, 1.2)), "cpu", window_batch=9)
    assert predictor.placements() == [Placement(CPU, CPU, n) for n in (9, 4, 2, 1)]
    with pytest.warns(
        UserWarning, match=r"out of memory .* with [94] window\(s\) at a time on cpu.*using less"
    ) as seen:
        np.testing.assert_array_equal(predictor(image, OBLIQUE), expected)
    assert len(seen) == 2
    on_gpu = Predictor(convolution(), card(), "cpu", window_batch=2)
    on_gpu.device = torch.device("cuda", 0)
    ways = [(way.device.type, way.stitch.type, way.batch) for way in on_gpu.placements()]
    assert ways == [("cuda", "cuda", 2), ("cuda", "cuda", 1), ("cuda", "cpu", 1), ("cpu", "cpu", 1)]


def saved(folder: Path, seed: int) -> Path:
    """Run folder of a small untrained network."""
    torch.manual_seed(seed)
    config = ModelConfig(mixer="none", features_per_stage=(2, 4), n_conv_per_stage=1, n_conv_per_stage_decoder=1)
    plan = plan_network(config, (8, 8, 8), (1.0, 1.0, 1.0), 1, 2)
    folder.mkdir()
    save_model(folder, build_network(plan), replace(card(patch=(8, 8, 8)), architecture=plan))
    return folder


def test_a_run_with_folds_mirroring_and_maps_goes_on_after_a_bad_case(tmp_path: Path) -> None:
    runs = [saved(tmp_path / f"fold_{i}", i) for i in range(2)]
    source, out = tmp_path / "images", tmp_path / "out"
    for name in ("a", "b", "c"):
        save(source / f"{name}.nii.gz", ball(SHAPE)[0])
    (source / "b.nii.gz").write_bytes((source / "b.nii.gz").read_bytes()[:-40])
    config = PredictConfig(runs[0], source, out, tta="mirror", ensemble=(runs[1],), uncertainty=True, device="cpu")
    with pytest.raises(UserError, match=r"1 of 3 case\(s\) failed; .*b\.nii\.gz: truncated or corrupt"):
        predict.run(config)
    assert sorted(path.name for path in out.iterdir()) == [
        *("a.nii.gz", "a_uncertainty.nii.gz", "c.nii.gz", "c_uncertainty.nii.gz"),
    ]
    predictor = load_model(runs[0], "cpu", mirror_axes=None, ensemble=[runs[1]])
    expected = predictor(ball(SHAPE)[0], nibabel.load(source / "a.nii.gz").affine)
    np.testing.assert_array_equal(nibabel.load(out / "a.nii.gz").dataobj, expected)
    for changes, message in (
        ({"mirror_axes": (0,)}, r"both tta=mirror \(all axes\) and mirror_axes are given"),
        ({"memory_gb": 0.0}, r"memory_gb is 0\.0; give a number above 0"),
        ({"window_batch": 0}, r"window_batch is 0, expected at least 1"),
        ({"ensemble": (tmp_path / "none",)}, r"none: no such file; give a run folder"),
    ):
        with pytest.raises(UserError, match=message):
            predict.run(replace(config, overwrite=True, **changes))


def test_output_that_is_not_finite_makes_no_labels() -> None:
    predictor = Predictor(Threshold(float("nan")), card(), "cpu")
    with pytest.raises(RuntimeError, match=r"output is not finite around voxel"):
        predictor(ball(SHAPE)[0], OBLIQUE)


def test_the_plan_is_told_before_a_voxel_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "image.nii", ball(SHAPE)[0])
    predictor = Predictor(convolution(), card((1.0, 1.0, 1.0)), "cpu", window_batch=2)
    config, told = PredictConfig(Path(), path, tmp_path / "out.nii"), []

    def refuse(*arguments: object, **settings: object) -> None:
        raise UserError("reading begins")

    monkeypatch.setattr(job_module, "read_image", refuse)
    with pytest.raises(UserError, match="reading begins"):
        predict.predict_case(predictor, predict.Job((path,), config.output), config, told.append)
    assert "windows, 2 window(s) at a time on cpu, sums on cpu; temporary files 0 MB" in told[0]
    for word in ("main memory", "in use", "sums", "windows", "planes to resample", "while the image is prepared"):
        assert word in told[1]
    told.clear()
    small = replace(config, memory_gb=0.01)
    with pytest.raises(UserError, match=r"image\.nii: shape \(12, 14, 10\) with 2 classes .*may be used.*memory_gb"):
        predict.predict_case(predictor, predict.Job((path,), config.output), small, told.append)
    assert [line.split(":")[0] for line in told] == [f"not {way}" for way in predictor.placements()]


def test_a_huge_header_is_refused_with_its_numbers(tmp_path: Path) -> None:
    path = tmp_path / "huge.nii"
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape((3000, 3000, 3000))
    header.set_sform(np.eye(4), 1)
    with path.open("wb") as file:
        header["magic"], header["vox_offset"] = b"n+1", 352
        file.write(header.binaryblock + bytes(4))
        file.truncate(352 + 3000**3)  # sparse: takes no disk
    with pytest.raises(UserError, match=r"huge\.nii: shape \(3000, 3000, 3000\) with 2 classes does not fit"):
        predicted(Predictor(convolution(), card(), "cpu"), path, tmp_path / "out.nii", memory_gb=100)


def test_the_measurement_predicts_a_case_and_reports_it(tmp_path: Path) -> None:
    path = save(tmp_path / "image.nii", ball(SHAPE)[0])
    given = Namespace(classes=3, patch=8, overlap=0.5, spacing_mm=1.5, rules="nnunet", threads=1, case=path)
    result = prediction_memory.predict(given)
    assert 0.05 < result["peak_gb"] < 1000
    assert result["classes"] == 3
    assert "case" not in result
    assert nibabel.load(tmp_path / "labels.nii.gz").shape == SHAPE


def test_a_containers_limit_counts(tmp_path: Path) -> None:
    assert container_bytes(tmp_path, 7) == 7
    (tmp_path / "memory.max").write_text("max\n")
    assert container_bytes(tmp_path, 7) == 7
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("600\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 90\n")
    assert container_bytes(tmp_path, 7) == 490


def test_maps_on_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps_module, "MAPPED_FROM_BYTES", 1)
    with pytest.raises(UserError, match=r"\d+ bytes for a temporary array cannot be had .*free space"):
        maps_module.allocate((2**20, 2**20, 2**10), np.float32, tmp_path)
    assert list(tmp_path.iterdir()) == []
    array = maps_module.allocate((3, 4), np.float32, tmp_path)
    Maps(uncertainty=array)
    assert isinstance(array, np.memmap)
    assert not array.any()
