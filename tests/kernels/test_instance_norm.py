"""The instance norm against PyTorch's, and its Triton kernels as far as a machine without a GPU shows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssmvision.kernels.instance_norm import instance_norm
from ssmvision.kernels.instance_norm import op as operators
from ssmvision.kernels.instance_norm import triton as backend
from ssmvision.kernels.instance_norm.config import norm_config
from ssmvision.kernels.registry import Request, explain
from tests.kernels.instance_norm_interpreter import CASES
from tests.kernels.triton_launches import compile_all

ROOT = Path(__file__).parents[2]
TOLERANCE = {"torch.float32": 5e-6, "torch.bfloat16": 5e-3}


@pytest.mark.parametrize("grid", [(7,), (3, 4), (2, 3, 2)])
def test_equals_pytorchs(grid: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    leaves = [torch.randn(*shape, dtype=torch.float64).requires_grad_() for shape in ((2, 3, *grid), (3,), (3,))]
    x, weight, bias = leaves
    torch.testing.assert_close(
        instance_norm(x, weight, bias, 1e-3), F.instance_norm(x, weight=weight, bias=bias, eps=1e-3)
    )
    assert torch.autograd.gradcheck(lambda *t: instance_norm(*t, 1e-3), leaves)
    low = instance_norm(x.bfloat16(), weight.float(), bias.float())
    assert low.dtype == torch.bfloat16
    assert not low._is_view()
    torch.testing.assert_close(low.double(), F.instance_norm(x, weight=weight, bias=bias), atol=0.03, rtol=0.03)


def test_operator_keeps_its_contract() -> None:
    x, weight, bias = torch.randn(2, 3, 6).requires_grad_(), torch.ones(3).requires_grad_(), torch.zeros(3)
    torch.library.opcheck(operators._operator.operator, (x, weight, bias.requires_grad_(), 1e-5, "auto"))


@pytest.mark.parametrize(
    ("x", "weight", "bias", "message"),
    [
        (torch.zeros(2, 3), torch.ones(3), torch.ones(3), r"x must be \(B, C, \*spatial\)"),
        (torch.zeros(2, 3, 0), torch.ones(3), torch.ones(3), "at least one voxel"),
        (torch.zeros(1, 3, 2), torch.ones(2), torch.ones(3), r"weight must be \(3,\)"),
        (torch.zeros(1, 3, 2), torch.ones(3), torch.ones(3).double(), r"bias must be .* in torch.float64"),
        (torch.zeros(1, 3, 2), torch.ones(3, device="meta"), torch.ones(3), "on meta"),
    ],
)
def test_refusals(x: Tensor, weight: Tensor, bias: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        instance_norm(x, weight, bias)
    with pytest.raises(TypeError, match="int64"):
        instance_norm(x.long(), weight, bias)


def test_why_triton_is_refused() -> None:
    assert explain(operators.OP, Request("cpu"))["triton"] == "cpu is no GPU that triton compiles for"


@pytest.mark.parametrize("rows", [1, 64, 100_000])
@pytest.mark.parametrize("voxels", [1, 5000, 1_720_320])
def test_chunks_cover_every_voxel(rows: int, voxels: int) -> None:
    cut = norm_config(rows, voxels)
    assert cut.chunk * cut.splits >= voxels
    assert cut.chunk % cut.block == 0
    assert cut.splits & (cut.splits - 1) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_compile(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.zeros(2, 4, 10_000, dtype=dtype), torch.ones(4)

    def launch() -> None:
        _, mean, rstd = backend.forward(x, weight, weight, 1e-5)
        backend.backward(x, weight, mean, rstd, x)

    assert compile_all(backend, launch, monkeypatch) == ["moments", "normalise", "gradient_sums", "gradient"]


def test_interpreted_kernels_match_float64() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "tests.kernels.instance_norm_interpreter"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    errors = json.loads(run.stdout)
    assert len(errors) == 2 * len(CASES)
    for case, found in errors.items():
        assert max(found.values()) < TOLERANCE[case.split()[-1]], case
