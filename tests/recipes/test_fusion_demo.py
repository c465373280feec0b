"""The fusion demo in small: its pictures, its scores, and the whole of it on synthetic pairs."""

from __future__ import annotations

import csv
import dataclasses
import json
from importlib.util import find_spec as real_find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from ssmvision.errors import UserError
from ssmvision.recipes.fusion import demo, demo_data
from ssmvision.recipes.fusion.classical import METHODS
from ssmvision.recipes.fusion.config import ModelConfig, TrainerConfig
from ssmvision.recipes.fusion.demo_config import FusionDemoConfig
from ssmvision.recipes.fusion.demo_data import TaskData, load_task, simulated_focus
from ssmvision.recipes.fusion.demo_report import OURS
from ssmvision.recipes.fusion.pairs import ImagePair
from ssmvision.recipes.fusion.pictures import comparison_png, detail_box
from ssmvision.recipes.fusion.scores import TRUTH, Score, best_methods, mean_ranks, mean_scores, measure

pytestmark = pytest.mark.usefixtures("one_thread")

SHARP = cv2.GaussianBlur(np.random.default_rng(0).random((48, 60)), (0, 0), 1.0).astype(np.float32)


def tiny_task(task: str) -> TaskData:
    near, far = simulated_focus(SHARP, 0)
    seen = ImagePair("seen", f"{task} seen", near, far, SHARP)
    unseen = ImagePair("unseen", f"{task} unseen", far[::-1].copy(), near[::-1].copy(), SHARP[::-1].copy())
    return TaskData(f"Title of {task}", ("near", "far"), "Made up.", "One of each.", (seen,), (unseen,))


def settings(out: Path, **changes: Any) -> FusionDemoConfig:
    trainer = TrainerConfig(max_epochs=1, steps_per_epoch=2, batch_size=2, accelerator="cpu")
    config = FusionDemoConfig(
        out,
        tasks=("visible-nir", "multi-focus"),
        seeds=(0, 3),
        shipped=False,
        model=ModelConfig(dims=(8, 16), d_state=2),
        trainer=trainer,
        patch_size=(16, 16),
    )
    return dataclasses.replace(config, **changes)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> demo.FusionDemoResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "load_task", tiny_task)
        return demo.run(settings(tmp_path_factory.mktemp("demo") / "out"))


def test_every_pair_is_fused_by_every_method_and_seed(result: demo.FusionDemoResult) -> None:
    fusions = [(name, None) for name in METHODS] + [(OURS, 0), (OURS, 3)]
    assert [(s.method, s.seed) for s in result.scores] == 2 * fusions
    with (result.out / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(result.scores)
    for row, score in zip(rows, result.scores, strict=True):
        assert (row["task"], row["pair"], row["method"]) == (score.task, score.pair, score.method)
        assert float(row["Qabf"]) == pytest.approx(score.values["Qabf"], rel=1e-5)
    stored = json.loads((result.out / "scores.json").read_text())
    assert stored[-1]["values"] == result.scores[-1].values
    drawn = cv2.imread(str(result.out / "fused" / "multi-focus" / "1-average.png"), cv2.IMREAD_UNCHANGED)
    pair = tiny_task("multi-focus").tests[0]
    np.testing.assert_array_equal(drawn, np.rint(255 * ((pair.a + pair.b) / 2)))


def test_report_says_where_a_classical_method_is_first(result: demo.FusionDemoResult) -> None:
    text = result.report.read_text()
    best = best_methods([s for s in result.scores if s.task == "multi-focus"])
    assert "Who is first in what" in text
    assert set(best.values()) - {OURS}, "after two steps some classical method is first in something"
    for method in set(best.values()) - {OURS}:
        assert f"<td class=text>{method}</td>" in text
    assert "Not a medical device" in text
    assert "ssmvision fusion demo --out out --tasks" in text
    assert "http" not in text.split("<main>")[1].split("<footer>")[0], "nothing is loaded from elsewhere"
    assert str(result.out.parent) not in text


def test_earlier_networks_can_be_tested_again(
    result: demo.FusionDemoResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "load_task", tiny_task)
    again = demo.run(settings(tmp_path / "again", models=result.out))
    assert [s.values for s in again.scores] == [s.values for s in result.scores]
    assert not (tmp_path / "again" / "models").exists()
    assert "trained earlier" in again.report.read_text()
    with pytest.raises(UserError, match=r"holds a demo \(fused\); choose another --out or pass --overwrite"):
        demo.run(settings(tmp_path / "again"))
    with pytest.raises(UserError, match=r"seed-7: no such file"):
        demo.run(settings(tmp_path / "other", models=result.out, seeds=(7,)))
    with pytest.raises(UserError, match=r"seeds: \[1, 1\] is not possible"):
        settings(tmp_path, seeds=(1, 1))


def test_scores_are_averaged_over_pairs_within_each_seed() -> None:
    scores = [
        Score("t", pair, "net", seed, {"SSIM": value}, 0.0)
        for seed, pair, value in ((0, "p", 1.0), (0, "q", 2.0), (1, "p", 3.0), (1, "q", 3.0))
    ]
    scores += [Score("t", "p", "max", None, {"SSIM": 2.5}, 0.0), Score("t", "q", "max", None, {"SSIM": 2.5}, 0.0)]
    assert mean_scores(scores) == {"net": {"SSIM": (2.25, 1.5, 3.0)}, "max": {"SSIM": (2.5, 2.5, 2.5)}}
    assert best_methods(scores) == {"SSIM": "max"}
    assert mean_ranks(scores) == {"net": 2.0, "max": 1.0}


def test_a_perfect_fusion_is_told_from_the_truth() -> None:
    pair = tiny_task("multi-focus").tests[0]
    assert pair.truth is not None
    perfect, blurred = measure(pair, pair.truth), measure(pair, pair.a)
    assert perfect["SSIM of truth"] == pytest.approx(1)
    assert all(perfect[name] > blurred[name] for name in TRUTH)
    assert not set(TRUTH) & set(measure(dataclasses.replace(pair, truth=None), pair.a))


def test_simulated_focus_is_complementary() -> None:
    sharp = np.tile(SHARP, (4, 4))
    near, far = simulated_focus(sharp, 5)
    errors = [np.abs(image - sharp) for image in (near, far)]
    assert min(error.mean() for error in errors) > 0.02
    # Within the regions one image is exact; only along their edges are both blurred.
    assert (np.minimum(*errors) < 1e-3).mean() > 0.85
    again = simulated_focus(sharp, 5)
    np.testing.assert_array_equal(near, again[0])


def test_photographs_of_the_demo_are_two_scenes() -> None:
    data = load_task("multi-focus")
    assert {pair.group for pair in data.training} == {"china"}
    assert {pair.group for pair in data.tests} == {"flower"}
    assert data.tests[0].a.shape == (427, 640)
    assert all(pair.a.min() >= 0 and pair.a.max() <= 1 for pair in data.tests)


def test_sources_of_the_demo_are_named_where_they_are_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def hidden(name: str) -> Any:
        return None if name in ("spyndex", "hippunfold") else real_find_spec(name)

    monkeypatch.setattr(demo_data.importlib.util, "find_spec", hidden)
    with pytest.raises(UserError, match=r"hippunfold, which is not installed: pip install --no-deps hippunfold==0\.5"):
        load_task("t1-t2")
    with pytest.raises(UserError, match=r"spyndex, which is not installed: pip install --no-deps spyndex==0\.12"):
        load_task("visible-nir")

    package = tmp_path / "spyndex"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "data" / "S2_10m.json").write_text("[]")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(demo_data.importlib.util, "find_spec", lambda name: fake_spec(package))
    with pytest.raises(UserError, match=r"S2_10m\.json: SHA-256 is 4f53cda1"):
        load_task("visible-nir")


def fake_spec(package: Path) -> Any:
    import importlib.machinery

    spec = importlib.machinery.ModuleSpec("spyndex", None, is_package=True)
    spec.submodule_search_locations = [str(package)]
    return spec


def test_comparison_magnifies_where_there_is_most_to_see() -> None:
    image = np.full((40, 64), 0.5, np.float32)
    image[20:36, 40:56] = np.indices((16, 16)).sum(0) % 2
    row, column, side = detail_box(image, 16)
    assert (row, column, side) == (20, 40, 16)
    png = comparison_png({"a": image, "b": 1 - image, "c": image}, (row, column, side), columns=2, dpi=50)
    drawn = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert drawn.shape[1] == 550
    assert comparison_png({"a": image}, (0, 0, 8), 2) == comparison_png({"a": image}, (0, 0, 8), 2)
