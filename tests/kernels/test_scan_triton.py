"""The Triton backend without a GPU: its kernels in triton's interpreter, and the reasons it gives when refused.

The interpreter shows wrong indices and algebra; not races, nor what a compiler rejects (test_scan_triton_compile.py).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from ssmvision.kernels.registry import Request, explain
from ssmvision.kernels.selective_scan import triton
from ssmvision.kernels.selective_scan.op import OP
from tests.kernels.triton_interpreter import CASES

ROOT = Path(__file__).parents[2]
# Relative, by norm: float32 arithmetic, and rounding the results to the narrower types.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}


@pytest.fixture(scope="module")
def interpreted() -> dict[str, dict[str, float]]:
    """Errors of all cases, from one process: starting one takes longer than a case."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.kernels.triton_interpreter"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    errors: dict[str, dict[str, float]] = json.loads(run.stdout)
    return errors


@pytest.mark.parametrize("case", CASES)
def test_interpreted_kernels_match_float64(case: str, interpreted: dict[str, dict[str, float]]) -> None:
    tolerance = TOLERANCE[CASES[case].get("dtype", torch.float32)]
    assert {name: error for name, error in interpreted[case].items() if not error <= tolerance} == {}


def test_other_devices_are_refused() -> None:
    assert explain(OP, Request("cpu"))["triton"] == "cpu is no GPU that triton compiles for"


def test_double_precision_is_refused() -> None:
    reason = triton.can_run(Request("cuda:0", torch.float64))
    assert reason == "computes in float32, so torch.float64 is left to others"


def test_old_and_absent_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert triton.can_run(Request("cuda:0")) == "no cuda device is visible"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert triton.can_run(Request("cuda:1")) == "cuda:1 is sm_75; triton needs sm_80 or newer"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert triton.can_run(Request("cuda:1")) == triton._build_reason()


def test_what_triton_needs_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CC", "cc")
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    reason = triton._build_reason.__wrapped__()
    assert reason == f"triton needs Python's headers and {tmp_path / 'Python.h'} is missing: install python3-dev"
    (tmp_path / "Python.h").touch()
    assert triton._build_reason.__wrapped__() is None
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "triton needs a C compiler: install gcc or clang" in triton._build_reason.__wrapped__()
    monkeypatch.setattr(triton, "find_spec", lambda name: None)
    assert triton._build_reason.__wrapped__() == "triton is not installed: pip install triton"


def test_importing_the_operators_does_not_import_triton() -> None:
    subprocess.run([sys.executable, "-c", "import sys, ssmvision.ops; assert 'triton' not in sys.modules"], check=True)
