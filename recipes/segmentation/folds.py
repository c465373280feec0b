"""Cross-validation: which cases a fold trains on and which it holds out, the same for everyone who has the same ids."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from ssmvision.errors import UserError
from ssmvision.recipes.segmentation.datalist import Dataset

__all__ = ["SPLITS", "split"]

# nnU-Net's seed and file: folds of the same cases are then those of its published results.
SEED = 12345
SPLITS = "splits_final.json"


def split(dataset: Dataset, fold: int | Literal["all"], folds: int = 5) -> Dataset:
    """The dataset with one fold of its training cases held out for validation.

    Folds are nnU-Net v2's: scikit-learn's `KFold(folds, shuffle=True, random_state=12345)` over the sorted case ids, or
    what a splits_final.json beside the dataset's description lists ([{"train": [...], "val": [...]}, ...]).

    Args:
        dataset: as read.
        fold: number of the fold, from 0; "all" trains on every case and validates on the same ones, so that its
            scores tell nothing of unseen cases.
        folds: how many there are; without meaning where splits_final.json lists them.

    Raises:
        UserError: there is no such fold, fewer cases than folds, a damaged splits_final.json, or the dataset names
            validation cases itself.
    """
    if dataset.validation:
        raise UserError(
            f"{dataset.path}: lists {len(dataset.validation)} validation case(s) itself, and data.fold is {fold}; "
            "move them under 'training', or leave data.fold out"
        )
    if fold == "all":
        return replace(dataset, validation=dataset.training)
    ids = sorted(case.id for case in dataset.training)
    listed = dataset.path.parent / SPLITS
    held_out = _listed(listed, ids, fold) if listed.is_file() else (ids, _drawn(dataset, ids, fold, folds))
    train, validation = (set(group) for group in held_out)
    return replace(
        dataset,
        training=tuple(c for c in dataset.training if c.id in train - validation),
        validation=tuple(c for c in dataset.training if c.id in validation),
    )


def _drawn(dataset: Dataset, ids: Sequence[str], fold: int, folds: int) -> list[str]:
    """Ids that a fold holds out."""
    if folds < 2:
        raise UserError(f"data.folds: {folds} is not possible; give 2 or more")
    if len(ids) < folds:
        raise UserError(f"{dataset.path}: {len(ids)} training case(s) make no {folds} folds; give a smaller data.folds")
    _check_number(fold, folds)
    from sklearn.model_selection import KFold  # a second to import, and few trainings have folds

    parts = KFold(folds, shuffle=True, random_state=SEED).split(ids)
    return [ids[i] for i in [chosen for _, chosen in parts][fold]]


def _check_number(fold: int, folds: int) -> None:
    if not 0 <= fold < folds:
        raise UserError(f"data.fold: {fold} is not among the {folds} folds; give 0 to {folds - 1}, or all")


def _listed(path: Path, ids: Sequence[str], fold: int) -> tuple[list[str], list[str]]:
    """Ids to train on and to hold out by nnU-Net's file."""
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: could not be read as JSON ({error}); correct or remove it") from error
    entries = content if isinstance(content, list) else []
    if not entries or not all(
        isinstance(e, dict) and _are_ids(e.get("train")) and _are_ids(e.get("val")) for e in entries
    ):
        raise UserError(f'{path}: holds no folds; give [{{"train": [ids], "val": [ids]}}, ...], or remove it')
    _check_number(fold, len(entries))
    train, validation = entries[fold]["train"], entries[fold]["val"]
    for name, group in (("train", train), ("val", validation)):
        unknown = sorted(set(group) - set(ids))
        if unknown or not group:
            what = f"names {unknown[:5]}, which are no training cases" if unknown else "is empty"
            raise UserError(f"{path}: [{fold}].{name} {what}; correct or remove the file")
    both = sorted(set(train) & set(validation))
    if both:
        raise UserError(f"{path}: [{fold}] has {both[:5]} both in train and in val; correct or remove the file")
    return train, validation


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
