"""Checks of a training's settings and of its run folder."""

from __future__ import annotations

from pathlib import Path

from ssmvision.errors import UserError
from ssmvision.recipes.evaluation.postprocessing import POSTPROCESSING
from ssmvision.recipes.planning.plan_file import plan_text, read_plan
from ssmvision.recipes.segmentation.config import TrainConfig
from ssmvision.recipes.segmentation.split import SPLIT
from ssmvision.recipes.segmentation.weights import CARD, WEIGHTS
from ssmvision.recipes.segmentation.writing import write_bytes
from ssmvision.recipes.training.rules import Rule, at_least, check_rules, common_rules, device_rules
from ssmvision.recipes.training.run_folder import RunFolder

__all__ = ["CONFIG", "FOLDER", "check_config", "prepare_folder"]

CONFIG = "config.json"
PLAN = "used_plan.json"
FOLDER = RunFolder(
    CONFIG,
    (WEIGHTS, CARD, PLAN, SPLIT, POSTPROCESSING),
    {
        *("plan", "configuration", "data.root", "data.cache", "data.cache_dir", "trainer.devices"),
        *("trainer.checkpoint_steps", "trainer.early_stop_epochs", "trainer.max_nonfinite_steps"),
        *("trainer.auto_halve", "trainer.tf32"),
    },
)


def check_config(config: TrainConfig) -> None:
    """Refuses settings that cannot work.

    Raises:
        UserError: names the setting, its value and what is allowed.
    """
    t, a = config.trainer, config.augment
    dims = len(config.patch_size)
    rules: list[Rule] = [
        (
            "patch_size",
            config.patch_size,
            dims in (2, 3) and min(config.patch_size, default=0) > 0,
            "2 or 3 sizes above 0",
        ),
        *at_least("trainer", t, 1, "steps_per_epoch", "max_nonfinite_steps"),
        *common_rules(config),
        *device_rules(t),
        ("trainer.auto_halve", t.auto_halve, not t.auto_halve or t.devices == 1, "false with several devices"),
        ("trainer.momentum", t.momentum, 0 <= t.momentum < 1, "a number in [0, 1)"),
        ("augment.flip_axes", a.flip_axes, set(a.flip_axes or ()) <= set(range(dims)), f"axes among 0 to {dims - 1}"),
        ("augment.probability", a.probability, 0 <= a.probability <= 1, "a number in [0, 1]"),
        ("augment.foreground_fraction", a.foreground_fraction, 0 <= a.foreground_fraction <= 1, "a number in [0, 1]"),
        ("augment.gamma", a.gamma, 0 < a.gamma[0] <= a.gamma[1], "two numbers above 0 in rising order"),
    ]
    check_rules(rules)


def prepare_folder(config: TrainConfig) -> None:
    """Makes the run folder ready: empty of an earlier run's files, or with a run to resume.

    Raises:
        UserError: it holds a run and neither `resume` nor `overwrite` is set, or nothing that can be resumed.
    """
    out = Path(config.out)
    if config.plan is not None and config.plan.resolve() == (out / PLAN).resolve():
        raise UserError(f"{config.plan}: belongs to the run folder itself; copy it elsewhere and give the copy as plan")
    FOLDER.prepare(config)
    if config.resume:
        _check_same_plan(config.plan, out / PLAN)
    elif config.plan is not None:
        write_bytes(out / PLAN, plan_text(read_plan(config.plan)))


def _check_same_plan(plan: Path | None, used: Path) -> None:
    """Intensity scales come from the plan alone, so that equal settings do not show that it was left as it was."""
    if (plan is not None) != used.is_file():
        raise UserError(f"{used}: the run was started with{'out' if plan else ''} a plan; resume it in the same way")
    if plan is not None and read_plan(plan) != read_plan(used):
        raise UserError(f"{plan}: differs from {used}, with which the run was started; resume with that plan's copy")
