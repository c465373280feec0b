"""Fault 9: truncated files are refused by name; the other cases of a batch are predicted, and the status is not 0."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK

from ssmvision.errors import UserError
from ssmvision.recipes.segmentation.volumes import read_image
from tests.faults.common import cli, labels_of, never_wrong
from tests.recipes.synthetic import ball, save

SHAPE = (10, 12, 8)
OFFSETS = 20


def cut(content: bytes) -> list[bytes]:
    """The first bytes of a file, of 20 lengths from none to all but one."""
    return [content[:kept] for kept in np.linspace(0, len(content) - 1, OFFSETS).astype(int)]


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.fault(9, part=".nii and .nii.gz at 20 offsets: one line that names the file, others predicted, status 2")
def test_batch_with_truncated_files(model: Path, tmp_path: Path, ending: str) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    good = [save(source / f"{name}{ending}", ball(SHAPE)[0]) for name in ("first", "zlast")]
    for i, content in enumerate(cut(good[0].read_bytes())):
        (source / f"cut_{i:02d}{ending}").write_bytes(content)
    done = cli("predict", model, source, out, "--device", "cpu")
    written = sorted(path.name for path in out.iterdir())
    never_wrong(written == ["first.nii.gz", "zlast.nii.gz"], f"labels of truncated files: {written}")
    assert done.status == 2
    for i in range(OFFSETS):
        path = source / f"cut_{i:02d}{ending}"
        lines = [line for line in done.said.splitlines() if f"failed: {path}: " in line]
        assert len(lines) == 1, done.said
        assert lines[0].endswith("fetch or export it again")
    np.testing.assert_array_equal(*(labels_of(out / name) for name in written))


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
@pytest.mark.fault(9, part="NRRD and MetaImage, whole or truncated, are failed by name and never left out silently")
def test_other_formats_are_named(model: Path, tmp_path: Path, ending: str) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    save(source / "good.nii.gz", ball(SHAPE)[0])
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(ball(SHAPE)[0]), source / f"whole{ending}")
    for i, content in enumerate(cut((source / f"whole{ending}").read_bytes())):
        (source / f"cut_{i:02d}{ending}").write_bytes(content)
    done = cli("predict", model, source, out, "--device", "cpu")
    assert [path.name for path in out.iterdir()] == ["good.nii.gz"]
    assert done.status == 2
    assert f"{OFFSETS + 1} of {OFFSETS + 2} case(s) failed" in done.said
    for path in source.glob(f"*{ending}"):
        assert f"failed: {path}: the ending '{ending}' is not NIfTI; convert it" in done.said


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.fault(9, part="what is read agrees with nibabel and SimpleITK voxel by voxel")
def test_agrees_with_nibabel_and_simpleitk(tmp_path: Path, ending: str) -> None:
    path = save(tmp_path / f"a{ending}", ball(SHAPE)[0])
    ours = read_image([path]).data[0]
    np.testing.assert_array_equal(ours, np.asanyarray(nibabel.load(path).dataobj))
    np.testing.assert_array_equal(ours, SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(path)).T)
    for content in cut(path.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(UserError, match="fetch or export it again"):
            read_image([path])
