"""Fault 22: what names a patient in a NIfTI file or in a path does not reach any file that is passed on."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from pathlib import Path

import nibabel
import pytest

from tests.faults.common import cli, train_words
from tests.recipes.synthetic import OBLIQUE, ball, write_description

NAMES = ("DOE^JANE", "MRN-4711", "19700101-F")
# The run's own settings, which have the paths as they were typed, for --resume; no bundle or report holds them.
OWN = {"config.json", "split.json"}


def planted(path: Path, seed: int, label: bool = False) -> None:
    """A volume with names in every text field, and in an extension."""
    image = nibabel.Nifti1Image(ball((12, 14, 10), seed)[int(label)], OBLIQUE)
    for field, text in (
        ("descrip", NAMES[0]),
        ("aux_file", NAMES[1]),
        ("intent_name", NAMES[2]),
        ("db_name", NAMES[0]),
    ):
        image.header[field] = text.encode()
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", "; ".join(NAMES).encode()))
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)


def contents(path: Path) -> list[bytes]:
    """A file's bytes, and what is packed in it."""
    raw = path.read_bytes()
    found = [raw]
    if raw[:2] == b"\x1f\x8b":
        found.append(gzip.decompress(raw))
    if zipfile.is_zipfile(io.BytesIO(raw)):
        with zipfile.ZipFile(path) as archive:
            found += [archive.read(name) for name in archive.namelist()]
    return found


def hits(folder: Path) -> list[str]:
    return [
        f"{path.name}: {name}"
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in OWN
        for name in NAMES
        if any(name.encode() in content for content in contents(path))
    ]


@pytest.mark.fault(22, part="NIfTI: planted in text fields, extensions, paths: no hits in any file that is passed on")
def test_no_hits(tmp_path: Path) -> None:
    raw, out = tmp_path / NAMES[0] / NAMES[1] / "raw", tmp_path / "out"
    for i in range(2):
        planted(raw / "imagesTr" / f"case_{i}_0000.nii.gz", i)
        planted(raw / "labelsTr" / f"case_{i}.nii.gz", i, label=True)
    write_description(raw, numTraining=2, description="; ".join(NAMES), reference=NAMES[0])
    assert hits(raw), "nothing was planted"
    done = cli(*train_words(raw, out / "run"), "--data.cache_dir", out / "cache", "--data.validation_fraction", 0.5)
    assert done.status == 0, done.said
    predicted = ("predict", out / "run", raw / "imagesTr", out / "labels", "--device", "cpu")
    done = cli(*predicted, "--probabilities", "--uncertainty")
    assert done.status == 0, done.said
    assert not any(name in done.said for name in NAMES), done.said
    scores = ("--output_json", out / "scores.json", "--output_csv", out / "scores.csv")
    assert cli("evaluate", out / "labels", raw / "labelsTr", *scores).status == 0
    assert json.loads((out / "scores.json").read_text())["scores"]
    assert hits(out) == []
    kinds = {path.suffix for path in out.rglob("*") if path.is_file()}
    assert {".safetensors", ".json", ".csv", ".gz", ".npz", ".ckpt"} <= kinds
    assert list((out / "cache").rglob("*")), "no cache was written"
