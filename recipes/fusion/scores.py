"""Scores of fused images: every metric for every pair and method, and who is best in what."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata

from ssmvision.metrics.fusion import applicable, fusion_metrics, psnr, ssim
from ssmvision.recipes.fusion.pairs import ImagePair

__all__ = [
    "COMPARED",
    "TRUTH",
    "Score",
    "best_methods",
    "mean_ranks",
    "mean_scores",
    "measure",
    "metric_names",
    "scores_csv",
]

# What only a pair with a known result has: the same metrics of the fused image against it.
TRUTH = ("PSNR of truth", "SSIM of truth")
# Metrics that compare the fused image with its sources or the truth, each property once. The others look at the fused
# image alone, and noise raises all of them.
COMPARED = (
    *("MI (bits)", "CC", "SCD", "PSNR", "SSIM", "MS-SSIM", "VIF", "Qabf"),
    *("FMI (none)", "FMI (gradient)", "FMI (dct)", *TRUTH),
)


@dataclass(frozen=True)
class Score:
    """One fused image.

    Args:
        task: kind of pair.
        pair: its name.
        method: how it was fused; networks of several seeds share a method.
        seed: of the network; None where nothing was trained.
        values: by metric; a metric whose windows do not fit the image is missing.
        seconds: that fusing took.
    """

    task: str
    pair: str
    method: str
    seed: int | None
    values: dict[str, float]
    seconds: float


def measure(pair: ImagePair, fused: NDArray[np.float32]) -> dict[str, float]:
    """All metrics that fit the image's size.

    Args:
        pair: the sources, and the truth if there is one.
        fused: (H, W) in [0, 1].
    """
    a, b, f = (torch.from_numpy(np.ascontiguousarray(x)) for x in (pair.a, pair.b, fused))
    values = fusion_metrics(a, b, f, data_range=1.0, names=applicable(*f.shape))
    found = {name: float(value) for name, value in values.items()}
    if pair.truth is not None:
        truth = torch.from_numpy(np.ascontiguousarray(pair.truth))
        against = (
            psnr(truth, truth, f, data_range=1.0),
            ssim(truth, truth, f, data_range=1.0, reduction="mean"),
        )
        found |= {name: float(value) for name, value in zip(TRUTH, against, strict=True)}
    return found


def metric_names(scores: Iterable[Score]) -> list[str]:
    """Every metric that any of the scores has, in the order met."""
    return list(dict.fromkeys(name for score in scores for name in score.values))


def mean_scores(scores: Sequence[Score]) -> dict[str, dict[str, tuple[float, float, float]]]:
    """By method and metric: mean, smallest and largest over the seeds, of means over the pairs.

    Args:
        scores: of one task.
    """
    means: dict[str, dict[str, tuple[float, float, float]]] = {}
    for method in dict.fromkeys(score.method for score in scores):
        own = [score for score in scores if score.method == method]
        means[method] = {}
        for name in metric_names(own):
            seeds: dict[int | None, list[float]] = {}
            for score in own:
                seeds.setdefault(score.seed, []).append(score.values[name])
            of_seeds = [float(np.mean(values)) for values in seeds.values()]
            means[method][name] = (float(np.mean(of_seeds)), min(of_seeds), max(of_seeds))
    return means


def best_methods(scores: Sequence[Score]) -> dict[str, str]:
    """By metric the method with the largest mean, as all metrics are better larger; on a tie the first.

    Args:
        scores: of one task.
    """
    means = mean_scores(scores)
    return {name: max(means, key=lambda method: means[method][name][0]) for name in metric_names(scores)}


def mean_ranks(scores: Sequence[Score]) -> dict[str, float]:
    """By method its place among the methods, 1 the best, averaged over the metrics of `COMPARED`; ties share theirs.

    Args:
        scores: of one task.
    """
    means = mean_scores(scores)
    names = [name for name in metric_names(scores) if name in COMPARED]
    ranks = [rankdata([-means[method][name][0] for method in means]) for name in names]
    return dict(zip(means, np.mean(ranks, axis=0).tolist(), strict=True))


def scores_csv(scores: Sequence[Score]) -> str:
    """A line for every fused image."""
    names = metric_names(scores)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["task", "pair", "method", "seed", "seconds", *names])
    for score in scores:
        seed = "" if score.seed is None else score.seed
        values = [f"{score.values[name]:.6g}" if name in score.values else "" for name in names]
        writer.writerow([score.task, score.pair, score.method, seed, f"{score.seconds:.4f}", *values])
    return text.getvalue()
