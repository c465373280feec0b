from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from ssmvision.errors import UserError
from ssmvision.recipes.segmentation.config import EvaluateConfig
from ssmvision.recipes.segmentation.evaluate import run
from ssmvision.recipes.segmentation.metrics import score_mask
from tests.recipes.synthetic import OBLIQUE, ball, save, write_description

SHAPE, SPACING = (20, 16, 12), (1.0, 2.0, 3.0)


def box(start: tuple[int, int, int], size: tuple[int, int, int]) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))] = True
    return mask


def test_equal_masks() -> None:
    mask = box((3, 3, 3), (6, 5, 4))
    score = score_mask(mask, mask, SPACING, 0.0)
    assert (score.dice, score.nsd, score.hd95_mm, score.state) == (1, 1, 0, "ok")
    assert score.volume_reference_ml == pytest.approx(6 * 5 * 4 * 6 / 1000)


@pytest.mark.parametrize(("axis", "distance"), [(0, 1.0), (1, 2.0), (2, 3.0)])
def test_shift_by_one_voxel_is_measured_in_mm(axis: int, distance: float) -> None:
    start = [3, 3, 3]
    reference = box((3, 3, 3), (6, 6, 6))
    start[axis] += 1
    score = score_mask(box((start[0], start[1], start[2]), (6, 6, 6)), reference, SPACING, distance - 0.01)
    assert score.dice == pytest.approx(5 / 6)
    assert score.hd95_mm == pytest.approx(distance)
    assert score.nsd < 1
    assert score_mask(np.roll(reference, 1, axis), reference, SPACING, distance + 0.01).nsd == pytest.approx(1)


def test_a_mask_that_fills_the_volume_has_a_surface_at_its_border() -> None:
    full = np.ones(SHAPE, bool)
    score = score_mask(full, full, SPACING, 1.0)
    assert (score.dice, score.nsd, score.hd95_mm) == (1, 1, 0)


def test_empty_masks_never_help() -> None:
    empty, far, mask = np.zeros(SHAPE, bool), box((19, 15, 11), (1, 1, 1)), box((0, 0, 0), (1, 1, 1))
    missed = score_mask(empty, mask, SPACING, 1.0)
    poor = score_mask(far, mask, SPACING, 1.0)
    assert missed.state == "missed"
    assert missed.dice <= poor.dice
    assert missed.nsd <= poor.nsd
    assert missed.hd95_mm >= poor.hd95_mm
    assert score_mask(mask, empty, SPACING, 1.0).state == "false_positive"
    both = score_mask(empty, empty, SPACING, 1.0)
    assert both.state == "both_empty"
    assert all(math.isnan(v) for v in (both.dice, both.nsd, both.hd95_mm))


def test_evaluate_files(tmp_path: Path) -> None:
    mask = ball((16, 16, 16))[1]
    save(tmp_path / "labelsTr" / "a.nii.gz", mask)
    save(tmp_path / "labelsTr" / "b.nii.gz", mask * 0)
    save(tmp_path / "labelsTr" / "c.nii.gz", mask)
    save(tmp_path / "pred" / "a.nii.gz", mask)
    save(tmp_path / "pred" / "b.nii.gz", mask * 0)
    save(tmp_path / "pred" / "c.nii.gz", mask * 0)
    write_description(tmp_path)
    outputs = {"output_json": tmp_path / "m.json", "output_csv": tmp_path / "m.csv"}
    config = EvaluateConfig(tmp_path / "pred", tmp_path / "labelsTr", **outputs)
    evaluation = run(config)
    assert evaluation.labels == {"ball": 1}
    assert evaluation.mean("dice", "ball") == 0.5  # 1 and a miss; both empty is left out
    assert evaluation.counts("ball") == {"ok": 1, "missed": 1, "false_positive": 0, "both_empty": 1}
    written = json.loads(outputs["output_json"].read_text())
    assert written["classes"]["ball"]["dice"] == 0.5
    assert written["scores"][1]["dice"] is None
    lines = outputs["output_csv"].read_text().splitlines()
    assert len(lines) == 4
    assert lines[1].startswith("a,ball,1.0,1.0,0.0,")
    with pytest.raises(UserError, match=r"m\.json: exists already; .*--overwrite"):
        run(config)


def test_evaluate_refuses_what_it_cannot_compare(tmp_path: Path) -> None:
    mask = ball((16, 16, 16))[1]
    save(tmp_path / "ref" / "a.nii.gz", mask)
    save(tmp_path / "ref" / "b.nii.gz", mask)
    save(tmp_path / "pred" / "a.nii.gz", mask)
    with pytest.raises(UserError, match=r"pred: 1 reference case\(s\) have no prediction: \['b'\]; predict"):
        run(EvaluateConfig(tmp_path / "pred", tmp_path / "ref"))
    flipped = save(tmp_path / "flipped.nii.gz", mask, OBLIQUE @ np.diag([-1, 1, 1, 1]))
    with pytest.raises(UserError, match=r"flipped\.nii\.gz: affine differs"):
        run(EvaluateConfig(flipped, tmp_path / "ref" / "a.nii.gz"))
    with pytest.raises(UserError, match="nsd_tolerance_mm: -1 is not a distance; give 0 or more"):
        run(EvaluateConfig(flipped, flipped, nsd_tolerance_mm=-1))
