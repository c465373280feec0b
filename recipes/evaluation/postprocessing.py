"""The rule "keep the largest component", decided on cross-validation and kept as JSON (nnU-Net's procedure)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssmvision.errors import UserError
from ssmvision.recipes.evaluation.components import keep_largest
from ssmvision.recipes.segmentation.datalist import read_json
from ssmvision.recipes.segmentation.weights import CARD
from ssmvision.recipes.segmentation.writing import write_bytes

__all__ = ["POSTPROCESSING", "Postprocessing", "decide", "find_rule", "read_rule", "weights_digest", "write_rule"]

POSTPROCESSING = "postprocessing.json"
FORMAT = 1
# Means of equal scores differ by rounding when they are summed in another order.
ROUNDING = 1e-9
# Dice of the four ways to treat a case: as predicted, the foreground's largest component, and each of the two followed
# by the largest component of every class.
WAYS = ("raw", "foreground", "classes", "foreground_classes")

Labels = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Postprocessing:
    """What is removed from a predicted label map.

    Args:
        labels: name to id of the model's classes, background (0) included.
        foreground: keep only the largest component of all classes together.
        classes: then, of each of these, only the largest component.
        models: sha256 of the weights whose held-out predictions decided it.
        cases: how many predictions decided it.
        dice: mean Dice per class before and after.
    """

    labels: dict[str, int]
    foreground: bool = False
    classes: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    cases: int = 0
    dice: dict[str, dict[str, float]] = field(default_factory=dict)

    def apply(self, labels: Labels) -> int:
        """Removes stray components from a label map (X, Y, Z) in place; returns how many voxels."""
        removed = keep_largest(labels, _foreground(self.labels)) if self.foreground else 0
        return removed + sum(keep_largest(labels, [self.labels[name]]) for name in self.classes)

    def __str__(self) -> str:
        parts = ["all classes together"] * self.foreground + list(self.classes)
        return f"keeps only the largest component of {' and of '.join(parts)}" if parts else "keeps every component"


def decide(cases: Iterable[tuple[Labels, Labels]], labels: Mapping[str, int]) -> Postprocessing:
    """Chooses the rule by the mean Dice of held-out predictions, as nnU-Net v2 does.

    All classes together: kept if the mean over the classes rises and no class falls. Then each class, if there are
    several: kept if its own Dice rises. A case counts for a class unless neither prediction nor reference has it.

    Args:
        cases: (prediction, reference) label maps (X, Y, Z), one pair at a time.
        labels: name to id, background included.

    Raises:
        ValueError: there is no case, or the shapes of a pair differ.
    """
    names = [name for name, i in labels.items() if i != 0]
    scored = [_ways(prediction, reference, dict(labels)) for prediction, reference in cases]
    if not scored:
        raise ValueError("no case to decide on; give at least one pair of prediction and reference")
    means = dict(zip(WAYS, _nanmean(np.array(scored)), strict=True))
    foreground = _better(means["raw"], means["foreground"])
    start, end = ("foreground", "foreground_classes") if foreground else ("raw", "classes")
    better = means[end] > means[start] + ROUNDING
    classes = tuple(name for name, rises in zip(names, better, strict=True) if rises and len(names) > 1)
    after = [means[end if name in classes else start][i] for i, name in enumerate(names)]
    dice = {
        name: {"before": float(b), "after": float(a)} for name, b, a in zip(names, means["raw"], after, strict=True)
    }
    return Postprocessing(dict(labels), foreground, classes, cases=len(scored), dice=dice)


def _foreground(labels: Mapping[str, int]) -> list[int]:
    return [i for i in labels.values() if i != 0]


def _ways(prediction: Labels, reference: Labels, labels: dict[str, int]) -> NDArray[np.float64]:
    """Dice (way, class) of one case."""
    if prediction.shape != reference.shape:
        raise ValueError(f"prediction of shape {prediction.shape}, reference {reference.shape}; expected equal ones")
    names = tuple(name for name, i in labels.items() if i != 0)
    rows = []
    for foreground in (False, True):
        treated = prediction.copy()
        Postprocessing(labels, foreground).apply(treated)
        rows.append(_dice(treated, reference, _foreground(labels)))
        Postprocessing(labels, classes=names).apply(treated)
        rows.append(_dice(treated, reference, _foreground(labels)))
    raw, classes, together, both = rows
    return np.array([raw, together, classes, both])


def _dice(prediction: Labels, reference: Labels, ids: Sequence[int]) -> list[float]:
    scores = []
    for i in ids:
        p, r = prediction == i, reference == i
        size = int(p.sum()) + int(r.sum())
        scores.append(2.0 * int((p & r).sum()) / size if size else math.nan)
    return scores


def _nanmean(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the first axis; NaN where nothing counts."""
    counted = ~np.isnan(scores)
    total = np.where(counted, scores, 0.0).sum(0)
    mean = np.full(total.shape, np.nan)
    np.divide(total, counted.sum(0), out=mean, where=counted.any(0))
    return mean


def _better(before: NDArray[np.float64], after: NDArray[np.float64]) -> bool:
    """Whether the mean over the classes that count rises and no class falls.

    A class whose false positives all vanish no longer counts: that is a rise of the mean and no fall.
    """
    rises = bool(_nanmean(after) > _nanmean(before) + ROUNDING)
    return rises and not bool((after < before - ROUNDING).any())


def write_rule(path: Path, rule: Postprocessing) -> Path:
    """Writes a rule as JSON, replacing an older one; returns `path`."""
    content = {
        "format": FORMAT,
        "labels": rule.labels,
        "keep_largest_component": {"foreground": rule.foreground, "classes": list(rule.classes)},
        "neighbours": 26,
        "decided_on": {"cases": rule.cases, "models_sha256": list(rule.models)},
        "dice": {
            name: {when: None if math.isnan(value) else value for when, value in values.items()}
            for name, values in rule.dice.items()
        },
    }
    write_bytes(path, json.dumps(content, indent=2) + "\n")
    return path


def read_rule(path: Path, labels: Mapping[str, int]) -> Postprocessing:
    """Reads a rule for a model with these labels.

    Raises:
        UserError: missing or unusable, or made for other labels.
    """
    content = read_json(path, "make it by `ssmvision postprocess`")
    if content.get("format") != FORMAT:
        raise UserError(f"{path}: format is {content.get('format')!r}, this version reads {FORMAT}; make it anew")
    if content.get("labels") != dict(labels):
        raise UserError(f"{path}: made for the labels {content.get('labels')}, the model has {dict(labels)}")
    try:
        kept, decided = content["keep_largest_component"], content["decided_on"]
        foreground, classes = kept["foreground"], tuple(kept["classes"])
        models, cases = tuple(decided["models_sha256"]), int(decided["cases"])
        dice = {
            name: {when: math.nan if values[when] is None else float(values[when]) for when in ("before", "after")}
            for name, values in content["dice"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: unusable entry ({type(error).__name__}: {error}); make the file anew") from None
    unknown = [name for name in classes if not labels.get(name)]
    if not isinstance(foreground, bool) or unknown:
        raise UserError(
            f"{path}: keep_largest_component is {kept}; give foreground as true or false, and classes among "
            f"{[name for name, i in labels.items() if i]}"
        )
    return Postprocessing(dict(labels), foreground, classes, models, cases, dice)


def find_rule(choice: Path | str, models: Sequence[Path], labels: Mapping[str, int]) -> Postprocessing | None:
    """The rule that a prediction applies.

    Args:
        choice: a file; "auto" for the one in the run folders; or "none".
        models: run folders, or weights in them, whose mean is predicted.
        labels: of the models.

    Raises:
        UserError: the file is unusable, or with "auto" only some folders have one, or they differ, or one was decided
            on other weights than lie beside it.
    """
    if choice == "none":
        return None
    if choice != "auto":
        return read_rule(Path(choice), labels)
    advice = "run `ssmvision postprocess` on all of them, or pass --postprocessing FILE or none"
    folders = [path if path.is_dir() else path.parent for path in models]
    found = [folder / POSTPROCESSING for folder in folders if (folder / POSTPROCESSING).is_file()]
    if not found:
        return None
    if len(found) < len(folders):
        raise UserError(f"{found[0]}: only {len(found)} of {len(folders)} models have such a file; {advice}")
    rules = [read_rule(path, labels) for path in found]
    for path, rule in zip(found, rules, strict=True):
        if (rule.foreground, rule.classes) != (rules[0].foreground, rules[0].classes):
            raise UserError(f"{path}: {rule}, but {found[0]} {rules[0]}; {advice}")
        digest = weights_digest(path.parent)
        if digest not in rule.models:
            raise UserError(f"{path}: was decided on other weights than {digest[:12]}... beside it; {advice}")
    return rules[0]


def weights_digest(folder: Path) -> str:
    """The sha256 of a run folder's weights, as its model.json has it."""
    return str(read_json(folder / CARD, "give the folder of a finished training").get("sha256"))
