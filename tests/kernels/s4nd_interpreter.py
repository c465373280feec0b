"""Runs the Triton kernels of S4's taps and of branches in triton's interpreter, on the CPU, and prints their errors.

A program of its own, because triton reads TRITON_INTERPRET=1, which its caller sets, when a kernel is defined.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
import triton as triton_package
from torch import Tensor

from ssmvision.kernels.branch import reference
from ssmvision.kernels.branch import triton as branch
from ssmvision.kernels.s4nd import dplr_op, dplr_triton, modes_op, modes_triton
from ssmvision.kernels.s4nd.pairs import Pair
from tests.kernels.triton_interpreter import mend_interpreter

# Kernels at once, channels, features, systems, modes, nodes, length, steps a feature.
TAPS = {
    "shared systems": (2, 2, 4, 2, 4, 6, 6, 1),
    "a step a mode, more nodes than taps": (1, 1, 3, 3, 5, 75, 20, 5),
    "odd": (1, 2, 4, 1, 4, 7, 7, 1),
    "several blocks of nodes and taps": (1, 1, 2, 1, 3, 150, 140, 1),
    "one tap": (1, 1, 2, 1, 2, 1, 1, 1),
}
# Kernels at once, channels, features, modes, length.
MODES = {
    "modes": (2, 2, 3, 5, 7),
    "modes, several blocks of taps": (1, 1, 2, 32, 150),
    "modes, one tap": (1, 3, 1, 1, 1),
}
# Batch, channels, positions; dtype of the map; channels last.
NORMS = {
    "float32": (2, 5, 19, torch.float32, True),
    "bfloat16": (2, 5, 300, torch.bfloat16, True),
    "channels first": (3, 70, 9, torch.float32, False),
    "one position": (2, 3, 1, torch.float32, True),
}
# Batch, channels, positions; gamma, keep and copy.
SUMS = {
    "plain": (2, 5, 19, False, False, False),
    "scaled": (2, 40, 70, True, False, False),
    "everything": (3, 5, 19, True, True, True),
    "copy only": (2, 5, 19, False, False, True),
}


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).detach().norm() / exact.detach().norm().clamp_min(1e-30))


def taps(
    batch: int, channels: int, features: int, systems: int, modes: int, nodes: int, length: int, steps: int
) -> Any:
    generator = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    pairs = (batch, systems, modes)
    given = [
        rand(batch, features, steps).abs() * 0.2 + 0.1,
        -rand(*pairs).abs() - 0.1,
        -5 * rand(*pairs).abs(),
        rand(*pairs, 2),
        rand(batch, channels, features, modes, 2),
        rand(*pairs, 2) / 2,
    ]
    wide = [t.double().requires_grad_() for t in given]
    exact = dplr_op.dplr_taps(*wide, nodes, length, backend="reference")
    weight = rand(*exact.shape)
    expected = torch.autograd.grad((exact * weight).sum(), wide)
    names = ("taps", "dt", "A_real", "A_imag", "B", "C", "P")
    found = dplr_triton.forward(*given, nodes, length), *dplr_triton.backward(*given, nodes, length, weight)
    if length == 1:  # a single tap's dependence on the step is rounding
        names, found, expected = names[:1], found[:1], ()
    return {name: error(f, e) for name, f, e in zip(names, found, (exact, *expected), strict=True)}


def modes(batch: int, channels: int, features: int, count: int, length: int) -> Any:
    generator = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    pairs = (batch, features, count)
    given = [-rand(*pairs).abs() / 4, rand(*pairs) / 4, *(rand(batch, channels, features, count) for _ in range(2))]
    wide = [t.double().requires_grad_() for t in given]
    exact = modes_op.modes_taps(Pair(*wide[:2]), Pair(*wide[2:]), length, backend="reference")
    weight = rand(*exact.shape)
    expected = torch.autograd.grad((exact * weight).sum(), wide)
    found = modes_triton.forward(*given, length), *modes_triton.backward(*given, length, weight)
    names = ("taps", "log_re", "log_im", "weight_re", "weight_im")
    return {name: error(f, e) for name, f, e in zip(names, found, (exact, *expected), strict=True)}


def norm(batch: int, channels: int, positions: int, dtype: torch.dtype, last: bool) -> Any:
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(batch, channels, positions, generator=generator) + 3).to(dtype)
    weight, bias = torch.randn(2, channels, generator=generator)
    exact, mean, rstd = reference.norm_forward(x.double(), weight.double(), bias.double(), 1e-6, torch.float64, last)
    dy = torch.randn(exact.shape, generator=generator).to(dtype)
    expected = reference.norm_backward(x.double(), weight.double(), mean, rstd, dy.double(), last)
    y, *stats = branch.norm_forward(x, weight, bias, 1e-6, torch.float32, last)
    found = (y, *stats, *branch.norm_backward(x, weight, *stats, dy, last))
    names = ("y", "mean", "rstd", "dx", "weight", "bias")
    return {name: error(f, e) for name, f, e in zip(names, found, (exact, mean, rstd, *expected), strict=True)}


def added(batch: int, channels: int, positions: int, scaled: bool, dropped: bool, copied: bool) -> Any:
    generator = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    x, tokens = rand(batch, channels, positions), rand(batch, positions, channels)
    gamma = rand(channels) if scaled else None
    keep = torch.arange(batch).float() if dropped else None
    wide = [None if t is None else t.double() for t in (tokens, gamma, keep)]
    copy_dtype = torch.float32 if copied else None
    total, copy = branch.sum_forward(x, tokens, gamma, keep, torch.float32, copy_dtype)
    exact, _ = reference.sum_forward(x.double(), *wide, torch.float64, None)  # type: ignore[arg-type]
    d_total, d_copy = rand(*x.shape), rand(*x.shape) if copied else None
    found = branch.sum_backward(tokens, gamma, keep, d_total, d_copy)
    expected = reference.sum_backward(*wide, d_total.double(), None if d_copy is None else d_copy.double())  # type: ignore[arg-type]
    pairs = {
        "total": (total, exact),
        **dict(zip(("x", "branch", "gamma"), zip(found, expected, strict=True), strict=True)),
    }
    if copied:
        pairs["copy"] = copy, exact
    assert (pairs["gamma"][0] is None) == (gamma is None)
    return {name: error(f, e) for name, (f, e) in pairs.items() if f is not None and e is not None}


def main() -> None:
    torch.set_num_threads(1)
    if tuple(int(part) for part in triton_package.__version__.split(".")[:2]) < (3, 7):
        mend_interpreter()
    runs: list[tuple[dict[str, Any], Callable[..., Any]]] = [(TAPS, taps), (MODES, modes), (NORMS, norm), (SUMS, added)]
    print(json.dumps({name: run(*case) for cases, run in runs for name, case in cases.items()}))


if __name__ == "__main__":
    main()
