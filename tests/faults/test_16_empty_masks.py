"""Fault 16: empty masks in loss and metrics have documented values, and a miss never improves a score."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ssmvision.recipes.segmentation.config import TrainerConfig
from ssmvision.recipes.segmentation.metrics import Score, score_mask
from ssmvision.recipes.segmentation.module import SegmentationModule
from tests.faults.common import cli, never_wrong
from tests.recipes.synthetic import save

SHAPE = (12, 14, 10)
SPACING = (1.0, 1.5, 2.0)
DIAGONAL = math.sqrt(sum((n * edge) ** 2 for n, edge in zip(SHAPE, SPACING, strict=True)))


def cube(first: int, edge: int = 4) -> NDArray[np.bool_]:
    mask = np.zeros(SHAPE, bool)
    mask[first : first + edge, 2 : 2 + edge, 2 : 2 + edge] = True
    return mask


NOTHING = np.zeros(SHAPE, bool)


def score(prediction: NDArray[np.bool_], reference: NDArray[np.bool_]) -> Score:
    return score_mask(prediction, reference, SPACING, 1.0)


@pytest.mark.fault(16, part="metrics: reference empty, prediction empty, both: the documented values and states")
def test_documented_values() -> None:
    both = score(NOTHING, NOTHING)
    assert both.state == "both_empty"
    assert all(math.isnan(value) for value in (both.dice, both.nsd, both.hd95_mm))
    for prediction, reference, state in ((NOTHING, cube(2), "missed"), (cube(2), NOTHING, "false_positive")):
        found = score(prediction, reference)
        assert (found.state, found.dice, found.nsd) == (state, 0.0, 0.0)
        assert found.hd95_mm == pytest.approx(DIAGONAL)
    right = score(cube(2), cube(2))
    assert (right.state, right.dice, right.nsd, right.hd95_mm) == ("ok", 1.0, 1.0, 0.0)


@pytest.mark.parametrize("edge", [1, 2, 4, 6])
@pytest.mark.fault(16, part="metrics: no prediction scores worse than a miss, wherever and however large it is")
def test_a_miss_is_the_worst(edge: int) -> None:
    reference, missed = cube(1), score(NOTHING, cube(1))
    for first in range(SHAPE[0] - edge + 1):
        found = score(cube(first, edge), reference)
        better = found.dice >= missed.dice and found.nsd >= missed.nsd and found.hd95_mm <= missed.hd95_mm
        never_wrong(better, f"a cube of {edge} at {first} scores worse than a miss: {found}")


@pytest.mark.fault(16, part="`evaluate`: leaving a structure out lowers Dice and NSD and raises HD95 of the summary")
def test_the_summary(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path / "reference" / f"{i}.nii.gz", cube(2).astype(np.uint8), np.diag([*SPACING, 1.0]))
    means = {}
    for kind, last in (("found", cube(4)), ("missed", NOTHING)):
        for i, mask in enumerate((cube(2), cube(3), last)):
            save(tmp_path / kind / f"{i}.nii.gz", mask.astype(np.uint8), np.diag([*SPACING, 1.0]))
        words = ("evaluate", tmp_path / kind, tmp_path / "reference", "--labels", "{cube: 1}")
        done = cli(*words, "--output_json", tmp_path / f"{kind}.json")
        assert done.status == 0, done.said
        means[kind] = json.loads((tmp_path / f"{kind}.json").read_text())["mean"]
    never_wrong(means["missed"]["dice"] < means["found"]["dice"], f"a miss improved Dice: {means}")
    never_wrong(means["missed"]["nsd"] < means["found"]["nsd"], f"a miss improved NSD: {means}")
    never_wrong(means["missed"]["hd95_mm"] > means["found"]["hd95_mm"], f"a miss improved HD95: {means}")


@pytest.mark.parametrize("batch_dice", [True, False])
@pytest.mark.fault(16, part="loss: finite without labels, predictions or both; falls towards what is right")
def test_the_loss(batch_dice: bool) -> None:
    network = torch.nn.Conv3d(1, 2, 1)
    module = SegmentationModule(network, TrainerConfig(batch_dice=batch_dice), {"b": 0, "cube": 1}, (12, 14, 10), {})
    sure = {True: 20.0, False: -20.0}
    values = {}
    for predicted in (True, False):
        for labelled in (True, False):
            label = torch.from_numpy((cube(2) if labelled else NOTHING)[None, None].astype(np.int64))
            mask = torch.from_numpy(cube(2))[None] if predicted else torch.zeros(1, *SHAPE, dtype=torch.bool)
            logits = torch.where(mask, sure[True], sure[False])
            outputs = torch.stack([-logits, logits], 1).requires_grad_()
            loss = module.loss([outputs, outputs[..., ::2, ::2, ::2]], label)
            loss.backward()
            assert bool(torch.isfinite(loss))
            assert outputs.grad is not None
            assert bool(torch.isfinite(outputs.grad).all())
            values[predicted, labelled] = float(loss.detach())
    never_wrong(values[True, True] < values[False, True], f"a miss has the lower loss: {values}")
    never_wrong(values[False, False] < values[True, False], f"an invention has the lower loss: {values}")
    assert values[True, True] == pytest.approx(0, abs=1e-3)
    assert values[False, False] == pytest.approx(0, abs=1e-3)
