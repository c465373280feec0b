"""Predicts, for each training, the cases that it held out, and scores them: the predictions of a cross-validation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from ssmvision.errors import UserError
from ssmvision.recipes.evaluation.config import ValidateConfig
from ssmvision.recipes.evaluation.pooling import pool, print_summary
from ssmvision.recipes.evaluation.runs import Run, open_runs
from ssmvision.recipes.segmentation.config import PredictConfig
from ssmvision.recipes.segmentation.datalist import Case, read_json
from ssmvision.recipes.segmentation.evaluate import score_pairs
from ssmvision.recipes.segmentation.predict import Job, Tell, open_predictor, predict_jobs
from ssmvision.recipes.segmentation.scores import Evaluation, Rules, to_csv
from ssmvision.recipes.segmentation.writing import check_folder, write_bytes

__all__ = ["predict_held_out", "run", "validate"]

# Says what the predictions beside it were made with.
MADE_WITH = "made_with.json"


def run(config: ValidateConfig) -> list[Evaluation]:
    """Validates every run and prints the pooled scores.

    Raises:
        UserError: a run or its dataset is unusable (nothing is predicted), or some cases failed (the others are
            predicted and scored; the message lists every failure).
    """
    rules = Rules(config.nsd_tolerance_mm, config.nsd_tolerances_mm or {}, config.lesion_iou)
    console = Console(stderr=True)

    def tell(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    if config.threads is not None:
        torch.set_num_threads(config.threads)
    runs = open_runs(config.runs)
    cases = [one.held_out(config.data) for one in runs]
    for one in runs:
        rules.tolerances(name for name, i in one.labels.items() if i)
        check_folder(one.scores_path.parent)
        _check_same_settings(one, config)
    evaluations = []
    for one, held_out in zip(runs, cases, strict=True):
        tell(f"run       {one.folder}: {one.network}, seed {one.seed}, {len(held_out)} held-out case(s)")
        if not one.unseen:
            tell(f"warning   {one.folder}: these cases were trained on; their scores tell nothing of unseen ones")
        evaluations.append(validate(one, held_out, config, rules, tell))
    print_summary(pool(runs, evaluations))
    failed = [told for evaluation in evaluations for told in evaluation.failed.values()]
    if failed:
        raise UserError(f"validate: {len(failed)} case(s) failed and are not in the means: " + "; ".join(failed))
    return evaluations


def validate(run: Run, cases: Sequence[Case], config: ValidateConfig, rules: Rules, tell: Tell) -> Evaluation:
    """Predicts the held-out cases of one run, scores them and writes scores.json and scores.csv.

    Returns:
        The scores; cases that could not be predicted or scored are listed in them.
    """
    failed = predict_held_out(run, cases, config, tell)
    pairs = {c.id: (run.prediction(c.id), c.label) for c in cases if c.id not in failed and c.label is not None}
    evaluation = score_pairs(list(pairs.values()), run.labels, rules, True, config.workers, failed, list(pairs))
    content = {"weights_sha256": run.digest, "prediction": _made_with(run, config)["settings"]} | evaluation.to_json()
    write_bytes(run.scores_path, json.dumps(content, indent=2) + "\n")
    write_bytes(run.scores_path.with_suffix(".csv"), to_csv(evaluation))
    return evaluation


def predict_held_out(run: Run, cases: Sequence[Case], config: ValidateConfig, tell: Tell) -> dict[str, str]:
    """Writes the label maps of held-out cases, as the network gives them, without post-processing.

    Returns:
        What went wrong, by case.
    """
    folder = run.scores_path.parent
    made_with = _made_with(run, config)
    stale = config.overwrite or not (folder / MADE_WITH).is_file()
    for case in cases:
        if stale:
            run.prediction(case.id).unlink(missing_ok=True)
    run.scores_path.unlink(missing_ok=True)
    write_bytes(folder / MADE_WITH, json.dumps(made_with, indent=2) + "\n")
    missing = [case for case in cases if not run.prediction(case.id).is_file()]
    if len(missing) < len(cases):
        tell(f"kept      {len(cases) - len(missing)} prediction(s) of the same weights in {folder}")
    if not missing:
        return {}
    predict = _predict_config(run, config)
    jobs = {Job(case.images, run.prediction(case.id)): case.id for case in missing}
    failed = predict_jobs(open_predictor(predict), list(jobs), predict, tell)
    return {jobs[job]: str(error) for job, error in failed.items()}


def _predict_config(run: Run, config: ValidateConfig) -> PredictConfig:
    return PredictConfig(
        model=run.folder,
        input=run.folder,
        output=run.scores_path.parent,
        overlap=config.overlap,
        tta=config.tta,
        mirror_axes=config.mirror_axes,
        postprocessing="none",
        window_batch=config.window_batch,
        memory_gb=config.memory_gb,
        device=config.device,
        threads=config.threads,
    )


def _made_with(run: Run, config: ValidateConfig) -> dict[str, object]:
    settings = {"overlap": config.overlap, "tta": config.tta, "mirror_axes": list(config.mirror_axes)}
    return {"weights_sha256": run.digest, "settings": settings}


def _check_same_settings(run: Run, config: ValidateConfig) -> None:
    """Refuses to mix predictions of other weights or settings with new ones."""
    path: Path = run.scores_path.with_name(MADE_WITH)
    if path.is_file() and not config.overwrite:
        found, wanted = read_json(path, "pass --overwrite"), _made_with(run, config)
        if found != wanted:
            raise UserError(f"{path}: predictions there were made with {found}, now {wanted}; pass --overwrite")
