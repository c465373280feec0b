from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.surface_dice import compute_surface_dice
from rich.console import Console
from scipy.ndimage import gaussian_filter

from ssmvision.errors import UserError
from ssmvision.recipes.evaluation.lesions import Lesions, detect
from ssmvision.recipes.segmentation.config import EvaluateConfig
from ssmvision.recipes.segmentation.evaluate import run
from ssmvision.recipes.segmentation.metrics import score_mask
from ssmvision.recipes.segmentation.scores import METRICS, Evaluation
from ssmvision.recipes.segmentation.scores_table import print_table
from tests.recipes.synthetic import OBLIQUE, ball, save, write_description

SHAPE, SPACING = (20, 16, 12), (1.0, 2.0, 3.0)


def box(start: tuple[int, int, int], size: tuple[int, int, int]) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))] = True
    return mask


def test_surface_scores_are_monais() -> None:
    rng = np.random.default_rng(0)
    smooth = [gaussian_filter(rng.normal(size=SHAPE), 2) > 0.02 for _ in range(2)]
    score = score_mask(*smooth, SPACING, 2.0)
    p, r = (torch.from_numpy(np.pad(mask, 1))[None, None].float() for mask in smooth)
    options = {"include_background": True, "spacing": list(SPACING)}
    assert score.nsd == pytest.approx(float(compute_surface_dice(p, r, [2.0], **options)))
    assert score.hd95_mm == pytest.approx(float(compute_hausdorff_distance(p, r, percentile=95, **options)))


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


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_single_slice_has_outlines(axis: int) -> None:
    """A square in a larger one: their outlines are 3 pixels apart, although the larger one holds all of the smaller."""
    large, small = np.zeros((20, 20), bool), np.zeros((20, 20), bool)
    large[2:18, 2:18], small[5:15, 5:15] = True, True
    spacing = np.insert([2.0, 2.0], axis, 5.0).tolist()
    score = score_mask(*(np.expand_dims(mask, axis) for mask in (small, large)), spacing, 1.0)
    assert score.nsd == 0
    assert score.hd95_mm > 6


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
    assert (missed.lesions.f1, poor.lesions.f1) == (0, 0)
    huge = score_mask(np.ones(SHAPE, bool), mask, SPACING, 1.0)
    assert missed.volume_error_percent == -200
    assert abs(huge.volume_error_percent) < 200, "a miss is the largest relative error"
    made_up = score_mask(mask, empty, SPACING, 1.0)
    assert (made_up.volume_error_percent, made_up.lesions) == (200, Lesions(0, 0, 1, 1))
    both = score_mask(empty, empty, SPACING, 1.0)
    assert both.state == "both_empty"
    assert all(math.isnan(v) for v in (both.dice, both.nsd, both.hd95_mm, both.volume_error_percent, both.lesions.f1))


@pytest.mark.parametrize("metric", METRICS)
def test_a_miss_is_never_better_than_any_prediction(metric: str) -> None:
    """Means over cases, however bad the prediction that takes the place of the miss."""
    rng = np.random.default_rng(1)
    reference = box((3, 3, 3), (6, 5, 4))
    for prediction in (rng.random(SHAPE) < 0.5, rng.random(SHAPE) < 0.01, ~reference, box((19, 15, 11), (1, 1, 1))):
        better, worse = (
            Evaluation((score_mask(reference, reference, SPACING, 1.0, "0", "x"), other), {"x": 1}, 1.0).mean(metric)
            for other in (
                score_mask(prediction, reference, SPACING, 1.0, "1", "x"),
                score_mask(prediction & False, reference, SPACING, 1.0, "1", "x"),
            )
        )
        if metric in ("dice", "nsd"):
            assert better >= worse
        elif metric != "volume_error_ml":  # a volume in ml has no worst value, as the module says
            assert better <= worse


def test_lesions_are_matched_by_overlap_or_one_to_one() -> None:
    reference = box((0, 0, 0), (4, 4, 4)) | box((8, 0, 0), (4, 4, 4)) | box((15, 0, 0), (2, 2, 2))
    prediction = box((0, 0, 0), (4, 4, 3)) | box((8, 0, 0), (1, 1, 1)) | box((11, 3, 3), (1, 1, 1))
    prediction |= box((0, 10, 8), (2, 2, 2))
    found = detect(prediction, reference)
    assert found == Lesions(reference=3, found=2, predicted=4, false_positives=1)
    assert found.sensitivity == pytest.approx(2 / 3)
    assert found.f1 == pytest.approx(2 * (2 / 3) * (3 / 4) / (2 / 3 + 3 / 4))
    assert detect(prediction, reference, 0.01) == Lesions(3, 2, 4, 2), "a lesion takes one component"
    assert detect(prediction, reference, 0.5) == Lesions(3, 1, 4, 3)
    for min_iou in (0.0, 0.5):
        assert detect(prediction & False, reference, min_iou) == Lesions(3, 0, 0, 0)
        assert detect(prediction, reference & False, min_iou) == Lesions(0, 0, 4, 4)
    across = box((0, 0, 0), (12, 4, 4))
    assert detect(across, reference) == Lesions(3, 2, 1, 0)
    assert detect(across, reference, 0.3) == Lesions(3, 1, 1, 0)


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
    assert written["classes"]["ball"]["sd"]["dice"] == pytest.approx(0.5**0.5)
    assert written["classes"]["ball"]["lesions"]["sensitivity"] == 0.5
    lines = outputs["output_csv"].read_text().splitlines()
    assert len(lines) == 4
    assert lines[1].startswith("a,ball,1.0,1.0,0.0,")
    with pytest.raises(UserError, match=r"m\.json: exists already; .*--overwrite"):
        run(config)


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_never_cuts_a_number(width: int) -> None:
    score = score_mask(
        box((3, 3, 3), (6, 5, 4)), box((3, 3, 3), (6, 6, 4)), SPACING, 1.0, "a_rather_long_case", "liver"
    )
    text = io.StringIO()
    print_table(Evaluation((score,), {"liver": 1}, 1.0, failed={"b": "gone"}), Console(file=text, width=width))
    for needed in ("0.9091", f"{score.hd95_mm:.2f}", "0.72/0.86", "-18.2", "1/1 +0"):
        assert needed in text.getvalue()
    assert "not" in text.getvalue()


def test_evaluate_refuses_what_it_cannot_compare(tmp_path: Path) -> None:
    mask = ball((16, 16, 16))[1]
    save(tmp_path / "ref" / "a.nii.gz", mask)
    save(tmp_path / "ref" / "b.nii.gz", mask)
    save(tmp_path / "pred" / "a.nii.gz", mask)
    save(tmp_path / "ref" / "c.nii.gz", mask)
    (tmp_path / "pred" / "c.nii.gz").write_bytes((tmp_path / "ref" / "c.nii.gz").read_bytes()[:200])
    config = EvaluateConfig(tmp_path / "pred", tmp_path / "ref", output_json=tmp_path / "scores.json")
    with pytest.raises(UserError, match=r"2 of 3 case\(s\).*not in the means: .*'b' has no prediction.*c\.nii\.gz: "):
        run(config)
    written = json.loads((tmp_path / "scores.json").read_text())
    assert (list(written["failed"]), written["mean"]["dice"]) == (["b", "c"], 1.0), "the others are scored"
    with pytest.raises(UserError, match="none of the 3 reference"):
        run(EvaluateConfig(tmp_path, tmp_path / "ref"))
    flipped = save(tmp_path / "flipped.nii.gz", mask, OBLIQUE @ np.diag([-1, 1, 1, 1]))
    with pytest.raises(UserError, match=r"flipped\.nii\.gz: affine differs"):
        run(EvaluateConfig(flipped, tmp_path / "ref" / "a.nii.gz"))
    for bad, message in (
        ({"nsd_tolerance_mm": -1}, "nsd_tolerance_mm: -1 is not a distance; give 0 or more"),
        ({"nsd_tolerances_mm": {"label_2": 1.0}}, r"\['label_2'\] not among the classes \['label_1'\]"),
        ({"lesion_iou": 2}, "lesion_iou: 2 is not a share"),
    ):
        with pytest.raises(UserError, match=message):
            run(EvaluateConfig(flipped, flipped, **bad))
