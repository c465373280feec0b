"""`ssmvision study` of image classifiers: measures costs, trains every entry with every seed, and reports."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from ssmvision.errors import UserError
from ssmvision.recipes.classification.config import ClassifyTrainConfig, ModelConfig
from ssmvision.recipes.classification.data import Scale, measure_scale, open_data
from ssmvision.recipes.classification.pictures import PictureSets
from ssmvision.recipes.classification.run_folder import check_config
from ssmvision.recipes.image_study.config import ImageStudyConfig
from ssmvision.recipes.image_study.cost import OFF, RECORDED, Cost, measure_cost
from ssmvision.recipes.image_study.report import read_result, write_report
from ssmvision.recipes.image_study.summary import Study, markdown
from ssmvision.recipes.image_study.testing import test_part
from ssmvision.recipes.image_study.trainings import Training, list_trainings, run_training
from ssmvision.recipes.image_study.widths import matched_model
from ssmvision.recipes.segmentation.writing import check_folder
from ssmvision.recipes.study.records import check_budget, finished, kept, slug, train_all
from ssmvision.recipes.workers import call_apart

__all__ = ["check_settings", "run"]

Tell = Callable[[str], None]


def run(config: ImageStudyConfig) -> Path | None:
    """Runs the study, or what is left of it.

    Returns:
        The path of results.md; None with `costs_only`.

    Raises:
        UserError: settings or data are unusable, or costs or trainings failed (the others are finished and reported).
    """
    check_settings(config)
    console = Console(stderr=True)

    def tell(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    if config.overwrite and not config.report_only:
        for name in ("runs", "costs", "widths"):
            shutil.rmtree(config.out / name, ignore_errors=True)
    sets = open_data(config.data)
    test_part(sets)
    scale = measure_scale(sets.training, _as_training(config))
    models, failed = _models(config, sets, scale)
    costs, refused = _costs(config, models, sets.classes, scale, tell)
    failed += refused
    plain = {name for name, cost in costs.items() if cost.graph != RECORDED}
    trainings = list_trainings(config, models, plain)
    if not (config.costs_only or config.report_only):
        failed += train_all(run_training, trainings, config.jobs, tell)
    problems = f"{len(failed)} of the costs and trainings failed; give the command again once mended: " + "; ".join(
        failed
    )
    done = [training for training in trainings if finished(training)]
    if not done and not config.costs_only:
        raise UserError(problems if failed else f"{config.out}: no training is finished; leave out report_only")
    report = None if config.costs_only else _report(config, sets, models, done, costs)
    tell(f"report    {report or config.out / 'costs'}")
    if failed:
        raise UserError(problems)
    return report


def check_settings(config: ImageStudyConfig) -> None:
    """Refuses settings that contradict each other.

    Raises:
        UserError: names the setting, its value and what is allowed.
    """
    names = [slug(entry.name) for entry in config.entries]
    for key, values in (("entries", names), ("seeds", config.seeds)):
        if not values or len(set(values)) < len(values):
            raise UserError(f"{key}: {list(values)} is empty or names one twice; give each once")
    if config.trainer.seed != 0:
        raise UserError("trainer.seed: the study sets it; give seeds")
    check_budget(config.trainer.max_minutes)
    numbers = {"jobs": config.jobs, "inference_batch": config.inference_batch}
    numbers |= {f"width_step of {entry.name}": entry.width_step for entry in config.entries}
    numbers |= {"resolutions": min(config.resolutions, default=1)}
    numbers |= {"match_parameters": 1 if config.match_parameters is None else config.match_parameters}
    for key, value in numbers.items():
        if value < 1:
            raise UserError(f"{key}: {value} is not possible; give 1 or more")
    if config.costs_only and config.report_only:
        raise UserError("costs_only and report_only: both are set; give one of them")
    check_config(_as_training(config))
    check_folder(config.out)


def _as_training(config: ImageStudyConfig) -> ClassifyTrainConfig:
    """What all trainings have in common."""
    return ClassifyTrainConfig(
        config.data, config.out, augment=config.augment, trainer=config.trainer, img_size=config.img_size
    )


def _models(config: ImageStudyConfig, sets: PictureSets, scale: Scale) -> tuple[dict[str, ModelConfig], list[str]]:
    """The entries' networks at their widths, and what is wrong with the others."""
    models, failed = {}, []
    for entry in config.entries:
        try:
            settings: dict[str, Any] = {"entry": asdict(entry), "arguments": config.arguments, "size": scale.size}
            settings |= {"parameters": config.match_parameters, "channels": len(scale.mean)}
            settings["classes"] = len(sets.classes)
            path = config.out / "widths" / f"{slug(entry.name)}.json"
            find = partial(matched_model, config, entry, sets.classes, scale)
            models[entry.name] = kept(path, settings, ModelConfig, find)
        except Exception as error:  # of one network: the others go on
            failed.append(f"{entry.name}: {_told(error)}")
    if not models:
        raise UserError("; ".join(failed))
    return models, failed


def _told(error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def _costs(
    config: ImageStudyConfig, models: dict[str, ModelConfig], classes: tuple[str, ...], scale: Scale, tell: Tell
) -> tuple[dict[str, Cost], list[str]]:
    """Measured costs by entry (those measured before at the same settings are kept), and what could not be measured."""
    costs, failed = {}, []
    trainer = config.trainer
    for name, model in models.items():
        settings: dict[str, Any] = {"model": asdict(model), "size": scale.size, "channels": len(scale.mean)}
        settings |= {"batch_size": trainer.batch_size, "inference_batch": config.inference_batch}
        settings |= {"precision": trainer.precision, "optimizer": trainer.optimizer, "classes": len(classes)}
        path = config.out / "costs" / f"{slug(name)}.json"
        if config.report_only and not path.is_file():
            continue
        find = partial(_measure, config, model, classes, scale)
        try:  # a network that cannot be recorded leaves its process unfit to record others
            costs[name] = kept(path, settings, Cost, partial(call_apart, find, name) if trainer.cuda_graph else find)
        except Exception as error:  # of one network: the others go on
            failed.append(f"cost of {name}: {_told(error)}")
            continue
        c = costs[name]
        how = "" if c.graph in (RECORDED, OFF) else f", without a CUDA graph: {c.graph}"
        speed = f"{c.step_ms:.1f} ms a step, {c.inference_per_s:,.0f} img/s{how}"
        tell(f"cost      {name}: {c.parameters:,} parameters, {speed}")
    return costs, failed


def _measure(config: ImageStudyConfig, model: ModelConfig, classes: tuple[str, ...], scale: Scale) -> Cost:
    """A cost, or a `UserError` that can be told from another process in one line."""
    try:
        return measure_cost(config, model, classes, scale)
    except Exception as error:
        raise UserError(_told(error)) from error


def _report(
    config: ImageStudyConfig,
    sets: PictureSets,
    models: dict[str, ModelConfig],
    trainings: list[Training],
    costs: dict[str, Cost],
) -> Path:
    """Tables and figures of the trainings, which are finished."""
    results = tuple(read_result(training) for training in trainings)
    study = Study(config.entries, results, costs, config.resolutions)
    print(markdown(study))
    part, tested = test_part(sets)
    return write_report(config, study, models, part, (len(sets.training), len(tested)))
