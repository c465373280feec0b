"""Runs the 3D convolution's Triton kernels in triton's interpreter, on the CPU, and prints their errors as JSON.

A program of its own, because triton reads TRITON_INTERPRET=1, which its caller sets, when a kernel is defined.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter

from ssmvision.kernels.s4nd import fft, volume
from ssmvision.kernels.s4nd.args import ConvArgs
from tests.kernels.triton_interpreter import mend_interpreter

# name -> what differs from the defaults of `make` and `errors`.
CASES: dict[str, dict[str, Any]] = {
    "whole tiles": {"grid": (16, 16, 16), "batch": 2},
    "whole tiles along z": {"grid": (16, 8, 16), "features": 1},
    "odd sizes": {"grid": (5, 7, 18), "centers": (5, 3, 18), "taps": (10, 7, 36), "batch": 2},
    "axes of one": {"grid": (1, 20, 1), "centers": (0, 19, 0), "taps": (1, 39, 1)},
    "more than a tile": {"grid": (3, 9, 17), "features": 1},
    "anticausal, no skip": {"grid": (4, 6, 5), "centers": (4, 6, 5), "taps": (4, 6, 5), "skip": False},
    "one program": {"grid": (5, 4, 3), "processors": 1, "batch": 3},
    "a program an item": {"grid": (3, 4, 5), "processors": 99, "batch": 2},
    "float32": {"grid": (5, 6, 7), "dtype": torch.float32},
    "float16, kernels are not wanted": {"grid": (6, 5, 4), "dtype": torch.float16, "need_kernels": False},
    "kernels are not wanted": {"grid": (4, 5, 6), "need_kernels": False},
}


def make(
    grid: tuple[int, ...],
    centers: tuple[int, ...] | None = None,
    taps: tuple[int, ...] | None = None,
    batch: int = 1,
    features: int = 2,
    skip: bool = True,
    dtype: torch.dtype = torch.bfloat16,
) -> tuple[ConvArgs, Tensor]:
    """Inputs and the result's gradient; kernels to both sides as far as the axes are long."""
    generator = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    sizes = taps or tuple(2 * length for length in grid)
    kernels = tuple(rand(1, 1, features, size) / size**0.5 for size in sizes)
    u, D = rand(batch, features, *grid).to(dtype), rand(1, features) if skip else None
    args = ConvArgs(u, kernels, centers or grid, D, False, "bf16")
    return args, rand(batch, 1, features, *grid).to(dtype)


def errors(processors: int = 3, need_kernels: bool = True, **changes: Any) -> dict[str, float]:
    """Relative error by norm of the result and every gradient against the FFT in float64."""
    volume._processors = lambda device: processors  # type: ignore[assignment]
    volume._shared_bytes = lambda device: 227 << 10  # type: ignore[assignment]
    args, dout = make(**changes)
    wide = args._replace(
        u=args.u.double(),
        kernels=tuple(kernel.double() for kernel in args.kernels),
        D=None if args.D is None else args.D.double(),
    )
    grads, exact = (
        volume.backward(args, dout, True, need_kernels),
        fft.backward(wide, dout.double(), True, need_kernels),
    )
    assert grads.u is not None
    assert grads.u.dtype == args.u.dtype
    found = {"y": volume.forward(args), "u": grads.u, "D": grads.D, **dict(enumerate_kernels(grads.kernels))}
    expected = {"y": fft.forward(wide), "u": exact.u, "D": exact.D, **dict(enumerate_kernels(exact.kernels))}
    assert {name for name, t in found.items() if t is None} == {name for name, t in expected.items() if t is None}
    return {name: _error(t, expected[name]) for name, t in found.items() if t is not None}


def enumerate_kernels(kernels: tuple[Tensor, ...] | None) -> list[tuple[str, Tensor]]:
    return [(f"kernel{axis}", kernel) for axis, kernel in enumerate(kernels or ())]


def _error(found: Tensor, expected: Tensor | None) -> float:
    assert expected is not None
    return float((found.double() - expected).norm() / expected.norm())


def mend_bfloat16() -> None:
    """Let the interpreter multiply bfloat16 numbers, not their bits, and round to them as a GPU does."""
    builder = interpreter.InterpreterBuilder
    dot, cast = builder.create_dot, builder.cast_impl

    def wide(t: Any) -> Any:
        assert t.dtype.scalar == tl.bfloat16
        return interpreter.TensorHandle((t.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def rounded(self: Any, source: Any, to: Any) -> Any:
        if (source.dtype.scalar, to.scalar) != (tl.float32, tl.bfloat16):
            return cast(self, source, to)
        narrow = torch.from_numpy(np.array(source.data)).bfloat16().view(torch.uint16)
        return interpreter.TensorHandle(narrow.numpy(), tl.bfloat16)

    builder.create_dot = lambda self, a, b, *rest: dot(self, wide(a), wide(b), *rest)
    builder.cast_impl = rounded


if __name__ == "__main__":
    torch.set_num_threads(1)
    mend_interpreter()
    mend_bfloat16()
    print(json.dumps({name: errors(**changes) for name, changes in CASES.items()}))
