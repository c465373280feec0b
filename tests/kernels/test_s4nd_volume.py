"""The 3D convolution's Triton backend without a GPU: in triton's interpreter, what it refuses, and how it cuts work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ssmvision.kernels.registry import Request, explain
from ssmvision.kernels.s4nd import volume
from ssmvision.kernels.s4nd.args import ConvRequest
from ssmvision.kernels.s4nd.op import OP
from ssmvision.kernels.s4nd.volume_config import padded, parts_of
from ssmvision.kernels.selective_scan import triton as scan_triton
from tests.kernels.s4nd_volume_interpreter import CASES

ROOT = Path(__file__).parents[2]
# Relative, by norm: operands and what lies between the axes are rounded to bfloat16.
TOLERANCE = 1e-2


@pytest.fixture(scope="module")
def interpreted() -> dict[str, dict[str, float]]:
    """Errors of all cases, from one process: starting one takes longer than a case."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.kernels.s4nd_volume_interpreter"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    errors: dict[str, dict[str, float]] = json.loads(run.stdout)
    return errors


@pytest.mark.parametrize("case", CASES)
def test_interpreted_kernels_match_float64(case: str, interpreted: dict[str, dict[str, float]]) -> None:
    errors = interpreted[case]
    assert {name: error for name, error in errors.items() if not error <= TOLERANCE} == {}
    assert len(errors) == 2 + CASES[case].get("skip", True) + 3 * CASES[case].get("need_kernels", True)


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_triton, "can_run", lambda request: None)
    monkeypatch.setattr(volume, "_shared_bytes", lambda device: 227 << 10)


@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"grid": (1, 128, 100)}, None),
        ({"grid": ()}, None),
        ({"precision": "bf16"}, None),
        ({"dtype": torch.float32, "precision": "bf16"}, None),
        ({"dtype": torch.float16, "precision": "bf16"}, None),
        ({"device": "cpu"}, "cpu is not an NVIDIA GPU"),
        ({"grid": (56, 56)}, "is for volumes, this is 2D"),
        ({"rank": 2}, "is for one kernel a feature: rank 1, one channel, not dense"),
        ({"channels": 2}, "is for one kernel a feature: rank 1, one channel, not dense"),
        ({"dense": True}, "is for one kernel a feature: rank 1, one channel, not dense"),
        ({"dtype": torch.float32}, "computes in bfloat16, this is torch.float32 with precision='auto'"),
        (
            {"dtype": torch.float64, "precision": "bf16"},
            "computes in bfloat16, this is torch.float64 with precision='bf16'",
        ),
        ({"precision": "fp32"}, "computes in bfloat16, this is torch.bfloat16 with precision='fp32'"),
        ({"grid": (8, 129, 8)}, "an axis of 129 is longer than 128, whose matrix fits into shared memory"),
    ],
)
def test_what_it_refuses(changes: dict[str, object], reason: str | None) -> None:
    request = {"device": "cuda:0", "dtype": torch.bfloat16, "grid": (64, 64, 64), **changes}
    assert volume.can_run(ConvRequest(**request)) == reason  # type: ignore[arg-type]


@pytest.mark.usefixtures("on_a_gpu")
def test_little_shared_memory_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volume, "_shared_bytes", lambda device: 101376)
    assert volume.can_run(ConvRequest("cuda:0", torch.bfloat16, (64, 64, 64))) is None
    reason = volume.can_run(ConvRequest("cuda:0", torch.bfloat16, (65, 8, 8)))
    assert reason == "an axis of 65 needs more shared memory than a block's 101,376 bytes"


def test_what_triton_lacks_is_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_triton, "can_run", lambda request: f"no {request.device}")
    assert volume.can_run(ConvRequest("cuda:0", torch.bfloat16, (4, 4, 4))) == "no cuda:0"
    assert volume.can_run(Request("cuda:1")) == "no cuda:1"


def test_cpu_keeps_its_engine() -> None:
    reasons = explain(OP, ConvRequest("cpu", torch.bfloat16, (8, 8, 8), 4))
    assert reasons["triton"] == "cpu is not an NVIDIA GPU"
    assert reasons["toeplitz"] is None


@pytest.mark.parametrize(("length", "size"), [(1, 16), (16, 16), (17, 32), (64, 64), (65, 128), (128, 128)])
def test_axes_are_padded_to_powers_of_two(length: int, size: int) -> None:
    assert padded(length) == size


@pytest.mark.parametrize(
    ("features", "items", "slots", "parts"),
    [
        (32, 128, 132, 4),  # one wave of 128 programs
        (1, 5, 132, 5),  # no more programs than items
        (132, 64, 132, 1),
        (96, 96, 132, 4),  # three waves of 24 items beat one of 96
    ],
)
def test_work_is_shared_so_that_it_ends_soonest(features: int, items: int, slots: int, parts: int) -> None:
    assert parts_of(features, items, slots) == parts
