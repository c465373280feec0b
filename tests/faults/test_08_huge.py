"""Fault 8: a huge volume is refused with numbers before a voxel is read, or predicted within the planned memory."""

from __future__ import annotations

import json
import re
import time
from argparse import Namespace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from ssmvision.recipes.segmentation import prediction_memory
from tests.faults.common import FULL, cli, ended, fork, run_folder


@pytest.fixture
def huge(tmp_path: Path) -> Path:
    """2000 x 2000 x 2000 voxels that take no room on the disk."""
    path = tmp_path / "huge.nii"
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape((2000, 2000, 2000))
    header.set_sform(np.eye(4), 1)
    header["magic"], header["vox_offset"] = b"n+1", 352
    with path.open("wb") as file:
        file.write(header.binaryblock + bytes(4))
        file.truncate(352 + 2000**3)
    return path


@pytest.mark.parametrize("classes", [4, 104])
@pytest.mark.fault(8, part="2000 x 2000 x 2000, 4 and 104 classes: refused up front with need and limit")
def test_refused_with_numbers(huge: Path, tmp_path: Path, classes: int) -> None:
    model = run_folder(tmp_path / "run", classes=classes)
    start = time.monotonic()
    done = cli("predict", model, huge, tmp_path / "out.nii.gz", "--device", "cpu", "--memory_gb", 16)
    assert done.status == 2
    assert f"huge.nii: shape (2000, 2000, 2000) with {classes} classes does not fit into memory" in done.said
    needed = re.search(r"(\d+) MB of main memory would be needed, 16000 MB may be used", done.said)
    assert needed is not None, done.said
    # The image as float32 has 32 GB; logits of all classes would have that times the classes.
    assert 32_000 <= int(needed[1]) < 32_000 * 4 + 20_000
    assert time.monotonic() - start < 30
    assert not list(tmp_path.glob("out*"))


@pytest.mark.fault(8, part="104 classes: the measured peak stays within the plan, without logits of the volume")
def test_peak_within_plan(tmp_path: Path) -> None:
    shape, classes, patch = ((96, 96, 320) if FULL else (64, 64, 160)), 104, 32
    path, log = tmp_path / "image.nii", tmp_path / "log"
    nibabel.save(nibabel.Nifti1Image(np.random.default_rng(0).integers(-999, 999, shape, np.int16), np.eye(4)), path)
    given = Namespace(classes=classes, patch=patch, overlap=0.5, spacing_mm=None, rules="linear", threads=1, case=path)

    def predict() -> int:
        print(json.dumps(prediction_memory.predict(given)))
        return 0

    assert ended(fork(predict, log)) == 0, log.read_text()
    told = log.read_text()
    planned = re.search(r"main memory: (\d+) MB and the network's activations \(in use (\d+) MB", told)
    assert planned is not None, told
    peak, plan, base = 1000 * json.loads(told.splitlines()[-1])["peak_gb"], int(planned[1]), int(planned[2])
    assert peak <= plan + 3 * classes * patch**3 * 4 / 1e6, told
    logits = classes * np.prod(shape) * 4 / 1e6
    assert peak - base < logits, (peak, base, logits)
