"""Two tiny folds through validate, postprocess, predict and report, on the command line."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest

from ssmvision.cli import main
from ssmvision.errors import UserError
from ssmvision.recipes.evaluation.config import ValidateConfig
from ssmvision.recipes.evaluation.lesions import Lesions
from ssmvision.recipes.evaluation.pictures import contours_png, largest_error
from ssmvision.recipes.evaluation.pooling import Pool, Result, folds_of, pool
from ssmvision.recipes.evaluation.runs import open_run, open_runs
from ssmvision.recipes.evaluation.validate import run as validate
from ssmvision.recipes.segmentation import train
from ssmvision.recipes.segmentation.config import DataConfig, ModelConfig, TrainConfig, TrainerConfig
from ssmvision.recipes.segmentation.metrics import Score
from ssmvision.recipes.segmentation.scores import Rules
from tests.recipes.synthetic import OBLIQUE, nnunet_folder, save

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPES = [(20, 18, 14), (18, 20, 16), (20, 20, 14)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nnunet_folder(tmp_path_factory.mktemp("raw"), SHAPES)


@pytest.fixture(scope="module")
def runs(root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folds that hold out case_0 and case_2, predicted and scored."""
    out = tmp_path_factory.mktemp("runs") / "ball"
    model = ModelConfig(features_per_stage=(4, 8), n_conv_per_stage=1, n_conv_per_stage_decoder=1, mixer="none")
    trainer = TrainerConfig(
        max_epochs=2, steps_per_epoch=8, lr=0.05, momentum=0.9, validate_every=1, accelerator="cpu", threads=1
    )
    folders = []
    for i, case in enumerate(("case_0", "case_2")):
        data = DataConfig(root, validation_cases=(case,))
        config = TrainConfig(data, out / f"fold{i}", model, trainer=trainer, patch_size=(16, 16, 8))
        folders.append(train.run(config).out)
    assert main(["validate", str(out), "--threads", "1"]) == 0, "the folder that holds the folds stands for them"
    return folders


def test_sets_held_out_without_a_fold_are_numbered_from_one() -> None:
    held_out = ((0, ("a",)), (None, ("b",)), (None, ("c",)), (None, ("b",)))
    runs: list[Any] = [
        SimpleNamespace(settings={"data": {"fold": fold}}, split=SimpleNamespace(validation=cases))
        for fold, cases in held_out
    ]
    assert folds_of(runs) == ["0", "set 1", "set 2", "set 1"]


def test_every_fold_predicts_what_it_held_out(root: Path, runs: list[Path]) -> None:
    for folder, case in zip(runs, ("case_0", "case_2"), strict=True):
        found = nibabel.load(folder / "validation" / f"{case}.nii.gz")
        np.testing.assert_array_equal(found.affine, nibabel.load(root / "labelsTr" / f"{case}.nii.gz").affine)
        content = json.loads((folder / "validation" / "scores.json").read_text())
        assert [row["case"] for row in content["scores"]] == [case]
        assert content["weights_sha256"] == json.loads((folder / "model.json").read_text())["sha256"]
        assert case not in (folder / "model.json").read_text(), "ids are file names, which a model is passed on without"
    pooled = pool(open_runs(runs), [open_run(folder).evaluation() for folder in runs])
    dice = pooled.summary("dice", "UMambaBot (none)", "ball")
    assert (dice.cases, dice.folds, dice.seeds) == (2, 2, 1)
    assert dice.mean > 0.3


def test_validate_keeps_finished_cases_and_refuses_to_mix(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = runs[0] / "validation" / "case_0.nii.gz"
    before = path.stat().st_mtime_ns
    scores = (runs[0] / "validation" / "scores.json").read_text()
    validate(ValidateConfig((runs[0],)))
    assert path.stat().st_mtime_ns == before
    assert (runs[0] / "validation" / "scores.json").read_text() == scores
    assert "kept      1 prediction(s) of the same weights" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"made_with\.json: predictions there were made with .*--overwrite"):
        validate(ValidateConfig((runs[0],), tta="mirror"))


def test_a_bad_case_leaves_the_others_standing(
    runs: list[Path], root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fold = tmp_path / "fold"
    fold.mkdir()
    for name in ("model.json", "model.safetensors", "config.json"):
        (fold / name).write_bytes((runs[0] / name).read_bytes())
    split = {"training": ["case_1"], "validation": ["case_0", "case_2"]}
    (fold / "split.json").write_text(json.dumps(split))
    broken = tmp_path / "data"
    nnunet_folder(broken, SHAPES)
    image = broken / "imagesTr" / "case_2_0000.nii.gz"
    image.write_bytes(image.read_bytes()[:500])
    assert main(["validate", str(fold), "--data", str(broken), "--threads", "1"]) == 2
    assert "1 case(s) failed and are not in the means" in capsys.readouterr().err
    content = json.loads((fold / "validation" / "scores.json").read_text())
    assert [row["case"] for row in content["scores"]] == ["case_0"]
    assert "case_2_0000.nii.gz" in content["failed"]["case_2"]
    assert main(["postprocess", str(fold), "--data", str(broken)]) == 2
    assert "1 held-out case(s) have no scores: ['case_2']" in capsys.readouterr().err
    (fold / "split.json").write_text(json.dumps({"training": ["case_0", "case_1"], "validation": ["case_0"]}))
    assert main(["postprocess", str(fold)]) == 2
    assert "were trained on (fold all)" in capsys.readouterr().err
    (fold / "split.json").write_text(json.dumps({"training": ["case_0"], "validation": ["gone"]}))
    assert main(["validate", str(fold)]) == 2
    assert "held-out case(s) ['gone']" in capsys.readouterr().err


def test_the_rule_is_decided_kept_and_applied(
    runs: list[Path], root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stray voxels in the held-out predictions make the rule; predict then applies it and says so."""
    for folder, case in zip(runs, ("case_0", "case_2"), strict=True):
        path = folder / "validation" / f"{case}.nii.gz"
        labels = np.asanyarray(nibabel.load(root / "labelsTr" / f"{case}.nii.gz").dataobj).copy()
        labels[0, 0, :3] = 1
        save(path, labels)
    own = tmp_path / "rule.json"
    assert main(["postprocess", *map(str, runs), "--out", str(own)]) == 0
    assert "keeps only the largest component of all classes together" in capsys.readouterr().err
    content = json.loads(own.read_text())
    assert content["keep_largest_component"] == {"foreground": True, "classes": []}
    assert content["dice"]["ball"]["after"] == 1
    assert main(["postprocess", *map(str, runs)]) == 2
    assert "exists already" in capsys.readouterr().err

    source = root / "imagesTr" / "case_1_0000.nii.gz"
    for choice, name in (("auto", "a"), ("none", "n"), (str(own), "f")):
        command = ["predict", str(runs[0]), str(source), str(tmp_path / f"{name}.nii.gz"), "--postprocessing", choice]
        assert main([*command, "--ensemble", f"[{runs[1]}]", "--threads", "1"]) == 0
        said = "post-processing keeps only the largest component of all" in capsys.readouterr().err
        assert said == (choice != "none")
    processed, raw, by_file = (np.asanyarray(nibabel.load(tmp_path / f"{n}.nii.gz").dataobj) for n in "anf")
    np.testing.assert_array_equal(processed, by_file)
    assert not (processed > raw).any()
    assert main(["report", *map(str, runs), "--out", str(tmp_path / "r.html"), "--pictures", "0"]) == 0
    assert "prediction keeps only the largest component of all classes together" in (tmp_path / "r.html").read_text()
    for folder in runs:
        (folder / "postprocessing.json").unlink()


def test_the_report_holds_everything_and_names_nobody(
    runs: list[Path], root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ball.html"
    command = ["report", *map(str, runs), "--out", str(out), "--pictures", "1"]
    assert main(command) == 0
    text = out.read_text()
    words = ("2 trainings of 1 network", "One seed of", "UMambaBot (none)", "sd of folds", "case 2", "trainer.lr")
    assert [word for word in words if word not in text] == []
    assert text.count("data:image/png;base64,") == 3, "distributions, one worst case, curves"
    for private in ("case_0", "case_2", root.name, str(tmp_path), runs[0].name):
        assert private not in text
    lines = out.with_suffix(".csv").read_text().splitlines()
    assert lines[0].startswith("method,run,fold,seed,case,label,dice,nsd,hd95_mm,")
    assert [line.split(",")[:5] for line in lines[1:]] == [
        ["UMambaBot (none)", f"ball/fold{i}", f"set {i + 1}", "0", case] for i, case in enumerate(("case_0", "case_2"))
    ]
    content = json.loads(out.with_suffix(".json").read_text())
    dice = content["methods"]["UMambaBot (none)"]["classes"]["ball"]["dice"]
    values = [float(line.split(",")[6]) for line in lines[1:]]
    assert dice["mean"] == pytest.approx(np.mean(values))
    assert dice["sd_cases"] == pytest.approx(np.std(values, ddof=1))
    assert content["names_in_the_report"]["cases"] == {"case_0": "case 1", "case_2": "case 2"}
    assert main(command) == 2
    assert "exists already" in capsys.readouterr().err
    assert main([*command, "--overwrite", "--case_names", "true", "--pictures", "0"]) == 0
    assert "case_2" in out.read_text()
    card = json.loads((runs[0] / "model.json").read_text())
    scores = runs[0] / "validation" / "scores.json"
    before = scores.read_text()
    scores.write_text(before.replace(card["sha256"], "other"))
    assert main([*command, "--overwrite"]) == 2
    assert "the scores of other weights" in capsys.readouterr().err
    scores.write_text(before)


def test_runs_that_cannot_be_compared_are_refused(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run folder given"):
        open_runs([])
    with pytest.raises(UserError, match="fold0: given twice"):
        open_runs([runs[0], runs[0]])
    with pytest.raises(UserError, match=r"none: no such folder; give the folder of a finished training"):
        open_run(tmp_path / "none")
    both = open_runs(runs)
    scores = [run.evaluation() for run in both]
    with pytest.raises(UserError, match="names: 1 given for 2 runs"):
        pool(both, scores, ["x"])
    twin = dataclasses.replace(both[1], split=both[0].split)
    with pytest.raises(UserError, match=r"fold1: UMambaBot \(none\), fold set 1, seed 0 is also what .*fold0 is"):
        pool([both[0], twin], scores)
    assert pool([both[0], twin], scores, ["x", "y"]).methods == ["x", "y"]
    other = dataclasses.replace(scores[1], rules=dataclasses.replace(scores[1].rules, lesion_iou=0.5))
    with pytest.raises(UserError, match="NSD tolerance or lesion rule differ"):
        pool(both, [scores[0], other])


def result(fold: str, seed: int, case: str, dice: float, state: str = "ok") -> Result:
    score = Score(case, "x", dice, dice, 1 - dice, 1.0, 2.0, state, Lesions(2, 1, 3, 2))  # type: ignore[arg-type]
    return Result(1, "net", "run", fold, seed, score)


def test_spreads_of_cases_folds_and_seeds_are_kept_apart() -> None:
    rows = (
        *(result("0", 0, "a", 0.8), result("0", 0, "b", 0.6), result("1", 0, "c", 0.4)),
        *(result("0", 1, "a", 0.6), result("0", 1, "b", 0.6), result("0", 0, "empty", math.nan, "both_empty")),
    )
    pooled = Pool(rows, {"x": 1}, Rules(), ())
    summary = pooled.summary("dice", "net", "x")
    assert summary.mean == pytest.approx((0.7 + 0.6 + 0.4) / 3), "a case of two seeds counts once"
    assert (summary.cases, summary.folds, summary.seeds) == (3, 2, 2)
    assert summary.sd_cases == pytest.approx(np.std([0.7, 0.6, 0.4], ddof=1))
    assert summary.sd_folds == pytest.approx(np.std([0.65, 0.4], ddof=1))
    assert summary.sd_seeds == pytest.approx(np.std([0.7, 0.6], ddof=1)), "over the cases that both seeds predicted"
    assert pooled.summary("volume_error_ml", "net", "x").mean == 1.0, "the size of the error"
    assert pooled.lesions("net", "x") == Lesions(12, 6, 18, 12)
    alone = Pool(rows[:1], {"x": 1}, Rules(), ()).summary("dice", "net", "x")
    assert all(math.isnan(sd) for sd in (alone.sd_cases, alone.sd_folds, alone.sd_seeds))


def test_the_worst_slice_goes_through_the_largest_error() -> None:
    reference = np.zeros((12, 14, 16), np.uint8)
    reference[2:6, 2:6, 2:6] = 1
    prediction = reference.copy()
    prediction[2, 2, 2] = 0
    prediction[8:10, 9:11, 10:13] = 2
    error = largest_error(reference, prediction)
    assert np.argwhere(error).min(0).tolist() == [8, 9, 10]
    assert int(error.sum()) == 12
    np.testing.assert_array_equal(largest_error(reference, reference), reference > 0)
    image, classes = np.zeros(reference.shape, np.float32), {"background": 0, "x": 1, "y": 2}
    drawn = contours_png(image, OBLIQUE, reference, prediction, classes)
    assert drawn != contours_png(image, OBLIQUE, reference, reference, classes)
    assert contours_png(image[..., :1], OBLIQUE, reference[..., :1], prediction[..., :1], classes)
    with pytest.raises(ValueError, match=r"shapes .*\(12, 14, 15\); expected equal ones"):
        contours_png(image, OBLIQUE, reference, prediction[..., 1:], classes)
