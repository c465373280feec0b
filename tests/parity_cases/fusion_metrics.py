"""The golden folder of fusion metrics: three pairs with the values of the tool boxes in use, by their conventions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssmvision.metrics import fusion
from tests.parity_cases.common import Comparison, compare, load_json

__all__ = ["METRICS", "matches", "run"]

SINGLE_PRECISION = ("piq.", "torchmetrics.")
MI_NATS = partial(fusion.mutual_information, unit="nats")
SCD = partial(fusion.sum_of_correlations_of_differences, undefined=math.nan)

# The golden's name of a value -> our function with that convention, from (a, b, fused).
METRICS: dict[str, Callable[..., Tensor]] = {
    "cddfuse.EN": lambda a, b, f: fusion.entropy(f),
    "skimage.shannon_entropy": lambda a, b, f: fusion.entropy(f),
    "cddfuse.SD": lambda a, b, f: fusion.standard_deviation(f),
    "cddfuse.SF": lambda a, b, f: fusion.spatial_frequency(f),
    "cddfuse.AG": lambda a, b, f: fusion.average_gradient(f),
    "cddfuse.MI": MI_NATS,
    "sklearn.MI_nats": MI_NATS,
    "sklearn.MI_bits": fusion.mutual_information,
    "skimage.NMI_sum": fusion.normalized_mutual_information,
    "cddfuse.MSE": fusion.mean_squared_error,
    "cddfuse.CC": fusion.correlation_coefficient,
    "numpy.CC_mean": fusion.correlation_coefficient,
    "cddfuse.SCD": SCD,
    "numpy.SCD": SCD,
    "cddfuse.PSNR": partial(fusion.psnr, peak="fused"),
    "skimage.PSNR_mean255": partial(fusion.psnr, average="db"),
    "numpy.PSNR_jointMSE_255": fusion.psnr,
    "skimage.SSIM_win7_sum": partial(fusion.ssim, window="uniform"),
    "skimage.SSIM_gauss11_sum": fusion.ssim,
    "skimage.SSIM_win7_range2_sum": partial(fusion.ssim, window="uniform", peak=2.0),
    "torchmetrics.SSIM_sum": partial(fusion.ssim, border="mirror"),
    "piq.SSIM_nodown_sum": fusion.ssim,
    "torchmetrics.MSSSIM_sum": partial(fusion.ms_ssim, border="mirror"),
    "piq.MSSSIM_sum": fusion.ms_ssim,
    "cddfuse.VIFF": fusion.vif,
    "sewar.VIFP_sum": fusion.vif,
    "piq.VIFP_sum": fusion.vif,
    "torchmetrics.VIF_sum": fusion.vif,
    "cddfuse.Qabf": fusion.qabf,
    "fmi.none": fusion.feature_mutual_information,
    "fmi.gradient": partial(fusion.feature_mutual_information, feature="gradient"),
    "fmi.dct": partial(fusion.feature_mutual_information, feature="dct"),
}


def matches(folder: Path) -> bool:
    path = folder / "manifest.json"
    if not path.is_file():
        return False
    manifest = load_json(path)
    return isinstance(manifest, dict) and "cddfuse.*" in manifest.get("keys", {})


def run(folder: Path) -> Iterator[Comparison]:
    """Every value of every pair."""
    manifest = load_json(folder / "manifest.json")
    for case in manifest["cases"]:
        yield from run_case(folder, case, manifest["keys"]["tolerance"])


def run_case(folder: Path, case: dict[str, Any], tolerances: dict[str, float]) -> Iterator[Comparison]:
    with np.load(folder / case["npz"]) as arrays:
        images = [torch.from_numpy(arrays[name]) for name in ("A", "B", "F")]
    measured: dict[Callable[..., Tensor], float] = {}  # several tool boxes agree on a value
    for name, expected in case["expected"].items():
        if name not in METRICS:
            raise ValueError(f"no rule to compute the golden value {name!r}")
        measure = METRICS[name]
        if measure not in measured:
            measured[measure] = float(measure(*images))
        loose = name.startswith(SINGLE_PRECISION)
        relative = tolerances["float32 libraries (piq.*, torchmetrics.*)" if loose else "default"]
        yield matched(case["name"], name, measured[measure], expected, relative)


def matched(case: str, name: str, got: float, expected: float, relative: float) -> Comparison:
    """By relative error; what is stored as infinite or undefined must be just that."""
    if math.isfinite(expected):
        return compare(case, name, got, expected, relative * abs(expected))
    same = got == expected or (math.isnan(got) and math.isnan(expected))
    return Comparison(case, name, 0.0 if same else math.inf, 0.0)
