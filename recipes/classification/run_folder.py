"""Checks of a classification training's settings and of its run folder."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ssmvision.errors import UserError
from ssmvision.recipes.classification.callbacks import HISTORY
from ssmvision.recipes.classification.config import ClassifyTrainConfig
from ssmvision.recipes.classification.networks import MODEL
from ssmvision.recipes.segmentation.checkpoints import DIGESTS, LAST, PREVIOUS
from ssmvision.recipes.segmentation.datalist import read_json
from ssmvision.recipes.segmentation.history import TIMES
from ssmvision.recipes.segmentation.report_parts import flatten

__all__ = ["EVALUATION", "SETTINGS", "check_config", "prepare_folder", "settings_json"]

# Not config.json, which is what timm calls the description of a model.
SETTINGS, EVALUATION = "settings.json", "evaluation"
FILES = (MODEL, EVALUATION, LAST, PREVIOUS, DIGESTS, HISTORY, TIMES, SETTINGS)
# Settings that may differ on resuming, since they change neither the weights' shapes nor the batches.
FREE = {
    *("out", "resume", "overwrite", "data.root", "data.num_workers", "trainer.max_epochs", "trainer.max_minutes"),
    *("trainer.accelerator", "trainer.threads", "trainer.validate_every", "trainer.devices"),
    *("trainer.checkpoint_steps", "trainer.early_stop_epochs"),
}


def check_config(config: ClassifyTrainConfig) -> None:
    """Refuses settings that cannot work.

    Raises:
        UserError: names the setting, its value and what is allowed.
    """
    for name, value, fine, allowed in (*_trainer_rules(config), *_picture_rules(config)):
        if not fine:
            raise UserError(f"{name}: {value} is not possible; give {allowed}")


Rule = tuple[str, Any, bool, str]


def _trainer_rules(config: ClassifyTrainConfig) -> list[Rule]:
    t = config.trainer
    shares = {name: getattr(t, name) for name in ("label_smoothing", "ema_decay")}
    return [
        *(
            (f"trainer.{n}", getattr(t, n), getattr(t, n) >= 1, "1 or more")
            for n in ("max_epochs", "batch_size", "validate_every", "devices")
        ),
        *(
            (f"trainer.{n}", getattr(t, n), getattr(t, n) is None or getattr(t, n) >= 1, "1 or more, or null")
            for n in ("checkpoint_steps", "early_stop_epochs", "threads")
        ),
        *(
            (f"trainer.{n}", getattr(t, n), getattr(t, n) >= 0, "0 or more")
            for n in ("warmup_epochs", "weight_decay", "gradient_clip", "seed")
        ),
        *((f"trainer.{name}", value, 0 <= value < 1, "a number in [0, 1)") for name, value in shares.items()),
        ("trainer.lr", t.lr, math.isfinite(t.lr) and t.lr > 0, "a number above 0"),
        (
            "trainer.layer_decay",
            t.layer_decay,
            t.layer_decay is None or 0 < t.layer_decay <= 1,
            "a number above 0, at most 1, or null",
        ),
        ("trainer.max_minutes", t.max_minutes, t.max_minutes is None or t.max_minutes > 0, "a number above 0, or null"),
        (
            "trainer.devices",
            t.devices,
            t.devices < 1 or t.batch_size % t.devices == 0,
            f"a number that divides trainer.batch_size {t.batch_size}",
        ),
        ("resume and overwrite", True, not (config.resume and config.overwrite), "one of them"),
    ]


def _picture_rules(config: ClassifyTrainConfig) -> list[Rule]:
    d, a, t = config.data, config.augment, config.trainer
    mixed = a.mixup > 0 or a.cutmix > 0
    share = t.batch_size // t.devices
    size = config.img_size
    return [
        ("img_size", size, size is None or min(size) >= 1, "two numbers of 1 or more, or null"),
        (
            "data.validation_fraction",
            d.validation_fraction,
            0 <= d.validation_fraction < 1,
            "a number in [0, 1)",
        ),
        ("data.train_pictures", d.train_pictures, d.train_pictures is None or d.train_pictures >= 2, "2 or more"),
        ("data.num_workers", d.num_workers, d.num_workers >= 0, "0 or more"),
        ("data.dataset", d.dataset, bool(d.dataset) == (d.kind == "torchvision"), "it with kind torchvision only"),
        ("augment.crop_scale", a.crop_scale, 0 < a.crop_scale <= 1, "a number above 0, at most 1"),
        *(
            (f"augment.{n}", getattr(a, n), getattr(a, n) >= 0, "0 or more")
            for n in ("shift", "rotate_degrees", "mixup", "cutmix")
        ),
        *(
            (f"augment.{n}", getattr(a, n), 0 <= getattr(a, n) <= 1, "a number in [0, 1]")
            for n in ("brightness", "erase", "mix_probability")
        ),
        ("augment.flip_axes", a.flip_axes, set(a.flip_axes) <= {0, 1}, "axes among 0 and 1"),
        (
            "augment.policy",
            a.policy,
            a.policy == "none" or a.library == "torchvision",
            "none, or augment.library torchvision",
        ),
        (
            "trainer.batch_size",
            t.batch_size,
            not mixed or share % 2 == 0,
            "an even number a device, since mixup and CutMix pair the pictures of a batch",
        ),
    ]


def settings_json(config: ClassifyTrainConfig) -> str:
    """The settings as they are kept in the run folder."""
    return json.dumps(asdict(config), indent=2, default=str) + "\n"


def prepare_folder(config: ClassifyTrainConfig) -> None:
    """Makes the run folder ready: empty of an earlier run's files, or with a run to resume.

    Raises:
        UserError: it holds a run and neither `resume` nor `overwrite` is set, or nothing that can be resumed.
    """
    out = Path(config.out)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; give a folder as out")
    for leftover in (path for name in FILES for path in out.glob(f".{name}.*")):
        leftover.unlink()  # a killed run may leave half a file under a temporary name
    if config.resume:
        # A run that was killed before its first checkpoint starts again, which is the same.
        if not any((out / name).is_file() for name in (LAST, PREVIOUS, SETTINGS)):
            raise UserError(f"{out}: no {LAST} to resume from; start without --resume, or correct out")
        _check_same_settings(config, out / SETTINGS)
        return
    existing = [out / name for name in FILES if (out / name).exists()]
    if existing and not config.overwrite:
        held = ", ".join(path.name for path in existing)
        raise UserError(f"{out}: holds a run ({held}); pass --resume or --overwrite, or another out")
    for path in existing:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _check_same_settings(config: ClassifyTrainConfig, path: Path) -> None:
    old = dict(flatten(read_json(path, "start the run anew with --overwrite")))
    new = dict(flatten(json.loads(settings_json(config))))
    changed = sorted(k for k in old.keys() | new.keys() if k not in FREE and old.get(k) != new.get(k))
    if changed:
        name = changed[0]
        raise UserError(
            f"{path}: the run was started with {name} {old.get(name)!r}, now it is {new.get(name)!r}"
            f"{f' (and {len(changed) - 1} more: {changed[1:]})' if changed[1:] else ''}; resume with the same settings"
        )
