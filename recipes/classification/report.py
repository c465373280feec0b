"""The report on a classifier: one HTML file that needs nothing else."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from ssmvision.recipes.classification.callbacks import HISTORY
from ssmvision.recipes.classification.figures import Example, calibration_png, confusion_png, roc_png, saliency_png
from ssmvision.recipes.classification.metrics import Roc, Scores
from ssmvision.recipes.classification.networks import SavedModel, count_all
from ssmvision.recipes.segmentation.figures import Curve, curves_png
from ssmvision.recipes.segmentation.report import Highlight, Picture, Report, Row, Table, write_report
from ssmvision.recipes.segmentation.report_parts import environment_facts, settings_facts

__all__ = ["Material", "make_report", "write_classification_report"]

CURVES = {
    "train_loss": ("training", "Loss"),
    "val_loss": ("validation", "Loss"),
    "val_accuracy": ("accuracy", "Validation"),
    "val_balanced_accuracy": ("balanced accuracy", "Validation"),
}


_MEANINGS = {
    "accuracy": ("Accuracy", "share that is classified rightly"),
    "top5": ("Top-5 accuracy", "right class among the five most probable"),
    "balanced_accuracy": ("Balanced accuracy", "mean sensitivity of the classes"),
    "macro_f1": ("Mean F1", "mean over the classes"),
    "macro_auc": ("Mean AUC", "mean area under the one-against-all ROC curves"),
    "log_loss": ("Log loss", "mean negative log probability of the right class, nats"),
    "brier": ("Brier score", "squared distance from the right answer, 0 to 2"),
    "ece": ("Expected calibration error", "mean distance of accuracy from confidence over the intervals below"),
    "mce": ("Largest calibration error", "in one of these intervals"),
}


@dataclass(frozen=True)
class Material:
    """What a report is made of.

    Args:
        scores: of the pictures.
        curves: ROC curves.
        examples: pictures to show.
        saved: the model.
        part: "test" or "validation".
        run: run folder, for the training curves.
        volumes: scores of whole volumes, where pictures are slices of them.
    """

    scores: Scores
    curves: tuple[Roc, ...]
    examples: tuple[Example, ...]
    saved: SavedModel
    part: str
    run: Path
    volumes: Scores | None = None


def write_classification_report(path: Path, material: Material) -> Path:
    """Writes it, over an older one."""
    return write_report(path, make_report(material), overwrite=True)


def make_report(material: Material) -> Report:
    """All of the report."""
    scores, spec = material.scores, material.saved.spec
    size = "x".join(str(n) for n in spec.scale.size)
    low, high = (100 * value for value in scores.accuracy_95)
    return Report(
        title=f"Classification into {len(spec.classes)} classes by {spec.name}",
        summary=(
            f"{scores.pictures:,} {material.part} pictures{_volumes_told(material)}, seen at {size} pixels in "
            f"{len(spec.scale.mean)} channel(s); {count_all(material.saved.network):,} parameters."
        ),
        notices=_notices(material),
        highlights=(
            *_volume_highlights(material.volumes),
            Highlight(f"{100 * scores.accuracy:.2f} %", f"accuracy (95 %: {low:.2f} to {high:.2f})"),
            Highlight(f"{100 * scores.balanced_accuracy:.2f} %", "balanced accuracy"),
            Highlight(_number(scores.macro_auc), "mean area under the ROC curve"),
            Highlight(_number(scores.ece), "expected calibration error"),
        ),
        tables=(_overall(scores, material.volumes), _classes(scores), _bins(scores)),
        figures=_figures(material),
        command="ssmvision classify evaluate RUN",
        facts=(
            environment_facts(),
            settings_facts(material.saved.training, "Training"),
            settings_facts(_spec(material)),
        ),
    )


def _volumes_told(material: Material) -> str:
    return f", slices of {material.volumes.pictures:,} volumes" if material.volumes is not None else ""


def _volume_highlights(volumes: Scores | None) -> tuple[Highlight, ...]:
    if volumes is None:
        return ()
    low, high = (100 * value for value in volumes.accuracy_95)
    return (Highlight(f"{100 * volumes.accuracy:.2f} %", f"accuracy of volumes (95 %: {low:.2f} to {high:.2f})"),)


def _spec(material: Material) -> dict[str, object]:
    spec = material.saved.spec
    return {"network": spec.name, "arguments": spec.arguments, "mean": spec.scale.mean, "std": spec.scale.std}


def _notices(material: Material) -> tuple[str, ...]:
    notices, training = [], material.saved.training
    if material.part == "validation":
        chosen = training.get("saved_epoch") != training.get("epochs")
        notices.append(
            "These are validation pictures"
            + (", which also chose the epoch whose weights were kept" if chosen else "")
            + "; scores of pictures that nobody looked at while training may be lower."
        )
    kind, counted = ("picture", material.scores) if material.volumes is None else ("volume", material.volumes)
    absent = [one.name for one in counted.classes if not one.pictures]
    if absent:
        notices.append(f"No {kind} is of {', '.join(absent)}; means over the classes leave them out.")
    few = [one.name for one in counted.classes if 0 < one.pictures < 10]
    if few:
        notices.append(f"Fewer than 10 {kind}s are of {', '.join(few)}; their scores say little.")
    notices.append("One training with one seed: how far the scores depend on chance in training is not known.")
    return tuple(notices)


def _number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _overall(scores: Scores, volumes: Scores | None) -> Table:
    columns = [one for one in (scores, volumes) if one is not None]
    rows = tuple(
        Row((name, meaning, *(_number(getattr(one, key)) for one in columns)))
        for key, (name, meaning) in _MEANINGS.items()
        if scores.top5 is not None or key != "top5"
    )
    if volumes is None:
        return Table("Scores", ("Score", "What it is", "Value"), rows, text_columns=2)
    caption = "A volume has the mean probabilities of its slices. Slices of one volume are alike: count the volumes."
    return Table("Scores", ("Score", "What it is", "Slices", "Volumes"), rows, caption=caption, text_columns=2)


def _classes(scores: Scores) -> Table:
    rows = tuple(
        Row(
            (
                one.name,
                str(one.pictures),
                *(_number(v, 3) for v in (one.sensitivity, one.specificity, one.precision, one.f1)),
                *(_number(v) for v in (one.auc, one.average_precision)),
            )
        )
        for one in scores.classes
    )
    columns = ("Class", "Pictures", "Sensitivity", "Specificity", "Precision", "F1", "AUC", "Average precision")
    return Table("Classes", columns, rows, caption="Each class against all others; - where a score is not defined.")


def _bins(scores: Scores) -> Table:
    rows = tuple(
        Row((f"{b.low:.3f} to {b.high:.3f}", str(b.count), _number(b.confidence, 3), _number(b.accuracy, 3)))
        for b in scores.bins
        if b.count
    )
    columns = ("Confidence", "Pictures", "Mean confidence", "Accuracy")
    return Table(
        "Calibration", columns, rows, caption="Where both columns agree, the confidence can be taken at its word."
    )


def _figures(material: Material) -> tuple[Picture, ...]:
    scores = material.scores
    figures = [
        Picture(
            confusion_png(scores),
            "Confusion matrix. A row holds the pictures of one class, shaded by the share that got each answer.",
            "Matrix of right against predicted classes.",
        ),
        Picture(
            calibration_png(scores.bins),
            "Calibration. Bars below the diagonal: more confident than right.",
            "Accuracy against confidence, and a histogram of confidence.",
        ),
    ]
    if material.volumes is not None:
        caption = "Confusion matrix of the volumes, as above."
        figures.insert(1, Picture(confusion_png(material.volumes), caption, "The same matrix for whole volumes."))
    if material.curves:
        caption = "ROC curves of each class against all others."
        figures.append(Picture(roc_png(material.curves), caption, "Sensitivity against 1 - specificity."))
    if material.examples:
        figures.append(
            Picture(
                saliency_png(material.examples),
                "Wrong answers of the highest confidence first, then right ones from the most to the least confident. "
                "Below each picture, bright: the gradient of the predicted class's score by the pixel "
                "(arXiv 1312.6034), scaled to its own largest value. It tells what the score reacts to, not why.",
                "Pictures with their predicted classes, and gradient maps below them.",
            )
        )
    curves = _training_curves(material.run / HISTORY)
    if curves:
        caption = "Training. The training loss is that of smoothed and mixed labels, where the settings have them."
        figures.append(Picture(curves_png(curves, "epoch"), caption, "Line charts of loss and accuracy by epoch."))
    return tuple(figures)


def _training_curves(history: Path) -> list[Curve]:
    if not history.is_file():
        return []
    with history.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    curves = []
    for column, (name, panel) in CURVES.items():
        points = [(float(row["epoch"]), float(row[column])) for row in rows if row.get(column)]
        if points:
            x, y = zip(*points, strict=True)
            curves.append(Curve(name, x, y, panel))
    return curves
