"""Checks of a classification training's settings and of its run folder."""

from __future__ import annotations

from ssmvision.recipes.classification.config import ClassifyTrainConfig
from ssmvision.recipes.classification.networks import MODEL
from ssmvision.recipes.training.rules import Rule, at_least, check_rules, common_rules, device_rules
from ssmvision.recipes.training.run_folder import RunFolder

__all__ = ["EVALUATION", "FOLDER", "SETTINGS", "check_config"]

# Not config.json, which is what timm calls the description of a model.
SETTINGS, EVALUATION = "settings.json", "evaluation"
FOLDER = RunFolder(
    SETTINGS,
    (MODEL, EVALUATION),
    {"data.root", "trainer.devices", "trainer.checkpoint_steps", "trainer.early_stop_epochs"},
)


def check_config(config: ClassifyTrainConfig) -> None:
    """Refuses settings that cannot work.

    Raises:
        UserError: names the setting, its value and what is allowed.
    """
    check_rules((*_trainer_rules(config), *_picture_rules(config)))


def _trainer_rules(config: ClassifyTrainConfig) -> list[Rule]:
    t = config.trainer
    return [
        *common_rules(config),
        *device_rules(t),
        *at_least("trainer", t, 0, "warmup_epochs"),
        ("trainer.label_smoothing", t.label_smoothing, 0 <= t.label_smoothing < 1, "a number in [0, 1)"),
        (
            "trainer.layer_decay",
            t.layer_decay,
            t.layer_decay is None or 0 < t.layer_decay <= 1,
            "a number above 0, at most 1, or null",
        ),
    ]


def _picture_rules(config: ClassifyTrainConfig) -> list[Rule]:
    d, a, t, m = config.data, config.augment, config.trainer, config.model
    mixed = a.mixup > 0 or a.cutmix > 0
    share = t.batch_size // max(1, t.devices)
    size = config.img_size
    return [
        ("img_size", size, size is None or min(size) >= 1, "two numbers of 1 or more, or null"),
        ("model.pretrained", m.pretrained, not m.pretrained or m.checkpoint is None, "it or model.checkpoint"),
        ("model.arguments", m.arguments, "pretrained" not in m.arguments, "model.pretrained: true"),
        (
            "data.validation_fraction",
            d.validation_fraction,
            0 <= d.validation_fraction < 1,
            "a number in [0, 1)",
        ),
        ("data.train_pictures", d.train_pictures, d.train_pictures is None or d.train_pictures >= 2, "2 or more"),
        *at_least("data", d, 0, "num_workers"),
        ("data.slices", d.slices, isinstance(d.slices, str) or d.slices >= 1, "all, middle, or 1 or more"),
        (
            "data.window",
            d.window,
            d.window is None or d.window[0] < d.window[1],
            "two numbers in rising order, or null",
        ),
        ("data.dataset", d.dataset, bool(d.dataset) == (d.kind == "torchvision"), "it with kind torchvision only"),
        ("augment.crop_scale", a.crop_scale, 0 < a.crop_scale <= 1, "a number above 0, at most 1"),
        *at_least("augment", a, 0, "shift", "rotate_degrees", "mixup", "cutmix"),
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
        ("trainer.cuda_graph", True, not t.cuda_graph or t.devices == 1, "false, or trainer.devices 1"),
        (
            "augment.library",
            a.library,
            a.library != "batched" or (a.crop_scale, a.rotate_degrees, a.brightness) == (1, 0, 0),
            "albumentations or torchvision with augment.crop_scale, rotate_degrees or brightness",
        ),
        (
            "trainer.batch_size",
            t.batch_size,
            not mixed or share % 2 == 0,
            "an even number a device, since mixup and CutMix pair the pictures of a batch",
        ),
    ]
