"""Fault 12: label ids that are not on the list are told with file, ids and counts, and nothing is clamped."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK

from ssmvision.recipes.segmentation.volumes import VolumeWarning, read_label_map
from tests.faults.common import cli, never_wrong, refusal
from tests.recipes.synthetic import ball, nnunet_folder, save, write_description

SHAPE = (10, 12, 8)
MANY = 1 << 20


def with_id(value: float, dtype: str = "f8") -> np.ndarray:
    """A mask with three voxels of another value."""
    mask = ball(SHAPE)[1].astype(dtype)
    mask[0, 0, :3] = value
    return mask


@pytest.mark.parametrize(
    ("value", "dtype", "told"),
    [
        (7, "u1", "{7: 3}"),
        (-1, "i2", "{-1: 3}"),
        (300, "u2", "{300: 3}"),
        (256, "i2", "{256: 3}"),  # 0 in eight bits
        (257, "u2", "{257: 3}"),  # 1 in eight bits
        (65537, "i4", "{65537: 3}"),
        (MANY, "f8", f"{{{MANY}: 3}}"),
        (2.5, "f4", "2.5"),
        (1.01, "f4", "1.01"),
    ],
)
@pytest.mark.fault(12, part="out of range, negative, not whole: refused with file, ids and counts; never clamped")
def test_unknown_ids(tmp_path: Path, value: float, dtype: str, told: str) -> None:
    root = nnunet_folder(tmp_path, [SHAPE])
    path = save(root / "labelsTr" / "case_0.nii.gz", with_id(value, dtype))
    refused = refusal(lambda: read_label_map(path, [0, 1]))
    never_wrong(refused != "", f"the id {value} was taken")
    assert refused.startswith(f"{path}: ")
    assert told in refused
    done = cli("check", root, "--workers", 1)
    assert done.status == 2
    assert any(str(path) in line and told in line for line in done.said.splitlines())


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.fault(12, part="2.0000001 is read as 2, with a warning that counts such voxels")
def test_rounding(tmp_path: Path, dtype: str) -> None:
    stored = with_id(2.0000002, dtype)
    path = save(tmp_path / "label.nii.gz", stored)
    with pytest.warns(VolumeWarning, match=r"label\.nii\.gz: 3 voxel\(s\) are whole numbers but for rounding.* as 2"):
        labels, _ = read_label_map(path, [0, 1, 2])
    never_wrong(np.array_equal(labels, np.rint(stored)), "rounding changed other labels")


@pytest.mark.fault(12, part="holes: a description with gaps is refused with a mapping, ids that never occur are told")
def test_holes(tmp_path: Path) -> None:
    root = nnunet_folder(tmp_path, [SHAPE])
    write_description(root, labels={"background": 0, "ball": 1, "cube": 3}, numTraining=1)
    done = cli("train", "--data.root", root, "--out", tmp_path / "run")
    assert done.status == 2
    assert "label ids are [0, 1, 3]; number them 0 (background) to 2 (suggested mapping: {3: 2})" in done.said
    write_description(root, labels={"background": 0, "ball": 1, "cube": 2}, numTraining=1)
    assert "label 'cube' (2) occurs in no case" in cli("check", root, "--workers", 1).said


@pytest.mark.parametrize(
    ("values", "mapping"),
    [
        ({7: 2}, {7: 2}),
        ({-1: 2, 5: 2}, {-1: 0, 5: 2}),
        ({255: 1}, {255: 2}),
    ],
)
@pytest.mark.fault(12, part="the suggested mapping, given to `ssmvision align`, makes a map that is accepted")
def test_suggested_mapping(tmp_path: Path, values: dict[int, int], mapping: dict[int, int]) -> None:
    mask = ball(SHAPE)[1].astype(np.int16)
    for i, (value, count) in enumerate(values.items()):
        mask[0, i, :count] = value
    path, out = save(tmp_path / "a.nii.gz", mask), tmp_path / "b.nii.gz"
    assert f"suggested mapping: {mapping}" in refusal(lambda: read_label_map(path, [0, 1, 2]))
    done = cli("align", path, path, out, "--mapping", mapping, "--interpolation", "nearest")
    assert done.status == 0, done.said
    expected = mask.copy()
    for old, new in mapping.items():
        expected[mask == old] = new
    never_wrong(np.array_equal(read_label_map(out, [0, 1, 2])[0], expected), "renumbering went wrong")


@pytest.mark.parametrize("ending", [".png", ".tif"])
@pytest.mark.fault(12, part="a 16-bit picture as label map: refused with its ids and counts, not clamped to 8 bits")
def test_pictures(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"label{ending}"
    values = np.zeros((6, 5), np.uint16)
    values[0, :4], values[1, :2] = 300, 65535
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values), path)
    refused = refusal(lambda: read_label_map(path, [0, 1, 2]))
    never_wrong(refused != "", "a picture was taken as a label map")
    assert refused.startswith(f"{path}: ")
    assert "{0: 24, 300: 4, 65535: 2}" in refused
    assert "{300: 1, 65535: 2}" in refused
    path.write_bytes(path.read_bytes()[:6])
    assert "cannot be read" in refusal(lambda: read_label_map(path))


@pytest.mark.fault(12, part="ids and counts agree with nibabel and SimpleITK, also behind scale factors")
def test_agrees_with_nibabel_and_simpleitk(tmp_path: Path) -> None:
    mask = with_id(3, "i2")
    nibabel.save(nibabel.Nifti1Image(2 * mask - 2, np.eye(4)), tmp_path / "plain.nii.gz")
    content = bytearray(nibabel.load(tmp_path / "plain.nii.gz").to_bytes())
    content[112:120] = np.array([0.5, 1], "<f4").tobytes()
    path = tmp_path / "scaled.nii"
    path.write_bytes(content)
    labels, _ = read_label_map(path, [0, 1, 3])
    np.testing.assert_array_equal(labels, mask)
    np.testing.assert_array_equal(labels, nibabel.load(path).get_fdata())
    np.testing.assert_array_equal(labels, SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(path)).T)
