"""Fault 14: however axes are stored, labels come out on the input's exact grid and mark the same place in space."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray

from ssmvision.recipes.segmentation.volumes import read_grid
from ssmvision.recipes.segmentation.writing import GEOMETRY
from tests.faults.common import FULL, cli, labels_of, never_wrong, run_folder
from tests.faults.test_13_grids import rigid, sitk_affine
from tests.recipes.synthetic import OBLIQUE, ball, save
from tests.recipes.test_predict_cases import SHEAR, TURNS, turned

SHAPE = (12, 14, 10)
AFFINES = {
    "straight": np.diag([1, 1.5, 2, 1.0]),
    "oblique": rigid(20, 1, 1.5, 2),
    "oblique and sheared": OBLIQUE @ SHEAR,
}


@pytest.fixture(scope="module")
def resampling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that resamples to other voxels."""
    return run_folder(tmp_path_factory.mktemp("resampling") / "run", spacing_mm=(1.3, 1.2, 1.6))


def save_any(path: Path, data: NDArray[Any], affine: NDArray[Any]) -> Path:
    """As `save`; a qform cannot hold a shear, so that only the sform is set then."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    if np.allclose(axes.T @ axes, np.eye(3), atol=1e-6):
        return save(path, data, affine)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(np.ascontiguousarray(data), affine)
    image.set_sform(affine, code=2)
    image.set_qform(None, code=0)
    nibabel.save(image, path)
    return path


def same_grid(found: Path, expected: Path) -> None:
    one, other = nibabel.load(found), nibabel.load(expected)
    never_wrong(one.shape == other.shape[:3], f"{found}: shape {one.shape}, not {other.shape}")
    never_wrong(np.array_equal(one.affine, other.affine), f"{found}: affine {one.affine}, not {other.affine}")
    for name in GEOMETRY:
        np.testing.assert_array_equal(one.header[name], other.header[name])


def predicted(model: Path, source: Path, out: Path) -> None:
    done = cli("predict", model, source, out, "--device", "cpu")
    assert done.status == 0, done.said


@pytest.mark.parametrize("kind", AFFINES)
@pytest.mark.fault(14, part="48 orientations (24 left-handed), straight, oblique, sheared: same mask, input's grid")
def test_48_orientations(model: Path, tmp_path: Path, kind: str) -> None:
    image = ball(SHAPE)[0]
    for i, (axes, signs) in enumerate(TURNS):
        save_any(tmp_path / "in" / f"{i:02d}.nii", *turned(image, AFFINES[kind], axes, signs))
    predicted(model, tmp_path / "in", tmp_path / "out")
    expected = None
    for i, (axes, signs) in enumerate(TURNS):
        found = tmp_path / "out" / f"{i:02d}.nii.gz"
        same_grid(found, tmp_path / "in" / f"{i:02d}.nii")
        labels = labels_of(found)
        expected = labels if expected is None else expected  # the first turn is none
        wanted, _ = turned(expected, AFFINES[kind], axes, signs)
        never_wrong(np.array_equal(labels, wanted), f"{kind}, axes {axes}, signs {signs}: another mask in space")
    assert expected is not None
    assert 0.1 < expected.mean() < 0.9


@pytest.mark.parametrize("kind", AFFINES)
@pytest.mark.fault(14, part="the same with resampling to the model's voxels and back")
def test_48_orientations_resampled(resampling: Path, tmp_path: Path, kind: str) -> None:
    image = ball(SHAPE)[0]
    turns = TURNS if FULL else TURNS[::5]
    for i, (axes, signs) in enumerate(turns):
        save_any(tmp_path / "in" / f"{i:02d}.nii", *turned(image, AFFINES[kind], axes, signs))
    predicted(resampling, tmp_path / "in", tmp_path / "out")
    expected = labels_of(tmp_path / "out" / "00.nii.gz")
    for i, (axes, signs) in enumerate(turns):
        found = tmp_path / "out" / f"{i:02d}.nii.gz"
        same_grid(found, tmp_path / "in" / f"{i:02d}.nii")
        wanted, _ = turned(expected, AFFINES[kind], axes, signs)
        # NIfTI keeps affines in 32 bits, which moves samples by less than a millionth of a voxel.
        never_wrong(int((labels_of(found) != wanted).sum()) <= 2, f"{kind}, axes {axes}, signs {signs}: another mask")


def with_forms(path: Path, qform: NDArray[Any], sform: NDArray[Any], codes: tuple[int, int]) -> Path:
    image = nibabel.Nifti1Image(ball(SHAPE)[0], sform)
    image.set_qform(qform, code=codes[0])
    image.set_sform(sform, code=codes[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path


@pytest.mark.fault(14, part="sform and qform apart: the sform counts as in nibabel, both are kept, check tells; 4D")
def test_forms_apart_and_four_axes(model: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    qform, sform = rigid(20, 1, 1.5, 2), AFFINES["straight"]
    path = with_forms(source / "forms.nii", qform, sform, (1, 2))
    save(source / "one.nii.gz", ball(SHAPE)[0][..., None], sform)
    predicted(model, source, out)
    for name in ("forms", "one"):
        same_grid(out / f"{name}.nii.gz", next(source.glob(f"{name}.*")))
    never_wrong(np.array_equal(read_grid(path).affine, nibabel.load(path).affine), "not the affine that nibabel reads")
    written = nibabel.load(out / "forms.nii.gz")
    np.testing.assert_allclose(written.get_qform(), qform, atol=1e-5)
    np.testing.assert_array_equal(written.get_sform(), sform)
    np.testing.assert_array_equal(labels_of(out / "forms.nii.gz"), labels_of(out / "one.nii.gz"))
    assert "qform and sform place a corner" in cli("check", source, "--layout", "pairs", "--workers", 1).said
    save(source / "series.nii.gz", np.stack([ball(SHAPE)[0]] * 3, -1), sform)
    done = cli("predict", model, source, out, "--device", "cpu", "--overwrite")
    assert done.status == 2
    assert "series.nii.gz: 3 channel(s) found, 1 expected ['MRI']" in done.said


@pytest.mark.fault(14, part="geometry agrees with nibabel, and with SimpleITK but for shear and forms apart")
def test_agrees_with_nibabel_and_simpleitk(tmp_path: Path) -> None:
    image = ball(SHAPE)[0]
    for i, (axes, signs) in enumerate(TURNS):
        path = save(tmp_path / f"{i}.nii", *turned(image, AFFINES["oblique"], axes, signs))
        ours = read_grid(path).affine
        np.testing.assert_array_equal(ours, nibabel.load(path).affine)
        np.testing.assert_allclose(ours, sitk_affine(path), atol=1e-4)
    # Forms apart: we and nibabel take the sform whenever it has a code; ITK only if that code is 1 (scanner), else the
    # qform. The standard leaves the choice open, so that both are kept in what we write.
    for codes, theirs in (((1, 2), "oblique"), ((1, 1), "straight")):
        path = with_forms(tmp_path / "forms.nii", AFFINES["oblique"], AFFINES["straight"], codes)
        np.testing.assert_array_equal(read_grid(path).affine, AFFINES["straight"])
        np.testing.assert_allclose(sitk_affine(path)[:3, :3], AFFINES[theirs][:3, :3], atol=1e-4)
    # ITK cannot hold a shear and says so; nibabel can.
    sheared = save_any(tmp_path / "sheared.nii", image, AFFINES["oblique and sheared"])
    np.testing.assert_array_equal(read_grid(sheared).affine, nibabel.load(sheared).affine)
    with pytest.raises(RuntimeError, match="orthonormal"):
        SimpleITK.ReadImage(sheared)
