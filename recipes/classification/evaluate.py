"""Scores a trained classifier on pictures that it did not learn from."""

from __future__ import annotations

import csv
import io
import json
import math
from argparse import ArgumentError
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from jsonargparse import ArgumentParser
from numpy.typing import NDArray
from rich.console import Console
from torch import nn

from ssmvision.errors import UserError
from ssmvision.recipes.classification.config import ClassifyEvaluateConfig, DataConfig
from ssmvision.recipes.classification.data import Scale, WholePictures, open_data, whole_loader
from ssmvision.recipes.classification.figures import Example
from ssmvision.recipes.classification.metrics import Outcome, Scores, of_volumes, roc, score
from ssmvision.recipes.classification.networks import SavedModel, open_model, probabilities
from ssmvision.recipes.classification.pictures import Pictures
from ssmvision.recipes.classification.report import Material, write_classification_report
from ssmvision.recipes.classification.run_folder import EVALUATION, SETTINGS
from ssmvision.recipes.classification.saliency import input_gradient
from ssmvision.recipes.devices import pick_device
from ssmvision.recipes.segmentation.datalist import read_json
from ssmvision.recipes.segmentation.writing import check_folder, write_bytes

__all__ = ["predict", "run"]

REPORT, SCORES, CLASSES, PREDICTIONS = "report.html", "scores.json", "classes.csv", "predictions.csv"
VOLUMES = "volumes.csv"


def run(config: ClassifyEvaluateConfig) -> Scores:
    """Predicts, scores and writes the report.

    Raises:
        UserError: the run is not finished, its pictures are not there, they have no such part, or results exist.
    """
    _check(config)
    out = config.out or config.run / EVALUATION
    check_folder(out)
    held = [name for name in (REPORT, SCORES, CLASSES, PREDICTIONS, VOLUMES) if (out / name).exists()]
    if held and not config.overwrite:
        raise UserError(f"{out}: holds {held[0]} already; choose another --out or pass --overwrite")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = pick_device(config.device)
    saved = open_model(config.run)
    data = _data_settings(config)
    part, pictures = _part(config, data, saved)
    network = saved.network.to(device)
    outcome = predict(network, pictures, saved.spec.scale, saved.spec.classes, config.batch_size)
    scores, volumes = score(outcome, config.bins), of_volumes(outcome)
    whole = score(volumes, config.bins) if volumes is not None else None
    examples = show(network, pictures, saved.spec.scale, outcome, config.pictures)
    told = _without_nan(asdict(scores)) | {"part": part}
    write_bytes(out / PREDICTIONS, predictions_csv(outcome))
    write_bytes(out / CLASSES, classes_csv(scores))
    if volumes is not None and whole is not None:
        write_bytes(out / VOLUMES, predictions_csv(volumes, "volume"))
        told["volumes"] = _without_nan(asdict(whole))
    else:
        (out / VOLUMES).unlink(missing_ok=True)  # of the results that are replaced
    write_bytes(out / SCORES, json.dumps(told, indent=2) + "\n")
    write_classification_report(
        out / REPORT, Material(scores, roc(outcome), examples, saved, part, config.run, volumes=whole)
    )
    print(f"{part}: {scores.pictures} pictures, {_summary(scores)}")
    if whole is not None:
        print(f"{part}: {whole.pictures} volumes, {_summary(whole)}")
    Console(stderr=True).print(f"wrote     {out / REPORT}", markup=False, highlight=False, soft_wrap=True)
    return scores


def _summary(scores: Scores) -> str:
    low, high = scores.accuracy_95
    return (
        f"accuracy {scores.accuracy:.4f} (95 % {low:.4f} to {high:.4f}), balanced {scores.balanced_accuracy:.4f}, AUC "
        f"{scores.macro_auc:.4f}, calibration error {scores.ece:.4f}"
    )


def _check(config: ClassifyEvaluateConfig) -> None:
    for name, least in (("bins", 1), ("batch_size", 1), ("pictures", 0)):
        if getattr(config, name) < least:
            raise UserError(f"{name}: {getattr(config, name)} is not possible; give {least} or more")


def _data_settings(config: ClassifyEvaluateConfig) -> DataConfig:
    path = config.run / SETTINGS
    values = read_json(path, "give the run folder of `ssmvision classify train`").get("data")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(DataConfig, "data")
    try:
        found: DataConfig = parser.instantiate(parser.parse_object({"data": values})).data
    except (ArgumentError, TypeError, ValueError, KeyError) as error:
        raise UserError(f"{path}: unusable entry data ({error}); restore the saved file") from error
    return found if config.data is None else replace(found, root=config.data)


def _part(config: ClassifyEvaluateConfig, data: DataConfig, saved: SavedModel) -> tuple[str, Pictures]:
    sets = open_data(data)
    if sets.classes != saved.spec.classes:
        raise UserError(
            f"{data.root}: its classes are {', '.join(sets.classes)}, the model's {', '.join(saved.spec.classes)}; "
            "give data with these classes"
        )
    parts = {"test": sets.test, "validation": sets.validation}
    wanted = [config.part] if config.part != "auto" else list(parts)
    for name in wanted:
        pictures = parts[name]
        if pictures is not None and len(pictures):
            return name, pictures
    raise UserError(f"part: {data.root} has no {' or '.join(wanted)} pictures; give data with such a part")


@torch.no_grad()
def predict(
    network: nn.Module, pictures: Pictures, scale: Scale, classes: tuple[str, ...], batch_size: int = 128
) -> Outcome:
    """Probabilities of every picture, on the device that the network is on."""
    device = next(network.parameters()).device
    found: list[NDArray[Any]] = []
    for batch in whole_loader(pictures, scale, batch_size):
        found.append(probabilities(network, batch["image"].to(device)).double().cpu().numpy())
    volumes = None if pictures.volumes is None else tuple(pictures.volumes)
    return Outcome(pictures.labels, np.concatenate(found), classes, tuple(pictures.names), volumes)


def show(network: nn.Module, pictures: Pictures, scale: Scale, outcome: Outcome, count: int) -> tuple[Example, ...]:
    """Wrong answers of the highest confidence first, then right ones of evenly spread confidence, with saliency."""
    chosen = _chosen(outcome, count)
    if not len(chosen):
        return ()
    data = WholePictures(pictures, scale)
    images = torch.stack([data[int(i)]["image"] for i in chosen])
    device = next(network.parameters()).device
    predicted = torch.from_numpy(outcome.predicted[chosen])
    maps = input_gradient(network, images.to(device), predicted.to(device)).cpu().numpy()
    mean, std = (np.asarray(values, dtype=np.float32)[:, None, None] for values in (scale.mean, scale.std))
    shown = np.clip(images.numpy() * std + mean, 0, 1)
    return tuple(
        Example(
            image[0] if len(image) == 1 else np.moveaxis(image, 0, -1),
            found,
            outcome.classes[outcome.labels[i]],
            outcome.classes[outcome.predicted[i]],
            float(outcome.confidence[i]),
        )
        for i, image, found in zip(chosen, shown, maps, strict=True)
    )


def _chosen(outcome: Outcome, count: int) -> NDArray[np.int64]:
    right = outcome.predicted == outcome.labels
    order = np.argsort(-outcome.confidence, kind="stable")
    wrong, fine = order[~right[order]], order[right[order]]
    first = wrong[: max(count // 2, count - len(fine))]
    rest = min(count - len(first), len(fine))
    spread = fine[np.linspace(0, len(fine) - 1, rest).round().astype(int)] if rest else fine[:0]
    return np.concatenate([first, spread])


def predictions_csv(outcome: Outcome, kind: str = "picture") -> str:
    """A line a picture (or what `kind` is): name, right and predicted class, and the probability of each class."""
    names = [f"p_{name}" for name in outcome.classes]
    rows = [
        [picture, outcome.classes[label], outcome.classes[found], *(f"{p:.6g}" for p in probability)]
        for picture, label, found, probability in zip(
            outcome.pictures, outcome.labels, outcome.predicted, outcome.probabilities, strict=True
        )
    ]
    return _csv([kind, "label", "predicted", *names], rows)


def classes_csv(scores: Scores) -> str:
    """A line a class; empty where a score is not defined."""
    rows = [
        ["" if isinstance(value, float) and math.isnan(value) else value for value in asdict(one).values()]
        for one in scores.classes
    ]
    return _csv(list(asdict(scores.classes[0])), rows)


def _csv(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return text.getvalue()


def _without_nan(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value
