"""Takes the settings that a plan decides (`ssmvision plan`) into a training's configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

from ssmvision.errors import UserError
from ssmvision.recipes.planning.fingerprint import Intensities
from ssmvision.recipes.planning.normalization import Scheme
from ssmvision.recipes.planning.plan import Configuration, Plan
from ssmvision.recipes.planning.plan_file import read_plan
from ssmvision.recipes.segmentation.config import TrainConfig
from ssmvision.recipes.segmentation.datalist import Dataset
from ssmvision.recipes.segmentation.preprocessing import ChannelScale, Preprocessing

__all__ = ["apply_plan", "planned_preprocessing"]

T = TypeVar("T")
CODES = "xyz"


def apply_plan(config: TrainConfig) -> TrainConfig:
    """The configuration with what its plan decides; unchanged without a plan.

    Arrays keep the axes x, y, z of the turned file, so the plan's rows are brought to that order. For slices across
    another axis than z, cases are turned further, so that it comes last.

    Raises:
        UserError: the plan is unusable, has no such configuration, or contradicts a setting that was changed from its
            default.
    """
    if config.plan is None:
        return config
    plan, planned = _read(config)
    axes = _array_axes(config, plan, planned)
    orientation = None if plan.orientation is None else "".join(plan.orientation[CODES.index(a)] for a in axes)
    _check_flips(config, plan, orientation)
    shown = plan.axes[-len(planned.spacing_mm) :]
    order = [shown.index(axis) for axis in axes[: len(shown)]]

    def turned(row: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(row[i] for i in order)

    data = _filled(config, "data", orientation=orientation, spacing_mm=turned(planned.spacing_mm))
    model = _filled(
        config,
        "model",
        name=plan.network,
        mixer=plan.mixer,
        features_per_stage=planned.features_per_stage,
        strides=tuple(map(turned, planned.strides)),
        kernel_sizes=tuple(map(turned, planned.kernel_sizes)),
        n_conv_per_stage=planned.n_conv_per_stage,
        n_conv_per_stage_decoder=planned.n_conv_per_stage_decoder,
    )
    trainer = _filled(config, "trainer", batch_size=planned.batch_size, batch_dice=planned.batch_dice, poly_per="epoch")
    if config.data.normalization != "auto":
        raise UserError(
            f"data.normalization: {config.data.normalization!r} contradicts the plan {config.plan}; "
            "edit 'normalization' there"
        )
    patch = _chosen(config, TrainConfig, config, "patch_size", turned(planned.patch_size), "")
    return replace(config, data=data, model=model, trainer=trainer, patch_size=patch)


def _read(config: TrainConfig) -> tuple[Plan, Configuration]:
    assert config.plan is not None
    plan = read_plan(config.plan)
    if config.configuration not in plan.configurations:
        names = ", ".join(plan.configurations)
        raise UserError(f"configuration: {config.configuration!r} is not in {config.plan}; use one of {names}")
    return plan, plan.configurations[config.configuration]


def _array_axes(config: TrainConfig, plan: Plan, planned: Configuration) -> tuple[str, ...]:
    """Axes of the training's arrays: x, y, z, or with the axis across the slices last."""
    across = plan.axes[0]
    if len(planned.spacing_mm) == 3 or across == "z":
        return tuple(CODES)
    if plan.orientation is None:
        raise UserError(
            f"{config.plan}: slices lie across {across}, the axis as stored; make the plan with --orientation RAS"
        )
    return (*(axis for axis in CODES if axis != across), across)


def _check_flips(config: TrainConfig, plan: Plan, orientation: str | None) -> None:
    if config.augment.flip_axes is not None and orientation != plan.orientation:
        raise UserError(
            f"augment.flip_axes: {list(config.augment.flip_axes)} may mean other axes, as {config.plan} turns cases to "
            f"{orientation}; leave it out, or train the 3D configuration"
        )


def _filled(config: TrainConfig, group: str, **planned: Any) -> Any:
    """A group of settings with the planned values."""
    given = getattr(config, group)
    values = {name: _chosen(config, type(given), given, name, value, f"{group}.") for name, value in planned.items()}
    return replace(given, **values)


def _chosen(config: TrainConfig, kind: type[Any], given: Any, name: str, planned: T, prefix: str) -> T:
    """The planned value, unless the setting was changed to another one."""
    default = next(field.default for field in fields(kind) if field.name == name)
    value = getattr(given, name)
    if value not in (default, planned):
        raise UserError(f"{prefix}{name}: {value} contradicts {planned} of the plan {config.plan}; edit the plan")
    return planned


def planned_preprocessing(config: TrainConfig, dataset: Dataset, fitted: Preprocessing) -> Preprocessing:
    """The preprocessing with the plan's intensity scales; `fitted` without a plan.

    Raises:
        UserError: the plan was made for other channels or labels.
    """
    if config.plan is None:
        return fitted
    plan, planned = _read(config)
    for name, ours, theirs in (
        ("channels", list(dataset.channels), list(plan.channels)),
        ("labels", dataset.labels, plan.labels),
    ):
        if ours != theirs:
            raise UserError(f"{config.plan}: {name} are {theirs}, but {ours} in {dataset.path}; make the plan again")
    known: Sequence[Intensities | None] = plan.foreground_intensities or [None] * len(plan.channels)
    rows = zip(planned.normalization, planned.use_mask_for_norm, known, strict=True)
    return replace(fitted, scales=tuple(_scale(*row) for row in rows))


def _scale(scheme: Scheme, masked: bool, known: Intensities | None) -> ChannelScale:
    if scheme == "ct" and known is not None:
        return ChannelScale("ct", known.percentile_00_5, known.percentile_99_5, known.mean, max(known.std, 1e-8))
    if scheme == "rgb_to_0_1":
        return ChannelScale("ct", 0.0, 255.0, 0.0, 255.0)
    if scheme == "zscore":
        return ChannelScale("zscore_nonzero" if masked else "zscore")
    return ChannelScale("rescale" if scheme == "rescale_to_0_1" else "none")
