"""S4's taps as an operator: without a GPU, its Triton kernels in triton's interpreter and through its compiler.

The interpreter shows wrong indices and algebra; not races, nor what a compiler rejects. It runs the branch kernels too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ssmvision.kernels.registry import Request, explain
from ssmvision.kernels.s4nd import dplr_triton, modes_op, modes_triton
from ssmvision.kernels.s4nd.dplr_op import OP, dplr_taps
from tests.kernels.s4nd_interpreter import MODES, NORMS, SUMS, TAPS
from tests.kernels.triton_launches import compile_all

ROOT = Path(__file__).parents[2]
# Relative, by norm: float32 arithmetic; a gradient rounded to bfloat16; angles of a hundred radians in float32.
TOLERANCE = {"bfloat16": 5e-3, "modes, several blocks of taps": 5e-5}


@pytest.fixture(scope="module")
def interpreted() -> dict[str, dict[str, float]]:
    """Errors of all cases, from one process: starting one takes longer than a case."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.kernels.s4nd_interpreter"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    errors: dict[str, dict[str, float]] = json.loads(run.stdout)
    return errors


@pytest.mark.parametrize("case", [*TAPS, *MODES, *NORMS, *SUMS])
def test_interpreted_kernels_match_float64(case: str, interpreted: dict[str, dict[str, float]]) -> None:
    tolerance = TOLERANCE.get(case, 5e-6)
    assert {name: error for name, error in interpreted[case].items() if not error <= tolerance} == {}


def systems() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 4, 1), (2, 2, 3), (2, 2, 3), (2, 2, 3, 2), (2, 1, 4, 3, 2), (2, 2, 3, 2))
    dt, real, imag, *pairs = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return [t.requires_grad_() for t in (dt.abs() + 0.1, -real.abs() - 0.1, imag, *pairs)]


def test_gradients() -> None:
    assert torch.autograd.gradcheck(lambda *t: dplr_taps(*t, 6, 5), systems())


def test_who_makes_them() -> None:
    assert explain(OP, Request("cpu"))["triton"] == "cpu is no GPU that triton compiles for"
    for op in (OP, modes_op.OP):
        reason = explain(op, Request("cuda:0", torch.float64))["triton"]
        assert reason == "computes in float32, so torch.float64 is left to others"


def test_kernels_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = ((2, 4, 1), (2, 1, 32), (2, 1, 32), (2, 1, 32, 2), (2, 2, 4, 32, 2), (2, 1, 32, 2))
    tensors = tuple(torch.zeros(shape) for shape in shapes)

    def launch() -> None:
        taps = dplr_triton.forward(*tensors, 7, 7)
        dplr_triton.backward(*tensors, 7, 7, taps)

    assert compile_all(dplr_triton, launch, monkeypatch) == ["dplr_forward", "dplr_backward"]

    def launch_modes() -> None:
        log, weight = torch.zeros(2, 4, 32), torch.zeros(2, 2, 4, 32)
        taps = modes_triton.forward(log, log, weight, weight, 56)
        modes_triton.backward(log, log, weight, weight, 56, taps)

    assert compile_all(modes_triton, launch_modes, monkeypatch) == ["modes_forward", "modes_backward"]
