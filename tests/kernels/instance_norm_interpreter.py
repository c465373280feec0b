"""Runs the instance norm's Triton kernels in triton's interpreter, on the CPU, and prints their errors as JSON.

A program of its own, because triton reads TRITON_INTERPRET=1, which its caller sets, when a kernel is defined.
"""

from __future__ import annotations

import json

import torch
from torch import Tensor

from ssmvision.kernels.instance_norm import config, reference, triton
from tests.kernels.triton_interpreter import mend_interpreter

# (batch, channels, voxels), block: one part, several with a tail, idle ones; few programs, so that parts are cut.
CASES = [((2, 3, 5), 8), ((1, 2, 70), 8), ((2, 3, 64), 4), ((1, 1, 33), 16), ((2, 1, 1), 4)]


def errors(shape: tuple[int, int, int], dtype: torch.dtype) -> dict[str, float]:
    """Largest error of result, statistics and gradients, relative to float64's norm; values lie far from zero."""
    generator = torch.Generator().manual_seed(0)
    x, dy = (
        (torch.randn(shape, generator=generator) * 3 + 50).to(dtype),
        torch.randn(shape, generator=generator).to(dtype),
    )
    weight, bias = torch.randn(2, shape[1], generator=generator).unbind(0)
    found = triton.forward(x, weight, bias, 1e-5)
    exact = reference.forward(x.double(), weight.double(), bias.double(), 1e-5)
    grads = triton.backward(x, weight, *found[1:], dy)
    exact_grads = reference.backward(x.double(), weight.double(), *exact[1:], dy.double())
    names = ("y", "mean", "rstd", "dx", "dweight", "dbias")
    pairs = zip(names, (*found, *grads), (*exact, *exact_grads), strict=True)
    return {name: _error(f, e) for name, f, e in pairs}


def _error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm().clamp(min=1e-2))


if __name__ == "__main__":
    torch.set_num_threads(1)
    mend_interpreter()
    results = {}
    for shape, config.BLOCK in CASES:
        for dtype in (torch.float32, torch.bfloat16):
            results[f"{shape} {dtype}"] = errors(shape, dtype)
    print(json.dumps(results))
