"""The demo's report: what it shows, and above all what it does not."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssmvision.recipes.segmentation.baselines import OracleThresholds
from ssmvision.recipes.segmentation.demo_config import DemoConfig, SlabConfig
from ssmvision.recipes.segmentation.demo_data import LABELS, DemoDataset, load_anatomy, split_slabs
from ssmvision.recipes.segmentation.evaluate import Evaluation
from ssmvision.recipes.segmentation.figures import Overlay, curves_png, overlay_png
from ssmvision.recipes.segmentation.report import Facts, Highlight, Picture, Report, write_report
from ssmvision.recipes.segmentation.report_parts import (
    environment_facts,
    scores_table,
    settings_facts,
    training_curves,
)
from ssmvision.recipes.segmentation.train import RunResult
from ssmvision.recipes.segmentation.volumes import read_image, read_label_map
from ssmvision.recipes.segmentation.writing import write_bytes

__all__ = ["FIGURES", "ORACLE", "TWIN", "UMAMBA", "DemoOutcome", "demo_command", "write_demo_report"]

FIGURES = ("overlays", "curves", "slabs")
UMAMBA, TWIN, ORACLE = "U-Mamba", "Twin without SSM", "Oracle thresholds"
LIMITS = (
    "Real anatomy, simulated artefacts. One averaged head (MNI152): the front slab was trained on, the back slab "
    "tested, both of the same subject. This shows that the pipeline works, not clinical generalisation."
)
ORACLE_NOTE = (
    "Oracle thresholds: the two global intensity thresholds with the best mean Dice on this very image, chosen with "
    "its reference labels; no two thresholds of it can do better."
)
# In MNI space; a training slab that starts in front of it has no cerebellum.
CEREBELLUM_FRONT_MM = -30.0
CEREBELLUM_NOTE = " The cerebellum lies wholly behind the training slab: its folds were never seen in training."


@dataclass(frozen=True)
class DemoOutcome:
    """Everything a demo computed.

    Args:
        config, dataset: what was asked for, and the data made from it.
        runs: trainings by method.
        predictions: label map files of the test slab by method, the oracle's included.
        evaluations: their scores.
        thresholds: of the oracle.
        seconds: from the start to the last score.
    """

    config: DemoConfig
    dataset: DemoDataset
    runs: Mapping[str, RunResult]
    predictions: Mapping[str, Path]
    evaluations: Mapping[str, Evaluation]
    thresholds: OracleThresholds
    seconds: float

    def dice(self, method: str) -> float:
        """Mean Dice of both tissues on the test slab."""
        return self.evaluations[method].mean("dice")

    @property
    def margin(self) -> float:
        """Mean Dice of U-Mamba minus that of the oracle thresholds."""
        return self.dice(UMAMBA) - self.dice(ORACLE)

    @property
    def finished(self) -> bool:
        """Whether no training was cut short by the time limit."""
        planned = self.config.epochs * self.config.steps_per_epoch
        return all(result.steps == planned for result in self.runs.values())


def _changed(config: Any, prefix: str = "") -> list[str]:
    """Options for the settings that differ from their defaults."""
    options = []
    for field in dataclasses.fields(config):
        value, default = getattr(config, field.name), field.default
        if dataclasses.is_dataclass(value):
            options += _changed(value, f"{prefix}{field.name}.")
        elif value != default and field.name not in ("out", "overwrite"):
            text = str(list(value)) if isinstance(value, tuple) else str(value).lower() if value is True else str(value)
            options.append(f"--{prefix}{field.name} {shlex.quote(text)}")
    return options


def demo_command(config: DemoConfig) -> str:
    """Command line with the same settings; of the folder only the name, since paths name people and places."""
    return " ".join(["ssmvision demo", f"--out {shlex.quote(Path(config.out).name)}", *_changed(config)])


def _summary(outcome: DemoOutcome) -> str:
    config, test = outcome.config, outcome.evaluations[UMAMBA]
    minutes = outcome.runs[UMAMBA].seconds / 60
    verdict = "better" if outcome.margin > 0 else "worse"
    return (
        f"A 3D U-Mamba with {outcome.runs[UMAMBA].parameters:,} parameters was trained for "
        f"{outcome.runs[UMAMBA].steps} steps ({minutes:.1f} minutes) to find {' and '.join(test.labels)} at "
        f"{config.slabs.voxel_mm} mm under a bias field and noise. On the slab it had not seen, its mean Dice is "
        f"{outcome.dice(UMAMBA):.3f}, {abs(outcome.margin):.3f} {verdict} than the best two intensity thresholds there "
        f"are for that image.{_twin_sentence(outcome)}"
    )


def _twin_sentence(outcome: DemoOutcome) -> str:
    """What the control says, or that there was none: a reader must not have to look for it."""
    if TWIN not in outcome.evaluations:
        return " What its state-space layer adds is not tested here; the option --twin trains the control for that."
    return (
        f" The same network without its state-space layer reaches {outcome.dice(TWIN):.3f} "
        f"({outcome.dice(UMAMBA) - outcome.dice(TWIN):+.3f} for U-Mamba; one seed, one slab)."
    )


def _highlights(outcome: DemoOutcome) -> tuple[Highlight, ...]:
    tiles = [
        Highlight(f"{outcome.dice(UMAMBA):.3f}", "mean Dice, U-Mamba, unseen slab"),
        Highlight(f"{outcome.margin:+.3f}", "mean Dice over the oracle thresholds"),
        Highlight(f"{outcome.dice(ORACLE):.3f}", "mean Dice, oracle thresholds"),
    ]
    if TWIN in outcome.evaluations:
        tiles.append(Highlight(f"{outcome.dice(TWIN):.3f}", "mean Dice, same network without its SSM layer"))
    return tuple(tiles)


def _notices(outcome: DemoOutcome) -> tuple[str, ...]:
    notices = [LIMITS]
    if not outcome.finished:
        steps = ", ".join(f"{method}: {result.steps}" for method, result in outcome.runs.items())
        planned = outcome.config.epochs * outcome.config.steps_per_epoch
        notices.append(
            f"Training was stopped by the limit of {outcome.config.max_minutes:g} minutes ({steps} of {planned} "
            "steps); the numbers depend on this machine's speed."
        )
    return tuple(notices)


def _figures(outcome: DemoOutcome) -> dict[str, Picture]:
    dataset = outcome.dataset
    volume = read_image([dataset.root / "imagesTs" / f"{dataset.test}_0000.nii.gz"])
    reference, _ = read_label_map(dataset.root / "labelsTs" / f"{dataset.test}.nii.gz")
    columns = [Overlay("image"), Overlay("reference", reference)]
    for method in (UMAMBA, ORACLE):
        labels, _ = read_label_map(outcome.predictions[method])
        columns += [Overlay(method, labels), Overlay(f"errors: {method}", labels, reference)]
    overlays = overlay_png(volume.data[0], volume.grid.affine, columns, LABELS, slices_from=reference)
    seen = "" if outcome.config.slabs.train_from_mm < CEREBELLUM_FRONT_MM else CEREBELLUM_NOTE
    many = len(outcome.runs) > 1
    curves = [c for method, r in outcome.runs.items() for c in training_curves(r.history, method if many else "")]
    return {
        "overlays": Picture(
            overlays,
            "The unseen back slab, radiological convention (the patient's right is on the left), one scale in mm. "
            f"Real anatomy, simulated artefacts: bias field and Rician noise with an unseen seed.{seen}",
            "Axial, coronal and sagittal slices: image, reference labels, and labels and errors of U-Mamba and of "
            "the oracle thresholds.",
        ),
        "curves": Picture(
            curves_png(curves),
            "Training. Dice is measured on the front slab under artefacts of an unseen seed: the anatomy was "
            "trained on, so it only shows that learning progresses.",
            "Line charts of training loss and Dice against the step.",
        ),
        "slabs": _slabs_picture(outcome.config.slabs),
    }


def _slabs_picture(slabs: SlabConfig) -> Picture:
    """The whole head without artefacts, and which part of its brain is in which slab."""
    head = load_anatomy(slabs.voxel_mm)
    front, back = split_slabs(head, slabs)
    parts = np.zeros_like(head.labels)
    parts[:, -front.labels.shape[1] :] = 1
    parts[:, : back.labels.shape[1]] = 2
    parts[head.labels == 0] = 0
    classes = {"background": 0, "trained on": 1, "tested on": 2}
    columns = [Overlay("MNI152 T1"), Overlay("slabs", parts)]
    return Picture(
        overlay_png(head.t1, head.affine, columns, classes, slices_from=head.labels),
        "Where the head is cut, before any artefact. The voxels between the slabs are in neither.",
        "Axial, coronal and sagittal slices of the head, with the training slab in front and the test slab behind.",
    )


def _data_facts(outcome: DemoOutcome) -> Facts:
    slabs, corruption = outcome.config.slabs, outcome.config.corruption
    items = (
        ("Head", "ICBM 152 nonlinear symmetric 2009a (Fonov et al. 2011), T1 and tissue probabilities, from nilearn"),
        ("Grid", f"{slabs.voxel_mm} mm cubes, means of the 1 mm template; label: the likeliest tissue"),
        (
            "Trained on",
            f"MNI y at or in front of {slabs.train_from_mm:g} mm, {outcome.config.train_copies} corruptions "
            "of that one slab (augmentation, not subjects)",
        ),
        ("Tested on", f"MNI y at or behind {slabs.test_to_mm:g} mm, one corruption of an unseen seed"),
        ("Hemispheres", "never split: the template is its own mirror image"),
        ("Bias field", f"log field of peak {corruption.bias_strength:g}, {corruption.bias_fwhm_mm:g} mm FWHM"),
        ("Noise", f"Rician, sd {corruption.noise_sd:g} on the scale of 0 to 255"),
        ("Thresholds", f"{outcome.thresholds.low:.1f} and {outcome.thresholds.high:.1f}"),
        (
            "Time",
            ", ".join(f"{m}: {r.seconds:.0f} s of training" for m, r in outcome.runs.items())
            + f"; {outcome.seconds:.0f} s in all",
        ),
        ("Seed", str(outcome.config.seed)),
    )
    return Facts("Data and run", items)


def write_demo_report(out: Path, outcome: DemoOutcome) -> Path:
    """Writes figures/*.png and report.html into `out` and returns the report's path."""
    figures = _figures(outcome)
    for name, picture in figures.items():
        write_bytes(out / "figures" / f"{name}.png", picture.png)
    report = Report(
        title="U-Mamba on an unseen slab of the MNI152 head",
        summary=_summary(outcome),
        notices=_notices(outcome),
        highlights=_highlights(outcome),
        tables=(scores_table(outcome.evaluations, UMAMBA, "Scores on the unseen slab", ORACLE_NOTE),),
        figures=tuple(figures.values()),
        command=demo_command(outcome.config),
        facts=(
            _data_facts(outcome),
            environment_facts(),
            settings_facts(
                {k: v for k, v in dataclasses.asdict(outcome.config).items() if k not in ("out", "overwrite")}
            ),
        ),
    )
    return write_report(out / "report.html", report)
