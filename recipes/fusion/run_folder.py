"""Checks of a fusion training's settings and of its run folder."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ssmvision.errors import UserError
from ssmvision.recipes.fusion.callbacks import HISTORY, PREVIEWS
from ssmvision.recipes.fusion.config import FusionTrainConfig
from ssmvision.recipes.fusion.weights import CARD, WEIGHTS
from ssmvision.recipes.segmentation.checkpoints import DIGESTS, LAST, PREVIOUS
from ssmvision.recipes.segmentation.history import TIMES

__all__ = ["CONFIG", "check_config", "prepare_folder"]

CONFIG = "config.json"
FILES = (WEIGHTS, CARD, LAST, PREVIOUS, DIGESTS, HISTORY, TIMES, CONFIG, PREVIEWS)
# Settings that may differ on resuming, since they change neither the weights' shapes nor the crops.
FREE = {
    *("out", "resume", "overwrite", "data.a", "data.b", "data.num_workers", "trainer.max_epochs"),
    *("trainer.max_minutes", "trainer.accelerator", "trainer.threads", "trainer.validate_every", "trainer.previews"),
}


def check_config(config: FusionTrainConfig) -> None:
    """Refuses settings that cannot work.

    Raises:
        UserError: names the setting, its value and what is allowed.
    """
    for name, value, fine, allowed in (*_trainer_rules(config), *_image_rules(config)):
        if not fine:
            raise UserError(f"{name}: {value} is not possible; give {allowed}")


def _trainer_rules(config: FusionTrainConfig) -> list[tuple[str, Any, bool, str]]:
    t = config.trainer
    at_least = {"max_epochs": 1, "steps_per_epoch": 1, "batch_size": 1, "validate_every": 1, "warmup_steps": 0}
    return [
        *(
            (f"trainer.{name}", getattr(t, name), getattr(t, name) >= least, f"{least} or more")
            for name, least in (at_least | {"previews": 0, "seed": 0}).items()
        ),
        ("trainer.lr", t.lr, math.isfinite(t.lr) and t.lr > 0, "a number above 0"),
        ("trainer.weight_decay", t.weight_decay, t.weight_decay >= 0, "0 or more"),
        ("trainer.gradient_clip", t.gradient_clip, t.gradient_clip >= 0, "0 or more"),
        ("trainer.ema_decay", t.ema_decay, 0 <= t.ema_decay < 1, "a number in [0, 1)"),
        ("trainer.max_minutes", t.max_minutes, t.max_minutes is None or t.max_minutes > 0, "a number above 0, or null"),
        ("trainer.threads", t.threads, t.threads is None or t.threads > 0, "1 or more, or null"),
        ("resume and overwrite", True, not (config.resume and config.overwrite), "one of them"),
    ]


def _image_rules(config: FusionTrainConfig) -> list[tuple[str, Any, bool, str]]:
    a, loss, size = config.augment, config.loss, config.patch_size
    weights = (loss.structure, loss.intensity, loss.gradient)
    least = 16 if loss.structure_form == "published" else 1
    turned = not a.rotate90 or size[0] == size[1]
    stride = 4 * 2 ** (len(config.model.dims) - 1)
    whole = not config.model.faithful or not any(n % stride for n in size)
    return [
        ("patch_size", size, min(size) >= least, f"two sizes of {least} or more"),
        ("patch_size", size, turned, "two equal sizes, or augment.rotate90=false"),
        ("patch_size", size, whole, f"multiples of {stride}, which the published network (model.faithful) takes"),
        ("loss weights", weights, min(weights) >= 0 and max(weights) > 0, "numbers of 0 or more, not all 0"),
        ("loss.data_range", loss.data_range, loss.data_range is None or loss.data_range > 0, "a number above 0"),
        ("augment.flip_axes", a.flip_axes, set(a.flip_axes) <= {0, 1}, "axes among 0 and 1"),
        ("augment.gamma", a.gamma, 0 < a.gamma[0] <= a.gamma[1], "two numbers above 0 in rising order"),
        *(
            (f"augment.{name}", getattr(a, name), 0 <= getattr(a, name) <= 1, "a number in [0, 1]")
            for name in ("swap", "invert", "gamma_probability")
        ),
        ("model.smooth_px", config.model.smooth_px, 0 <= config.model.smooth_px <= 16, "a number from 0 to 16"),
        ("model.input_scale", config.model.input_scale, config.model.input_scale > 0, "a number above 0"),
    ]


def prepare_folder(config: FusionTrainConfig) -> None:
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
        if not any((out / name).is_file() for name in (LAST, PREVIOUS)):
            raise UserError(f"{out}: no {LAST} to resume from; start without --resume, or correct out")
        _check_same_settings(config, out / CONFIG)
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
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: could not be made ({error}); choose another out") from error


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    pairs: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        pairs |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return pairs


def _check_same_settings(config: FusionTrainConfig, path: Path) -> None:
    try:
        old = _flat(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); start the run anew with --overwrite") from error
    new = _flat(json.loads(json.dumps(asdict(config), default=str)))
    changed = sorted(k for k in old.keys() | new.keys() if k not in FREE and old.get(k) != new.get(k))
    if changed:
        name = changed[0]
        raise UserError(
            f"{path}: the run was started with {name} {old.get(name)!r}, now it is {new.get(name)!r}"
            f"{f' (and {len(changed) - 1} more: {changed[1:]})' if changed[1:] else ''}; resume with the same settings"
        )
