"""Checks of a training's settings and of its run folder."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ssmvision.errors import UserError
from ssmvision.recipes.evaluation.postprocessing import POSTPROCESSING
from ssmvision.recipes.planning.plan_file import plan_text, read_plan
from ssmvision.recipes.segmentation.checkpoints import DIGESTS, LAST, PREVIOUS
from ssmvision.recipes.segmentation.config import TrainConfig
from ssmvision.recipes.segmentation.datalist import read_json
from ssmvision.recipes.segmentation.history import HISTORY, TIMES
from ssmvision.recipes.segmentation.split import SPLIT
from ssmvision.recipes.segmentation.weights import CARD, WEIGHTS
from ssmvision.recipes.segmentation.writing import write_bytes

__all__ = ["CONFIG", "check_config", "prepare_folder"]

CONFIG = "config.json"
PLAN = "used_plan.json"
FILES = (WEIGHTS, CARD, LAST, PREVIOUS, DIGESTS, HISTORY, TIMES, CONFIG, PLAN, SPLIT, POSTPROCESSING)
# Settings that may differ on resuming, since they change neither the weights' shapes nor the patches.
FREE = {
    *(
        "out",
        "resume",
        "overwrite",
        "plan",
        "configuration",
        "data.root",
        "data.cache",
        "data.cache_dir",
        "data.num_workers",
        "trainer.max_epochs",
    ),
    *("trainer.max_minutes", "trainer.accelerator", "trainer.threads", "trainer.validate_every"),
    *("trainer.devices", "trainer.checkpoint_steps", "trainer.early_stop_epochs", "trainer.max_nonfinite_steps"),
    *("trainer.auto_halve", "trainer.tf32"),
}


def check_config(config: TrainConfig) -> None:
    """Refuses settings that cannot work.

    Raises:
        UserError: names the setting, its value and what is allowed.
    """
    t, a = config.trainer, config.augment
    dims = len(config.patch_size)
    rules: list[tuple[str, Any, bool, str]] = [
        (
            "patch_size",
            config.patch_size,
            dims in (2, 3) and min(config.patch_size, default=0) > 0,
            "2 or 3 sizes above 0",
        ),
        *(
            (f"trainer.{n}", getattr(t, n), getattr(t, n) >= 1, "1 or more")
            for n in ("max_epochs", "steps_per_epoch", "batch_size", "validate_every", "max_nonfinite_steps", "devices")
        ),
        *(
            (f"trainer.{n}", getattr(t, n), getattr(t, n) is None or getattr(t, n) >= 1, "1 or more, or null")
            for n in ("checkpoint_steps", "early_stop_epochs")
        ),
        (
            "trainer.devices",
            t.devices,
            t.devices < 1 or t.batch_size % t.devices == 0,
            f"a number that divides trainer.batch_size {t.batch_size}",
        ),
        ("trainer.auto_halve", t.auto_halve, not t.auto_halve or t.devices == 1, "false with several devices"),
        ("trainer.ema_decay", t.ema_decay, 0 <= t.ema_decay < 1, "a number in [0, 1)"),
        ("trainer.lr", t.lr, math.isfinite(t.lr) and t.lr > 0, "a number above 0"),
        ("trainer.weight_decay", t.weight_decay, t.weight_decay >= 0, "0 or more"),
        ("trainer.momentum", t.momentum, 0 <= t.momentum < 1, "a number in [0, 1)"),
        ("trainer.gradient_clip", t.gradient_clip, t.gradient_clip >= 0, "0 or more"),
        ("trainer.max_minutes", t.max_minutes, t.max_minutes is None or t.max_minutes > 0, "a number above 0, or null"),
        ("augment.flip_axes", a.flip_axes, set(a.flip_axes or ()) <= set(range(dims)), f"axes among 0 to {dims - 1}"),
        ("augment.probability", a.probability, 0 <= a.probability <= 1, "a number in [0, 1]"),
        ("augment.foreground_fraction", a.foreground_fraction, 0 <= a.foreground_fraction <= 1, "a number in [0, 1]"),
        ("augment.gamma", a.gamma, 0 < a.gamma[0] <= a.gamma[1], "two numbers above 0 in rising order"),
        ("resume and overwrite", True, not (config.resume and config.overwrite), "one of them"),
    ]
    for name, value, fine, allowed in rules:
        if not fine:
            raise UserError(f"{name}: {value} is not possible; give {allowed}")


def prepare_folder(config: TrainConfig) -> None:
    """Makes the run folder ready: empty of an earlier run's files, or with a run to resume.

    Raises:
        UserError: it holds a run and neither `resume` nor `overwrite` is set, or nothing that can be resumed.
    """
    out = Path(config.out)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; give a folder as out")
    if config.plan is not None and config.plan.resolve() == (out / PLAN).resolve():
        raise UserError(f"{config.plan}: belongs to the run folder itself; copy it elsewhere and give the copy as plan")
    for leftover in (path for name in FILES for path in out.glob(f".{name}.*")):
        leftover.unlink()  # a killed run may leave half a file under a temporary name
    if config.resume:
        # A run that was killed before its first checkpoint starts again, which is the same.
        if not any((out / name).is_file() for name in (LAST, PREVIOUS, CONFIG)):
            raise UserError(f"{out}: no {LAST} to resume from; start without --resume, or correct out")
        _check_same_settings(config, out / CONFIG)
        _check_same_plan(config.plan, out / PLAN)
        return
    existing = [name for name in FILES if (out / name).exists()]
    if existing and not config.overwrite:
        raise UserError(f"{out}: holds a run ({', '.join(existing)}); pass --resume or --overwrite, or another out")
    for name in existing:
        (out / name).unlink()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: could not be made ({error}); choose another out") from error
    if config.plan is not None:
        write_bytes(out / PLAN, plan_text(read_plan(config.plan)))


def _check_same_plan(plan: Path | None, used: Path) -> None:
    """Intensity scales come from the plan alone, so that equal settings do not show that it was left as it was."""
    if (plan is not None) != used.is_file():
        raise UserError(f"{used}: the run was started with{'out' if plan else ''} a plan; resume it in the same way")
    if plan is not None and read_plan(plan) != read_plan(used):
        raise UserError(f"{plan}: differs from {used}, with which the run was started; resume with that plan's copy")


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    pairs: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        pairs |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return pairs


def _check_same_settings(config: TrainConfig, path: Path) -> None:
    old = _flat(read_json(path, "start the run anew with --overwrite"))
    new = _flat(json.loads(json.dumps(asdict(config), default=str)))
    changed = sorted(k for k in old.keys() | new.keys() if k not in FREE and old.get(k) != new.get(k))
    if changed:
        name = changed[0]
        raise UserError(
            f"{path}: the run was started with {name} {old.get(name)!r}, now it is {new.get(name)!r}"
            f"{f' (and {len(changed) - 1} more: {changed[1:]})' if changed[1:] else ''}; resume with the same settings"
        )
