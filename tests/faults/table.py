"""The faults that are injected, what each is worth, and how outcomes become points."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

__all__ = ["ELSEWHERE", "FAULTS", "PENALTY", "Fault", "Part", "Result", "obtained"]

Result = Literal["passed", "failed", "silently wrong", "not run here"]
PENALTY = 5.0


@dataclass(frozen=True)
class Fault:
    """A fault.

    Args:
        name: what is injected.
        points: for the required behaviour in every part; half of them for most parts.
    """

    name: str
    points: int


@dataclass(frozen=True)
class Part:
    """One thing that has to hold under a fault.

    Args:
        fault: its number.
        name: what has to hold.
        result: of all its tests together.
        where: the machine that ran it.
    """

    fault: int
    name: str
    result: Result
    where: str = ""


FAULTS = {
    1: Fault("kill -9 at random moments of a training, also within a save; resume", 10),
    2: Fault("torn, empty or half a checkpoint", 5),
    3: Fault("a flipped bit in a weights file", 3),
    4: Fault("malicious pickle as .pt, .pth, .ckpt, .pkl or under another name", 7),
    5: Fault("disk full while a checkpoint, a cache or a prediction is written", 4),
    6: Fault("short memory in prediction", 7),
    7: Fault("short memory in training", 3),
    8: Fault("huge volume, few and many classes", 5),
    9: Fault("truncated .nii.gz, .nii, NRRD, DICOM", 5),
    10: Fault("headers that lie", 5),
    11: Fault("NaN and infinite voxels, constant and all-zero volumes", 4),
    12: Fault("label ids out of range, negative, not whole, with holes; a picture as label map", 4),
    13: Fault("image and label on different grids", 5),
    14: Fault("48 orientations, oblique, sheared, sform and qform apart, 4D, left-handed", 7),
    15: Fault("DICOM: missing, duplicate, mixed, uneven, tilted, multi-frame, compressed, without geometry", 6),
    16: Fault("empty masks in loss and metrics", 4),
    17: Fault("wrong number or order of channels, missing modality", 3),
    18: Fault("odd sizes and strides", 3),
    19: Fault("loss or gradient that is not finite", 3),
    20: Fault("worker that dies or hangs, Ctrl-C, SIGTERM", 2),
    21: Fault("the same seed twice, on one and two devices, resumed or not", 3),
    22: Fault("names and ids of a patient planted everywhere", 2),
}

_TRAINING, _RULES = "tests/recipes/test_training_resume.py", "tests/recipes/test_training_rules.py"
_SERIES, _IMPORT = "tests/recipes/test_dicom_series.py", "tests/recipes/test_dicom_import.py"
_PREDICT = "tests/recipes/test_dicom_predict.py"
# Tests that stand beside the code they test and prove a part here as well.
ELSEWHERE: dict[str, tuple[int, str]] = {
    f"{_TRAINING}::test_a_kill_inside_a_save": (1, "killed within a save, at each of its stages: bit-identical"),
    f"{_SERIES}::test_truncated_anywhere_is_refused_by_name": (9, "DICOM cut anywhere: refused by name"),
    f"{_PREDICT}::test_a_folder_of_series_goes_on_after_a_bad_one": (9, "DICOM: other series of a batch continue"),
    f"{_SERIES}::test_what_is_no_volume_is_refused_by_name": (
        15,
        "missing, duplicate, mixed, uneven slices, no position or orientation: refused, naming the file",
    ),
    f"{_SERIES}::test_a_tilted_gantry_shears_the_affine": (15, "gantry tilt: a sheared affine"),
    f"{_SERIES}::test_enhanced_files_have_each_frame_in_its_place": (15, "multi-frame enhanced: every frame's place"),
    f"{_SERIES}::test_every_slice_has_its_own_rescaling": (15, "rescaling slice by slice"),
    f"{_SERIES}::test_transfer_syntaxes": (15, "compressed transfer syntaxes: the voxels of the plain one"),
    f"{_SERIES}::test_a_missing_decoder_is_named": (15, "compressed without a decoder: refused, naming the package"),
    f"{_SERIES}::test_grid_is_that_of_simpleitk": (15, "geometry agrees with SimpleITK"),
    f"{_RULES}::test_a_worker_that_fails": (
        20,
        "a loader worker killed, hanging or failing: its cause in one line",
    ),
    f"{_TRAINING}::test_a_signal_ends_the_run_after_the_step": (20, "SIGTERM and Ctrl-C: a checkpoint after the step"),
    f"{_PREDICT}::test_no_patient_in_outputs_and_logs": (22, "DICOM prediction: planted in every tag, no hits"),
    f"{_IMPORT}::test_no_patient_in_an_import": (
        22,
        "DICOM import: planted in tags, paths, private blocks, no hits",
    ),
}


def obtained(fault: int, parts: Iterable[Part]) -> float:
    """Points: all if every part passed, half if at least half of the parts did, else none; less 5 for a wrong answer.

    A part that did not run here has not passed.

    Args:
        fault: its number.
        parts: its parts.
    """
    results = [part.result for part in parts if part.fault == fault]
    if "silently wrong" in results:
        return -PENALTY
    passed = results.count("passed")
    if results and passed == len(results):
        return float(FAULTS[fault].points)
    return FAULTS[fault].points / 2 if results and 2 * passed >= len(results) else 0.0
