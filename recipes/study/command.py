"""`ssmvision study`: prepares the data, trains every network on every fold with every seed, and reports."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from ssmvision.errors import UserError
from ssmvision.layers.mixers import mixer_names
from ssmvision.recipes.segmentation.architecture import NETWORKS
from ssmvision.recipes.segmentation.config import ModelConfig
from ssmvision.recipes.segmentation.datalist import Dataset, read_dataset
from ssmvision.recipes.segmentation.preprocessing import fit_preprocessing
from ssmvision.recipes.segmentation.writing import check_folder
from ssmvision.recipes.study.config import StudyConfig
from ssmvision.recipes.study.cost import Cost, measure_cost
from ssmvision.recipes.study.records import check_budget, finished, kept, slug, train_all
from ssmvision.recipes.study.report import read_result, write_report
from ssmvision.recipes.study.rules import score_rules
from ssmvision.recipes.study.summary import Study, markdown
from ssmvision.recipes.study.trainings import (
    Training,
    folds_of,
    list_trainings,
    model_of,
    model_settings,
    run_training,
    train_config,
)

__all__ = ["check_settings", "prepare_data", "run"]


def run(config: StudyConfig) -> Path | None:
    """Runs the study, or what is left of it.

    Returns:
        The path of results.md; None with `prepare_only`.

    Raises:
        UserError: settings or data are unusable, or trainings failed (the others are finished, and the report is
            written if every network has one).
    """
    check_settings(config)
    console = Console(stderr=True)

    def tell(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    if config.overwrite and config.out.exists():
        for name in ("data", "runs", "predictions", "costs"):
            shutil.rmtree(config.out / name, ignore_errors=True)
    root = prepare_data(config)
    dataset = read_dataset(root)
    tell(f"data      {dataset.path}: {len(dataset.training)} cases, {len(dataset.labels) - 1} classes")
    if config.prepare_only:
        return None
    trainings = list_trainings(config, root)
    costs = _costs(config, dataset, trainings[0])
    failed = train_all(run_training, trainings, config.jobs, tell)
    report = _report(config, dataset, trainings, costs)
    tell(f"report    {report}")
    if failed:
        raise UserError(
            f"{len(failed)} of {len(trainings)} trainings failed; give the command again once mended: "
            + "; ".join(failed)
        )
    return report


def check_settings(config: StudyConfig) -> None:
    """Refuses settings that contradict each other.

    Raises:
        UserError: names the setting, its value and what is allowed.
    """
    default = ModelConfig()
    if (config.source is None) == (config.data is None):
        raise UserError("source, data: give one of them: --source lungs, --source brain, or --data FOLDER")
    set_here = (config.model.name, config.model.mixer, config.model.mixer_args, config.trainer.seed)
    if set_here != (default.name, default.mixer, {}, 0):
        raise UserError(
            "model.name, model.mixer, model.mixer_args, trainer.seed: the study sets them; give networks and seeds, "
            "and mixer_args beside them"
        )
    check_budget(config.trainer.max_minutes)
    for network in config.networks:
        name, _, mixer = network.partition("/")
        if name not in NETWORKS or mixer not in ("", *mixer_names()):
            raise UserError(
                f"networks: {network!r} is unknown; give NAME or NAME/MIXER of {', '.join(NETWORKS)} and "
                f"{', '.join(mixer_names())}"
            )
    unused = sorted(set(config.mixer_args) - {model_of(config, network).mixer for network in config.networks})
    if unused:
        raise UserError(f"mixer_args: no network has the mixer {unused[0]!r}; networks are {list(config.networks)}")
    for key, values in (("networks", config.networks), ("seeds", config.seeds)):
        if not values or len(set(values)) < len(values):
            raise UserError(f"{key}: {list(values)} is empty or names one twice; give each once")
    if config.jobs < 1:
        raise UserError(f"jobs: {config.jobs} is not possible; give 1 or more")
    check_folder(config.out)


def prepare_data(config: StudyConfig) -> Path:
    """Folder of the study's dataset, written if it is not there yet.

    Raises:
        UserError: the package that holds the data is missing, or `config.data` is no dataset.
    """
    if config.data is not None:
        return config.data
    root = config.out / "data" / str(config.source)
    if not (root / "dataset.json").is_file():
        # Written last: without it, what is there was left by a run that was stopped.
        shutil.rmtree(root, ignore_errors=True)
        if config.source == "lungs":
            from ssmvision.recipes.study.lungs import write_lungs

            write_lungs(root)
        else:
            from ssmvision.recipes.study.brain import write_brains

            write_brains(root)
    return root


def _costs(config: StudyConfig, dataset: Dataset, training: Training) -> dict[str, Cost]:
    """Measured costs by network; those measured before at the same settings are kept."""
    costs = {}
    data = train_config(training, resume=False).data
    spacing: Sequence[float] | None = None

    def measure(network: str) -> Cost:
        nonlocal spacing
        if spacing is None:
            spacing = fit_preprocessing(data, dataset, len(config.patch_size))[1]
        return measure_cost(config, network, len(dataset.channels), len(dataset.labels), spacing)

    for network in config.networks:
        settings = {
            "model": model_settings(model_of(config, network)),
            "patch_size": list(config.patch_size),
            "batch_size": config.trainer.batch_size,
            "precision": config.trainer.precision,
        }
        path = config.out / "costs" / f"{slug(network)}.json"
        costs[network] = kept(path, settings, Cost, partial(measure, network))
    return costs


def _report(config: StudyConfig, dataset: Dataset, trainings: Sequence[Training], costs: dict[str, Cost]) -> Path:
    """Tables and figures of what is finished.

    Raises:
        UserError: nothing is.
    """
    done = [training for training in trainings if finished(training)]
    if not done:
        raise UserError(f"{config.out}: no training finished; see runs/*/fold_*/seed_*/log.txt")
    folds = folds_of(config, dataset)
    study = Study(
        config.networks,
        tuple(folds),
        tuple(name for name, value in dataset.labels.items() if value),
        tuple(read_result(training)[0] for training in done),
        score_rules(dataset, folds, config.nsd_tolerance_mm, config.threshold),
        costs,
    )
    print(markdown(study))
    return write_report(config, dataset, study, done)
