"""Fault 10: headers with hostile values are refused by name or read as the standard says, within bounds."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
import pytest

from ssmvision.recipes.segmentation.volumes import read_grid
from tests.faults.common import FULL, child, cli, never_wrong, refusal
from tests.faults.test_13_grids import rigid, sitk_affine
from tests.recipes.synthetic import ball, save

# Cases of the fuzz; `make fuzz FUZZ=100000` for more.
CASES = int(os.environ.get("FUZZ", "10000" if FULL else "300"))


@pytest.mark.fault(10, part="fuzzed NIfTI-1 and NIfTI-2 headers: refused or read right, in 5 s and 256 MB each")
def test_fuzzed_headers(tmp_path: Path) -> None:
    done = child(["-m", "tests.faults.nifti_fuzz", tmp_path, 0, CASES], timeout=60 + CASES)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    verdicts = Counter(line["verdict"] for line in lines if "verdict" in line)
    bad = [line for line in lines if line.get("verdict") in ("wrong", "crash")]
    never_wrong(verdicts["wrong"] == 0, f"read otherwise than the standard says, without a word: {bad[:5]}")
    assert done.returncode == 0, (
        f"ended with {done.returncode} (-14: more than 5 s) at {lines[-1]}: {done.stderr[-500:]}"
    )
    assert bad == []
    assert sum(verdicts.values()) == CASES
    # The fuzz has to reach both: files that are refused, and files that can still be read.
    assert min(verdicts["refused"], verdicts["read"]) > CASES / 10, verdicts
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault(10, part="prediction refuses a lying header in one line and goes on with the other cases")
def test_prediction_goes_on(model: Path, tmp_path: Path) -> None:
    source, image = tmp_path / "in", ball((10, 12, 8))[0]
    for name in ("a", "b", "c", "d"):
        save(source / f"{name}.nii", image)
    lies = {"a": (42, np.array([32000] * 3, "<i2")), "b": (108, np.array([np.inf], "<f4"))}
    lies["c"] = (76 + 4, np.array([np.nan], "<f4"))  # a voxel size that the sform makes up for
    for name, (offset, value) in lies.items():
        content = bytearray((source / f"{name}.nii").read_bytes())
        content[offset : offset + value.nbytes] = value.tobytes()
        (source / f"{name}.nii").write_bytes(content)
    done = cli("predict", model, source, tmp_path / "out", "--device", "cpu")
    assert done.status == 2
    assert "2 of 4 case(s) failed" in done.said
    for name in ("a", "b"):
        assert any(f"failed: {source / name}.nii: " in line for line in done.said.splitlines())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["c.nii.gz", "d.nii.gz"]
    same = [np.asanyarray(nibabel.load(tmp_path / "out" / f"{name}.nii.gz").dataobj) for name in ("c", "d")]
    never_wrong(np.array_equal(*same), "a damaged field that means nothing changed the labels")


@pytest.mark.fault(10, part="a small file that promises 2 TB is refused before anything is allocated")
def test_promises_are_bounded_by_the_file(tmp_path: Path) -> None:
    path = save(tmp_path / "images" / "a.nii.gz", ball((10, 12, 8))[0])
    content = bytearray(nibabel.load(path).to_bytes())
    content[42:48] = np.array([8192] * 3, "<i2").tobytes()
    path.with_name("b.nii").write_bytes(content)
    done = cli("check", tmp_path, "--layout", "pairs", "--workers", 1)
    assert done.status == 2
    assert f"needs {8192**3 * 4} bytes, the file has {len(content)}" in done.said


@pytest.mark.fault(10, part="a sign that nibabel and SimpleITK read differently (pixdim[0]) is refused")
def test_handedness(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(ball((10, 12, 8))[0], rigid(20, 1, 1.5, 2))
    image.set_qform(image.affine, code=1)
    image.set_sform(None, code=0)
    content, path = bytearray(image.to_bytes()), tmp_path / "a.nii"
    for value in (-1, 1, 0, -0.5):
        content[76:80] = np.array([value], "<f4").tobytes()
        path.write_bytes(content)
        theirs, nibabels = sitk_affine(path), nibabel.load(path).affine
        if np.allclose(theirs, nibabels, atol=1e-4):
            np.testing.assert_array_equal(read_grid(path).affine, nibabels)
            continue
        assert value == -0.5
        np.testing.assert_allclose(theirs[:3, 2], -nibabels[:3, 2], atol=1e-4)
        told = refusal(lambda: read_grid(path))
        never_wrong(told != "", "one of two readings was chosen without a word")
        assert "pixdim[0] is -0.5" in told
