"""`ssmvision plan`: measures a dataset, plans it, prints the plan and writes it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ssmvision.errors import UserError
from ssmvision.recipes.planning.budgets import BUDGETS
from ssmvision.recipes.planning.config import PlanConfig
from ssmvision.recipes.planning.fingerprint import Fingerprint, read_fingerprint
from ssmvision.recipes.planning.measure import measure_dataset
from ssmvision.recipes.planning.plan import Configuration, Plan
from ssmvision.recipes.planning.plan_file import plan_text
from ssmvision.recipes.planning.planner import decide
from ssmvision.recipes.segmentation.datalist import Dataset, read_dataset
from ssmvision.recipes.segmentation.writing import check_free, write_bytes

__all__ = ["make_plan", "print_plan", "run"]


def run(config: PlanConfig) -> Plan:
    """Plans a dataset and writes the plan.

    Raises:
        UserError: settings, data or output are unusable.
    """
    _check(config)
    inputs = [path for path in (config.data, config.fingerprint) if path is not None]
    for path in (config.out, config.save_fingerprint):
        if path is not None:
            check_free(path, config.overwrite, inputs)
    dataset = read_dataset(config.data)
    console = Console(stderr=True)
    if config.fingerprint is not None:
        fingerprint = read_fingerprint(config.fingerprint, len(dataset.training), len(dataset.channels))
        console.print(f"read {config.fingerprint}; no image was opened", markup=False, highlight=False, soft_wrap=True)
    else:
        fingerprint = _measure(config, dataset, console)
    plan = make_plan(config, dataset, fingerprint)
    print_plan(plan, Console())
    if config.save_fingerprint is not None:
        write_bytes(config.save_fingerprint, json.dumps(fingerprint.to_json(), indent=1) + "\n")
    write_bytes(config.out, plan_text(plan))
    console.print(f"wrote {config.out}", markup=False, highlight=False, soft_wrap=True)
    return plan


def _check(config: PlanConfig) -> None:
    if config.vram is not None and not (math.isfinite(config.vram) and config.vram > 0):
        raise UserError(f"vram: {config.vram} is not possible; give GB above 0")
    if config.mixer not in ("mamba", "none"):
        _check_mixer(config)
    if config.network == "DynUNet" and config.budget != "default":
        raise UserError(
            f"network: DynUNet is nnU-Net's plain U-Net, which budget {config.budget} does not fit; "
            "use the budget default"
        )
    edges = config.spacing_mm
    if edges is not None and (len(edges) != 3 or not all(0 < edge < math.inf for edge in edges)):
        raise UserError(f"spacing_mm: {list(edges)} does not fit; give 3 sizes above 0 in mm (x, y, z), or null")
    codes = config.orientation
    pairs = ("LR", "PA", "IS")
    if codes is not None and [sum(c in pair for c in codes) for pair in pairs] + [len(codes)] != [1, 1, 1, 3]:
        raise UserError(f"orientation: {codes!r} is no axis code; give one of each of R/L, A/P and S/I, such as RAS")


def _check_mixer(config: PlanConfig) -> None:
    from ssmvision.layers.mixers import mixer_names  # imports PyTorch

    if config.network not in ("UMambaBot", "UMambaEnc"):
        raise UserError(
            f"network: {config.network} has no state-space layers for mixer {config.mixer}; leave mixer out"
        )
    if config.mixer not in mixer_names():
        raise UserError(f"mixer: {config.mixer!r} is unknown; use one of {', '.join(mixer_names())}")


def _measure(config: PlanConfig, dataset: Dataset, console: Console) -> Fingerprint:
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("reading cases", total=len(dataset.training))
        return measure_dataset(dataset, config.orientation, config.workers, lambda case: progress.advance(bar))


def make_plan(config: PlanConfig, dataset: Dataset, fingerprint: Fingerprint) -> Plan:
    """The plan of a measured dataset.

    Raises:
        UserError: the memory is too small for any patch, or a channel named CT has no labelled voxel.
    """
    budget = BUDGETS[config.budget].scaled(config.vram)
    spacing = None if config.spacing_mm is None else config.spacing_mm[::-1]
    decisions = decide(fingerprint, dataset.channels, len(dataset.labels), len(dataset.training), budget, spacing)
    intensities = fingerprint.foreground_intensity_properties_per_channel
    if not intensities and any("ct" in c.normalization for c in decisions.configurations.values()):
        raise UserError(
            f"{dataset.path}: 0 labelled voxels in the training cases, which CT normalisation needs; label a case"
        )
    return Plan(
        dataset=dataset.path.resolve().parent.name,
        channels=dataset.channels,
        labels=dataset.labels,
        training_cases=len(dataset.training),
        orientation=config.orientation,
        axes=tuple("zyx"[axis] for axis in decisions.transpose_forward),
        transpose_forward=decisions.transpose_forward,
        transpose_backward=decisions.transpose_backward,
        median_spacing_mm=decisions.median_spacing_mm,
        median_shape=decisions.median_shape,
        budget=config.budget,
        vram_gb=budget.vram_gb,
        counted_network=budget.network,
        network=config.network,
        mixer=config.mixer,
        configurations=decisions.configurations,
        cascade=decisions.cascade,
        foreground_intensities=intensities,
    )


def print_plan(plan: Plan, console: Console) -> None:
    """What the plan was made from, and a table of its configurations."""
    turned = f", after turning to {plan.orientation}" if plan.orientation else ", as stored"
    for line in (
        f"dataset   {plan.dataset}: {plan.training_cases} training case(s), channels {', '.join(plan.channels)}, "
        f"{len(plan.labels)} labels",
        f"cases     median {_times(plan.median_shape)} voxels of {_times(plan.median_spacing_mm)} mm after cropping",
        f"axes      {', '.join(plan.axes)}{turned}",
        f"budget    {plan.budget}, {plan.vram_gb:g} GB as counted on nnU-Net's {plan.counted_network}",
        f"network   {plan.network}, mixer {plan.mixer}",
    ):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    table = Table("", *plan.configurations)
    for title, show in ROWS.items():
        table.add_row(title, *map(show, plan.configurations.values()))
    console.print(table)


def _times(values: Iterable[float]) -> str:
    return " x ".join(f"{value:.4g}" for value in values)


ROWS: dict[str, Callable[[Configuration], str]] = {
    "voxel size (mm)": lambda c: _times(c.spacing_mm),
    "median image": lambda c: _times(c.median_shape),
    "patch": lambda c: _times(c.patch_size),
    "batch": lambda c: str(c.batch_size),
    "features": lambda c: ", ".join(map(str, c.features_per_stage)),
    "halvings per axis": lambda c: _times(sum(s > 1 for s in axis) for axis in zip(*c.strides, strict=True)),
    "normalisation": lambda c: ", ".join(
        f"{scheme} of what is not 0" if masked else scheme
        for scheme, masked in zip(c.normalization, c.use_mask_for_norm, strict=True)
    ),
}
