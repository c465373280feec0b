"""Fault 11: voxels that hold no measurement: training refuses them, prediction masks and says so."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK

from ssmvision.recipes.segmentation.volumes import read_image
from tests.faults.common import Done, cli, labels_of, never_wrong, refusal
from tests.recipes.synthetic import ball, nnunet_folder, save

SHAPE = (12, 14, 10)
SPOT = (slice(2, 5), slice(3, 6), slice(4, 6))


def spoilt(kind: str) -> np.ndarray:
    image = ball(SHAPE)[0]
    if kind in ("NaN", "Inf", "-Inf"):
        image[SPOT] = float(kind)
    elif kind == "all NaN":
        image[:] = np.nan
    elif kind != "sound":
        image[:] = float(kind)
    return image


def predicted(model: Path, path: Path, out: Path) -> Done:
    return cli("predict", model, path, out, "--device", "cpu", "--uncertainty", "--probabilities", "--overwrite")


@pytest.mark.parametrize("kind", ["NaN", "Inf", "-Inf"])
@pytest.mark.fault(11, part="NaN and Inf: predicted as background with a warning and counts, other voxels unharmed")
def test_prediction_masks(model: Path, tmp_path: Path, kind: str) -> None:
    path, out = save(tmp_path / "in.nii.gz", spoilt(kind)), tmp_path / "out.nii.gz"
    done = predicted(model, path, out)
    assert done.status == 0, done.said
    count = spoilt(kind)[SPOT].size
    assert f"warning: {path}: {count} of {np.prod(SHAPE)} voxel(s) are not finite" in done.said
    labels, uncertainty = labels_of(out), labels_of(tmp_path / "out_uncertainty.nii.gz")
    never_wrong(not labels[SPOT].any(), "labels where nothing was measured")
    assert (uncertainty[SPOT] == 1).all()
    filled = spoilt(kind)
    filled[SPOT] = filled[np.isfinite(filled)].min()
    assert predicted(model, save(tmp_path / "filled.nii.gz", filled), tmp_path / "filled_out.nii.gz").status == 0
    reference = labels_of(tmp_path / "filled_out.nii.gz")
    reference[SPOT] = 0
    never_wrong(np.array_equal(labels, reference), "voxels beside the mask changed")
    assert 0.1 < labels.mean() < 0.9
    assert np.isfinite(np.load(tmp_path / "out_probabilities.npz")["probabilities"]).all()


@pytest.mark.parametrize("kind", ["0", "7.5", "-1000", "all NaN"])
@pytest.mark.fault(11, part="constant, all-zero, all-NaN: predicted as background throughout, with a warning")
def test_prediction_of_nothing(model: Path, tmp_path: Path, kind: str) -> None:
    path, out = save(tmp_path / "in.nii.gz", spoilt(kind)), tmp_path / "out.nii.gz"
    done = predicted(model, path, out)
    assert done.status == 0, done.said
    assert f"warning: {path}: every {'other ' if kind == 'all NaN' else ''}voxel is" in done.said
    never_wrong(not labels_of(out).any(), "labels in an image that shows nothing")
    assert (labels_of(tmp_path / "out_uncertainty.nii.gz") == 1).all()


@pytest.mark.parametrize("kind", ["NaN", "Inf", "-Inf", "all NaN", "0", "7.5"])
@pytest.mark.fault(11, part="training and check refuse each by file, value and count")
def test_training_refuses(tmp_path: Path, kind: str) -> None:
    root = nnunet_folder(tmp_path / "raw", [SHAPE])
    path = save(root / "imagesTr" / "case_0_0000.nii.gz", spoilt(kind))
    told = refusal(lambda: read_image([path]))
    never_wrong(told != "", f"training would take a volume with {kind}")
    assert told.startswith(f"{path}: ")
    assert ("not finite" if "N" in kind or "Inf" in kind else "every voxel is") in told
    done = cli("check", root, "--workers", 1)
    assert done.status == 2
    assert str(path) in done.said


@pytest.mark.fault(11, part="training ends with status 2 and leaves no model")
def test_training_ends(tmp_path: Path) -> None:
    root = nnunet_folder(tmp_path / "raw", [SHAPE])
    save(root / "imagesTr" / "case_0_0000.nii.gz", spoilt("NaN"))
    done = cli("train", "--data.root", root, "--out", tmp_path / "run", "--data.validation_fraction", 0)
    assert done.status == 2
    assert "case_0_0000.nii.gz: 18 voxel(s) are not finite" in done.said
    assert not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize("kind", ["NaN", "Inf", "-Inf"])
@pytest.mark.fault(11, part="what is not finite agrees with nibabel; SimpleITK shows 0 there without a word")
def test_agrees_with_nibabel_but_not_simpleitk(tmp_path: Path, kind: str) -> None:
    path = save(tmp_path / "a.nii.gz", spoilt(kind))
    with pytest.warns(UserWarning, match="18 of 1680"):
        masked = read_image([path], unusable="mask").masked
    assert masked is not None
    np.testing.assert_array_equal(masked, ~np.isfinite(nibabel.load(path).get_fdata()))
    theirs = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(path)).T
    # The NIfTI library that ITK uses writes 0 over such voxels: the difference that makes a mask necessary.
    np.testing.assert_array_equal(masked, theirs == 0)
