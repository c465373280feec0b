"""Checks of a fusion training's settings and of its run folder."""

from __future__ import annotations

from ssmvision.recipes.fusion.callbacks import PREVIEWS
from ssmvision.recipes.fusion.config import FusionTrainConfig
from ssmvision.recipes.fusion.weights import CARD, WEIGHTS
from ssmvision.recipes.training.rules import Rule, at_least, check_rules, common_rules
from ssmvision.recipes.training.run_folder import RunFolder

__all__ = ["FOLDER", "check_config"]

FOLDER = RunFolder("config.json", (WEIGHTS, CARD, PREVIEWS), {"data.a", "data.b", "trainer.previews"})


def check_config(config: FusionTrainConfig) -> None:
    """Refuses settings that cannot work.

    Raises:
        UserError: names the setting, its value and what is allowed.
    """
    check_rules((*_trainer_rules(config), *_image_rules(config)))


def _trainer_rules(config: FusionTrainConfig) -> list[Rule]:
    return [
        *at_least("trainer", config.trainer, 1, "steps_per_epoch"),
        *at_least("trainer", config.trainer, 0, "warmup_steps", "previews"),
        *common_rules(config),
    ]


def _image_rules(config: FusionTrainConfig) -> list[Rule]:
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
