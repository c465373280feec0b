"""The HTML report and its figures."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from ssmvision.errors import UserError
from ssmvision.recipes.segmentation.evaluate import Evaluation
from ssmvision.recipes.segmentation.figures import PLANES, Curve, Overlay, curves_png, cut_plane, overlay_png, to_ras
from ssmvision.recipes.segmentation.metrics import score_masks
from ssmvision.recipes.segmentation.report import (
    Facts,
    Highlight,
    Picture,
    Report,
    Row,
    Table,
    render_report,
    write_report,
)
from ssmvision.recipes.segmentation.report_parts import environment_facts, scores_table, settings_facts, training_curves

EVIL = '<script>alert("x")</script>&\''
ROUND = {"blob": 1}


def blob(shift: int = 0) -> np.ndarray:
    volume = np.zeros((10, 12, 8), dtype=np.uint8)
    volume[2 + shift : 6 + shift, 3:8, 2:5] = 1
    return volume


@pytest.fixture(scope="module")
def png() -> bytes:
    return curves_png([Curve("training", (1, 2, 3), (3.0, 2.0, 1.0), "Loss")])


def full_report(png: bytes, text: str = "plain") -> Report:
    return Report(
        title=text,
        summary=text,
        notices=(text,),
        highlights=(Highlight(text, text),),
        tables=(Table(text, (text, "b"), (Row((text, "1"), True), Row((text, "2"))), 1, 1, text),),
        figures=(Picture(png, text, text),),
        command=text,
        facts=(Facts(text, ((text, text),)), Facts(text, ((text, text),), folded=True)),
    )


class Collector(HTMLParser):
    """Every tag with its attributes, and unbalanced tags."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_report_refers_to_nothing_outside_itself(png: bytes) -> None:
    html = render_report(full_report(png))
    markup = re.sub(r"base64,[A-Za-z0-9+/=]+", "", html)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", markup, re.IGNORECASE)
    parser = Collector()
    parser.feed(html)
    assert parser.open == []
    assert {tag for tag, _ in parser.tags}.isdisjoint({"script", "link", "iframe", "object", "embed", "base"})
    sources = [a["src"] for _, a in parser.tags if "src" in a]
    assert [base64.b64decode((s or "").removeprefix("data:image/png;base64,"), validate=True) for s in sources] == [png]
    assert not [a for _, a in parser.tags if "href" in a or "srcset" in a]


def test_every_text_is_escaped(png: bytes) -> None:
    html = render_report(full_report(png, EVIL))
    assert "<script" not in html
    plain = render_report(full_report(png, "a-marker"))
    assert html.count("&lt;script&gt;") == plain.count("a-marker") > 10


def test_report_says_what_it_must(png: bytes) -> None:
    html = render_report(full_report(png))
    for text in ("not a medical device", "prefers-color-scheme: dark", "@media print", 'name="viewport"', 'lang="en"'):
        assert text in html


def test_report_needs_overwrite_to_replace_a_file(tmp_path: Path, png: bytes) -> None:
    path = write_report(tmp_path / "deep" / "report.html", full_report(png))
    before = path.read_text()
    with pytest.raises(UserError, match=r"report\.html: exists already.*--overwrite"):
        write_report(path, full_report(png, "other"))
    assert path.read_text() == before
    write_report(path, full_report(png, "other"), overwrite=True)
    assert "other" in path.read_text()
    assert [p.name for p in path.parent.iterdir()] == ["report.html"], "no temporary file is left"


def test_rows_and_pictures_are_checked() -> None:
    with pytest.raises(ValueError, match="2 columns, but a row has 1"):
        Table("t", ("a", "b"), (Row(("1",)),))
    with pytest.raises(ValueError, match="not a PNG"):
        Picture(b"GIF89a", "caption", "alt")


def evaluation(prediction: np.ndarray, tolerance: float = 1.0) -> Evaluation:
    return Evaluation(tuple(score_masks(prediction, blob(), ROUND, (1, 1, 2), tolerance, "case")), ROUND, tolerance)


def test_scores_table_sets_methods_side_by_side() -> None:
    table = scores_table({"ours": evaluation(blob()), "shifted": evaluation(blob(2))}, "ours")
    assert [row.cells[:6] for row in table.rows] == [
        ("case", "blob", "ours", "1.000", "1.000", "0.0"),
        ("case", "blob", "shifted", "0.500", table.rows[1].cells[4], "2.0"),
    ]
    assert [row.emphasis for row in table.rows] == [True, False]
    assert table.rows[0].cells[6:] == ("0.1", "0.1"), "60 voxels of 2 mm3 are 0.12 ml"


def test_scores_of_different_cases_are_not_put_side_by_side() -> None:
    with pytest.raises(ValueError, match="'b' and 'a' were not scored on the same"):
        scores_table({"a": evaluation(blob()), "b": evaluation(blob(), 2.0)}, "a")


def test_training_curves_skip_epochs_without_validation(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(
        "epoch,step,lr,seconds,train_loss,val_dice,val_dice_blob\n1,5,0.1,2,0.9,,\n2,10,0.1,4,0.5,0.7,0.7\n"
    )
    assert training_curves(path, "ours") == [
        Curve("ours training", (5.0, 10.0), (0.9, 0.5), "Loss"),
        Curve("ours blob", (10.0,), (0.7,), "Dice"),
    ]


@dataclass(frozen=True)
class Inner:
    rate: float = 0.5


@dataclass(frozen=True)
class Outer:
    name: str = "x"
    inner: Inner = field(default_factory=Inner)


def test_settings_are_listed_under_dotted_names() -> None:
    assert settings_facts(Outer()).items == (("name", "x"), ("inner.rate", "0.5"))
    with pytest.raises(TypeError, match="got int"):
        settings_facts(3)


def test_environment_names_hardware_and_versions() -> None:
    facts = dict(environment_facts().items)
    assert "threads" in facts["Processor"]
    assert re.search(r"torch \d", facts["Versions"])


def corner_volume(affine: np.ndarray) -> np.ndarray:
    """A volume whose one bright voxel lies rightmost, frontmost and topmost in the world, whatever the storage."""
    shape = (4, 5, 6)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    world = grid @ affine[:3, :3].T + affine[:3, 3]
    volume = np.zeros(shape, dtype=np.float32)
    volume[np.unravel_index(world.sum(-1).argmax(), shape)] = 1
    return volume


@pytest.mark.parametrize(
    "affine",
    [
        np.diag([1.0, 2, 3, 1]),
        np.diag([-1.0, -2, 3, 1]),
        np.diag([1.0, 2, 3, 1])[[2, 0, 1, 3]],
        np.diag([1.0, 2, -3, 1])[[1, 0, 2, 3]],
    ],
    ids=["RAS", "LPS", "permuted", "flipped"],
)
def test_pictures_are_radiological_for_every_storage_order(affine: np.ndarray) -> None:
    volume = corner_volume(affine)
    ras, spacing = to_ras(volume, affine)
    assert ras[-1, -1, -1] == 1, "rightmost, frontmost, topmost"
    np.testing.assert_allclose(sorted(spacing), [1, 2, 3])
    np.testing.assert_allclose(spacing, np.abs(affine[:3, :3]).sum(axis=1), err_msg="spacing in world order")
    for plane in PLANES:
        picture = cut_plane(ras, plane, ras.shape[plane.axis] - 1)
        assert picture[0, 0] == 1, f"{plane.name}: right or front is left, top is up"
        left, _, _, top = plane.letters
        assert (left, top) in {("R", "A"), ("R", "S"), ("A", "S")}


def test_overlay_shows_voxels_in_true_proportions() -> None:
    """A cube in mm is drawn square although its voxels are 1 x 1 x 3 mm."""
    labels = np.zeros((40, 40, 14), dtype=np.uint8)
    labels[11:29, 11:29, 4:10] = 1
    affine = np.diag([1.0, 1, 3, 1])
    data = overlay_png(np.ones(labels.shape) * np.arange(14), affine, [Overlay("labels", labels)], ROUND)
    picture = imread(io.BytesIO(data))
    sky_blue = (picture[..., 2] - picture[..., 0] > 0.2) & (picture[..., 1] > 0.2)
    rows = np.flatnonzero(sky_blue.sum(axis=1) > 20)
    blocks = [b for b in np.split(rows, np.flatnonzero(np.diff(rows) > 3) + 1) if len(b) > 20]
    assert len(blocks) == 3
    for block in blocks:
        columns = np.flatnonzero(sky_blue[block].sum(axis=0) > len(block) // 2)
        assert np.ptp(columns) == pytest.approx(np.ptp(block), rel=0.06)


def test_figures_are_the_same_bytes_again(png: bytes) -> None:
    assert png == curves_png([Curve("training", (1, 2, 3), (3.0, 2.0, 1.0), "Loss")])


def test_figures_refuse_what_they_cannot_draw() -> None:
    with pytest.raises(ValueError, match=r"wrong: label map has shape \(1, 1, 1\), the image \(10, 12, 8\)"):
        overlay_png(blob(), np.eye(4), [Overlay("wrong", np.zeros((1, 1, 1)))], ROUND)
    with pytest.raises(ValueError, match="at least one curve"):
        curves_png([])
