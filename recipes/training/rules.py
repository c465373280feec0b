"""Rules that a recipe's settings must keep to, and those of every recipe."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from ssmvision.errors import UserError

__all__ = ["Rule", "at_least", "check_rules", "common_rules", "device_rules", "positive_or_null"]

# Name of the setting, its value, whether it is fine, and what would be.
Rule = tuple[str, Any, bool, str]


def check_rules(rules: Iterable[Rule]) -> None:
    """Refuses the first setting that cannot work.

    Raises:
        UserError: names the setting, its value and what is allowed.
    """
    for name, value, fine, allowed in rules:
        if not fine:
            raise UserError(f"{name}: {value} is not possible; give {allowed}")


def at_least(section: str, settings: Any, least: int, *names: str) -> list[Rule]:
    """Settings of a section that are numbers of `least` or more."""
    values = [(name, getattr(settings, name)) for name in names]
    return [(f"{section}.{name}", value, value >= least, f"{least} or more") for name, value in values]


def positive_or_null(section: str, settings: Any, *names: str) -> list[Rule]:
    """Settings of a section that are whole numbers from 1 on, or left out."""
    values = [(name, getattr(settings, name)) for name in names]
    return [(f"{section}.{name}", value, value is None or value >= 1, "1 or more, or null") for name, value in values]


def common_rules(config: Any) -> list[Rule]:
    """Of every recipe's settings with a trainer."""
    t = config.trainer
    return [
        *at_least("trainer", t, 1, "max_epochs", "batch_size", "validate_every"),
        ("trainer.lr", t.lr, math.isfinite(t.lr) and t.lr > 0, "a number above 0"),
        *at_least("trainer", t, 0, "weight_decay", "gradient_clip", "seed"),
        ("trainer.ema_decay", t.ema_decay, 0 <= t.ema_decay < 1, "a number in [0, 1)"),
        ("trainer.max_minutes", t.max_minutes, t.max_minutes is None or t.max_minutes > 0, "a number above 0, or null"),
        *positive_or_null("trainer", t, "threads"),
        ("resume and overwrite", True, not (config.resume and config.overwrite), "one of them"),
    ]


def device_rules(trainer: Any) -> list[Rule]:
    """Of recipes that train on several devices."""
    t = trainer
    return [
        *at_least("trainer", t, 1, "devices"),
        *positive_or_null("trainer", t, "checkpoint_steps", "early_stop_epochs"),
        (
            "trainer.devices",
            t.devices,
            t.devices < 1 or t.batch_size % t.devices == 0,
            f"a number that divides trainer.batch_size {t.batch_size}",
        ),
    ]
