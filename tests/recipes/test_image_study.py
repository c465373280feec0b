"""`ssmvision study` of image classifiers: equal sizes, trainings, other resolutions, tables and figures."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

from ssmvision.cli import main
from ssmvision.errors import UserError
from ssmvision.recipes.classification.config import AugmentConfig, DataConfig, TrainerConfig
from ssmvision.recipes.classification.data import Scale
from ssmvision.recipes.classification.networks import build, count_all
from ssmvision.recipes.image_study import widths
from ssmvision.recipes.image_study.command import check_settings, run
from ssmvision.recipes.image_study.config import Entry, ImageStudyConfig
from ssmvision.recipes.image_study.cost import Cost
from ssmvision.recipes.image_study.figures import curves_figure, speed_figure, speed_png
from ssmvision.recipes.image_study.summary import Result, Study, markdown
from ssmvision.recipes.image_study.widths import matched_model

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = {"patch_size": 4, "depth": 1}


def write_pictures(path: Path) -> Path:
    """A MedMNIST file of 12 x 12 pictures whose class is which half is bright."""
    rng = np.random.default_rng(0)
    content = {}
    for part, count in (("train", 40), ("val", 10), ("test", 20)):
        labels = np.arange(count) % 2
        images = rng.integers(0, 60, (count, 12, 12))
        images[labels == 0, :, :6] += 150
        images[labels == 1, :, 6:] += 150
        content |= {f"{part}_images": images.astype(np.uint8), f"{part}_labels": labels[:, None].astype(np.uint8)}
    np.savez(path, **content)
    return path


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> ImageStudyConfig:
    """A finished study of two networks and a third that cannot be built, which the command says."""
    folder = tmp_path_factory.mktemp("images")
    entries = (
        Entry("ViT", "vit_tiny_patch16_224", {"embed_dim": 8, "num_heads": 2}, "attention"),
        Entry("No mixer", "ssm_iso_tiny", {"embed_dim": 8, "mixer": "none"}, "none"),
        Entry("strange", "ssm_iso_tiny", {"embed_dim": 8, "mixer": "nothing"}),
    )
    trainer = TrainerConfig(max_epochs=4, batch_size=10, lr=0.03, warmup_epochs=0.5, accelerator="cpu", threads=1)
    config = ImageStudyConfig(
        DataConfig(str(write_pictures(folder / "halves.npz"))),
        entries,
        folder / "out",
        arguments=SMALL,
        seeds=(0, 1),
        augment=AugmentConfig(library="batched", shift=1, mixup=0.1),
        trainer=trainer,
        resolutions=(12, 20, 3),
        inference_batch=4,
    )
    with pytest.raises(
        UserError, match=r"1 of the costs and trainings failed; .*strange: .*mixer='nothing' is unknown"
    ):
        run(config)
    return replace(config, entries=entries[:2])


def test_every_training_is_scored_at_every_resolution(study: ImageStudyConfig) -> None:
    rows = list(csv.DictReader((study.out / "scores.csv").read_text().splitlines()))
    found = {(row["entry"], row["seed"], row["height"]): row["accuracy"] for row in rows}
    assert len(found) == 2 * 2 * 4
    for (entry, seed, height), accuracy in found.items():
        if height in ("", "12"):
            assert accuracy == found[entry, seed, ""]
            assert float(accuracy) > 0.8  # the halves are easily told apart
        elif height == "20":
            assert float(accuracy) > 0.5
        else:
            assert accuracy == ""  # smaller than a patch
    text = (study.out / "results.md").read_text()
    assert "4 of 6 trainings finished" in text
    assert "| refused |" in text
    assert "- No mixer, 3: ValueError: IsotropicSSM takes images" in text
    for name in ("curves.png", "speed.png"):
        assert (study.out / name).read_bytes().startswith(b"\x89PNG")
    costs = json.loads((study.out / "study.json").read_text())["costs"]
    assert costs["ViT"]["macs"] > costs["No mixer"]["macs"] > 0
    assert not list(study.out.rglob("*.ckpt*"))


def test_finished_trainings_are_kept_and_a_lost_one_is_trained_again(study: ImageStudyConfig) -> None:
    weights = {path: path.stat().st_mtime_ns for path in study.out.rglob("model.safetensors")}
    assert len(weights) == 4
    lost = study.out / "runs" / "vit" / "seed_1" / "scores.json"
    before = json.loads(lost.read_text())
    lost.unlink()
    assert run(study) == study.out / "results.md"
    changed = [path for path, time in weights.items() if path.stat().st_mtime_ns != time]
    assert changed == [lost.parent / "model" / "model.safetensors"]
    assert json.loads(lost.read_text())["accuracy"] == before["accuracy"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": ()}, r"seeds: \[\] is empty or names one twice"),
        ({"entries": (Entry("A b", "m"), Entry("a-b", "m"))}, r"entries: \['a-b', 'a-b'\] is empty or names one twice"),
        ({"trainer": TrainerConfig(seed=1)}, r"trainer\.seed: the study sets it; give seeds"),
        ({"trainer": TrainerConfig(max_minutes=5.0)}, r"max_minutes: 5\.0 would give networks unequal steps"),
        ({"resolutions": (28, 0)}, r"resolutions: 0 is not possible; give 1 or more"),
        ({"costs_only": True, "report_only": True}, r"both are set; give one of them"),
        ({"augment": AugmentConfig(library="batched", brightness=0.1)}, r"augment\.library: batched is not possible"),
    ],
)
def test_settings_that_do_not_fit(study: ImageStudyConfig, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_settings(replace(study, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("entry", "wanted"),
    [
        (Entry("flat", "ssm_iso_tiny", {"mixer": "dwconv", **SMALL}), 30_000),
        (Entry("staged", "ssm_hier_tiny", {"mixer": "dwconv", "dims": [8, 20], "depths": [1, 1]}, width_step=4), 5000),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_widths_have_the_number_of_parameters_that_is_nearest(
    study: ImageStudyConfig, entry: Entry, wanted: int
) -> None:
    config, scale = replace(study, arguments={}, match_parameters=wanted), Scale((12, 12), (0.5,), (0.5,))
    model = matched_model(config, entry, ("a", "b"), scale)
    key = "dims" if "dims" in model.arguments else "embed_dim"
    found = model.arguments[key]
    width = found if key == "embed_dim" else found[0]
    assert width % entry.width_step == 0
    sizes = {}
    for change in (-entry.width_step, 0, entry.width_step):
        dims = (width + change) if key == "embed_dim" else [width + change, 5 * (width + change) // 2]
        other = replace(model, arguments={**model.arguments, key: dims})
        sizes[change] = count_all(build(other, ("a", "b"), scale)[0])
    assert sizes[0] == count_all(build(model, ("a", "b"), scale)[0])
    assert min(sizes, key=lambda change: abs(sizes[change] - wanted)) == 0


def test_widths_end_somewhere(study: ImageStudyConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(widths, "WIDEST", 32)
    with pytest.raises(UserError, match=r"ViT has .* at most; give fewer"):
        matched_model(replace(study, match_parameters=10**9), study.entries[0], ("a", "b"), Scale((12, 12), (0,), (1,)))


def test_tables_hold_differences_to_the_first_entry_and_figures_every_point() -> None:
    entries = (Entry("A", "a"), Entry("B", "b", group="convolution"), Entry("C", "c"))
    values = {"A": (0.5, 0.7), "B": (0.6, 0.6), "C": (0.9,)}
    results = tuple(
        Result(name, seed, value, {"56": "ValueError: too large"}, 10, 1.0, ((1.0, value),))
        for name, found in values.items()
        for seed, value in enumerate(found)
    )
    cost = Cost(10, 2_000_000, 2.0, 100.0, 1000.0, 1.0, 3.2, "recorded", "GPU")
    made = Study(entries, results, {"A": cost, "B": replace(cost, inference_per_s=1e5, graph="not possible")}, (56,))
    text = " ".join(markdown(made).split())
    # Standard error of two means of two seeds: sqrt(0.02 / 2).
    assert "| B | convolution | 60.00 ± 0.00 | +0.00 ± 10.00 | 2 |" in text
    assert "| C | state space | 90.00 | - | 1 |" in text
    assert "| A | 10 | 0.0020 | 2.00 G | 100 | 1,000 | 1.00 | 3 |" in text
    assert "| C | - | - |" in text
    assert "| B | 10 | 0.0020 | 2.00 | 100 |" in text
    assert "Trained without CUDA graphs: - B: not possible" in text
    assert "- C, 56: ValueError: too large" in text
    assert speed_png(made) != speed_png(replace(made, results=results[2:]))


def made_study(values: dict[str, tuple[float, float, float]]) -> Study:
    """A study of two seeds: by entry its mean accuracy and deviation in percent, and its pictures a second."""
    cost = Cost(10, 2_000_000, 2.0, 100.0, 1000.0, 1.0, 3.2, "recorded", "GPU")
    results = tuple(
        Result(name, seed, value, {}, 10, 1.0, tuple((float(epoch), value * epoch / 4) for epoch in range(1, 5)))
        for name, (mean, deviation, _) in values.items()
        for seed, value in enumerate((mean + sign * deviation / 2**0.5) / 100 for sign in (-1, 1))
    )
    costs = {name: replace(cost, inference_per_s=speed) for name, (_, _, speed) in values.items()}
    return Study(tuple(Entry(name, "m") for name in values), results, costs, ())


def crowded() -> dict[str, tuple[float, float, float]]:
    """25 entries, most of them close together, two at the same place and one far below."""
    rng = np.random.default_rng(0)
    values = {f"entry {i} of many": (86 + rng.normal(), 0.3, 1e5 * 2 ** rng.normal()) for i in range(23)}
    return {**values, "twin": next(iter(values.values())), "far": (59.0, 4.0, 1e5)}


def written(figure: Figure) -> dict[str, Bbox]:
    """The boxes of the names in pixels, without the lines to their points."""
    figure.draw_without_rendering()
    return {text.get_text(): Text.get_window_extent(text) for text in figure.axes[0].texts}


def drawn_boxes(figure: Figure) -> list[Bbox]:
    """Markers of 6 points and error bars in pixels."""
    axes, half = figure.axes[0], 3 * figure.dpi / 72
    boxes = []
    for line in axes.get_lines():  # markers, and the caps of the error bars
        reach = half if line.get_marker() != "_" else 1.0
        for x, y in axes.transData.transform(line.get_xydata()):
            boxes.append(Bbox([(x - half, y - reach), (x + half, y + reach)]))
    segments = [segment for bars in axes.collections for segment in bars.get_segments()]  # type: ignore[attr-defined]
    return boxes + [Bbox(axes.transData.transform(segment)).padded(0.5) for segment in segments]


@pytest.mark.parametrize("count", [1, 5, 25])
def test_names_cover_no_name_no_point_and_no_error_bar(count: int) -> None:
    figure = speed_figure(made_study(dict(list(crowded().items())[-count:])))
    names, drawn = written(figure), drawn_boxes(figure)
    assert len(names) == count
    boxes = list(names.values())
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]
    assert not [(name, other) for name, box in names.items() for other in drawn if box.overlaps(other)]
    area = figure.axes[0].bbox
    assert all(area.containsx(x) and area.containsy(y) for box in boxes for x, y in box.corners())
    for text in figure.axes[0].texts:
        assert isinstance(text, Annotation)
        x, y = figure.axes[0].transData.transform(text.xy)
        box = names[text.get_text()]
        apart = np.hypot(x - np.clip(x, box.x0, box.x1), y - np.clip(y, box.y0, box.y1))
        assert apart < figure.bbox.height / 7


def test_an_entry_far_below_the_others_leaves_them_their_room() -> None:
    values = crowded()
    figure = speed_figure(made_study(values))
    bottom, top = figure.axes[0].get_ylim()
    assert bottom > 80
    assert top < 95
    assert "far 59.0" in written(figure)
    assert "below the scale" in [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    # Small differences between equal entries are not far.
    even = speed_figure(made_study({f"e{i}": (80.0 - (i == 3), 0.1, 1000.0 * (1 + i)) for i in range(6)}))
    assert set(written(even)) == {f"e{i}" for i in range(6)}


def test_curves_are_listed_from_the_best_over_whole_epochs() -> None:
    study = made_study({"low": (70, 1, 1e3), "high": (90, 1, 1e3), "far": (10, 1, 1e3), "middle": (80, 1, 1e3)})
    figure = curves_figure(replace(study, entries=(*study.entries, Entry("not trained", "m"))))
    figure.draw_without_rendering()
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["high", "middle", "low", "far"]
    assert all(float(tick).is_integer() for tick in axes.get_xticks())
    # The many values around 60 % leave no room for one that ends at 10 %.
    close = {f"e{i}": (60.0, 0.0, 1e3) for i in range(9)}
    flat = made_study({**close, "far": (10.0, 0.0, 1e3)})
    flat = replace(flat, results=tuple(replace(r, curve=((1.0, r.accuracy), (2.0, r.accuracy))) for r in flat.results))
    names = [text.get_text() for text in curves_figure(flat).axes[0].get_legend().get_texts()]
    assert names[-1] == "far (below, 10.0)"


def test_a_task_chooses_the_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["study", "--config", "study/fashion_mnist.yaml", "--out", str(tmp_path / "out"), "--seeds", "[1, 1]"]
    assert main(words) == 2
    assert "seeds: [1, 1] is empty or names one twice" in capsys.readouterr().err
