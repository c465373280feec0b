"""Runs the scan's Triton kernels in triton's interpreter, on the CPU, and prints their errors against float64 as JSON.

A program of its own, because triton reads TRITON_INTERPRET=1, which its caller sets, when a kernel is defined.
"""

from __future__ import annotations

import json
from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime import interpreter

from ssmvision.kernels.selective_scan import config, reference, triton_config
from ssmvision.kernels.selective_scan import triton as backend
from ssmvision.kernels.selective_scan.args import ScanArgs

NAMES = ("x", "delta", "A", "B", "C", "D", "z", "delta_bias")
BOTH = ("forward", "backward")
SKIP = ("skip_even_even", "skip_odd_even", "skip_even_odd", "skip_odd_odd")
# name -> what differs from the defaults of `make` and `errors`.
CASES: dict[str, dict[str, Any]] = {
    "one step": {"grid": (1,), "batch": 2},
    "parts of one chunk and a tail": {"batch": 2},
    "parts of whole chunks": {"grid": (8,)},
    "parts of several chunks": {"grid": (13,), "routes": ("backward",), "wanted": 2},
    "one part": {"whole": True},
    "one state": {"n": 1},
    "more than sixteen states": {"n": 20},
    "several tiles of channels": {"e": 33, "n": 2, "grid": (3,)},
    "one channel": {"e": 1},
    "mean": {"merge": "mean"},
    "apart": {"merge": "none"},
    "apart, no extras": {"merge": "none", "extras": False},
    "one route, no extras": {"routes": ("backward",), "extras": False},
    "no softplus": {"softplus": False},
    "shared x": {"shared": True, "batch": 2, "grid": (3,)},
    "skip routes": {"grid": (3, 5), "routes": SKIP},
    "routes of unequal length": {"grid": (3, 3), "routes": ("skip_odd_odd", "row"), "merge": "mean"},
    "routes without a step": {"grid": (1, 1), "routes": SKIP},
    "3D": {"grid": (2, 1, 3), "routes": ("dhw", "whd_reverse", "inter_slice")},
    "bfloat16": {"dtype": torch.bfloat16, "shared": True},
    "float16": {"dtype": torch.float16, "merge": "none"},
    "mixed types": {"dtype": torch.bfloat16, "wide": ("delta", "C")},
    "a row at a time": {"scratch": 1, "grid": (5,)},
    "strided": {"strided": True, "batch": 2, "grid": (3,)},
    "no gradient of the last state": {"dlast": False},
}


def make(
    grid: tuple[int, ...] = (6,),
    routes: tuple[str, ...] = BOTH,
    e: int = 5,
    n: int = 3,
    batch: int = 1,
    merge: str = "sum",
    dtype: torch.dtype = torch.float32,
    extras: bool = True,
    softplus: bool = True,
    shared: bool = False,
    wide: tuple[str, ...] = (),
    strided: bool = False,
) -> ScanArgs:
    generator, k, length = torch.Generator().manual_seed(0), len(routes), int(torch.tensor(grid).prod())

    def rand(*shape: int) -> Tensor:
        t = torch.randn(*shape, generator=generator)
        return t.transpose(0, 1).contiguous().transpose(0, 1) if strided else t

    tensors: dict[str, Tensor] = {
        "x": rand(batch, length, e) if shared else rand(batch, k, length, e),
        "delta": rand(batch, k, length, e) - 1 if softplus else rand(batch, k, length, e).abs(),
        "A": -rand(k, e, n).abs() - 0.1,
        "B": rand(batch, k, length, n),
        "C": rand(batch, k, length, n),
    }
    if extras:
        z = rand(batch, k, length, e) if merge == "none" else rand(batch, length, e)
        tensors |= {"D": rand(k, e), "z": z, "delta_bias": rand(k, e) if softplus else rand(k, e).abs()}
    narrow = {name for name in ("x", "delta", "B", "C", "z") if name not in wide}
    tensors = {name: t.to(dtype) if name in narrow else t for name, t in tensors.items()}
    return ScanArgs(*(tensors.get(name) for name in NAMES), softplus, routes, grid, merge)  # type: ignore[arg-type]


def errors(
    whole: bool = False, wanted: int = 2112, scratch: int = 1 << 20, dlast: bool = True, **changes: Any
) -> dict[str, float]:
    """Relative error by norm of every output and gradient."""
    triton_config.ENOUGH, triton_config.WANTED, backend.SCRATCH_BYTES = 0 if whole else 10**9, wanted, scratch
    args = make(**changes)
    exact = ScanArgs(*(None if t is None else t.double() for t in args[:8]), *args[8:])  # type: ignore[arg-type]
    want_out, want_last, *kept = reference.forward(exact, True)
    generator = torch.Generator().manual_seed(1)
    dout = torch.randn(want_out.shape, generator=generator).to(args.x.dtype)
    d_last = torch.randn(want_last.shape, generator=generator) if dlast else None
    want_grads = reference.backward(exact, *kept, dout.double(), None if d_last is None else d_last.double())

    out, last, saved, ungated = backend.forward(args, True)
    grads = backend.backward(args, saved, ungated, dout, d_last)
    assert [g.dtype for g in grads if g is not None] == [t.dtype for t in args[:8] if t is not None]

    found = {}
    results = zip(("out", "last", *NAMES), (out, last, *grads), (want_out, want_last, *want_grads), strict=True)
    for name, got, want in results:
        if got is not None and want is not None:
            found[name] = float((got.double() - want).norm() / want.norm().clamp_min(1e-30))
    assert len(found) == 2 + sum(t is not None for t in args[:8])
    return found


def mend_interpreter() -> None:
    """Let triton 3.4 to 3.6 count to a bound that a kernel computed: with numpy 2.4 that was a TypeError."""
    patch = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patched


if __name__ == "__main__":
    torch.set_num_threads(1)
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 7):
        mend_interpreter()
    # Several chunks, and so several parts, in a route that is short enough to be interpreted.
    config.CHUNK = 4
    print(json.dumps({name: errors(**changes) for name, changes in CASES.items()}))
