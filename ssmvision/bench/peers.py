"""Finds the operators of other packages that the benchmark runs beside ours; none of them is required."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from torch import Tensor

from ssmvision.bench.contestants import Contestant, Inputs, VMambaOps, mamba, vmamba
from ssmvision.bench.shapes import Shape

__all__ = ["find_peer"]

Builder = Callable[[Shape, Inputs], Contestant]


def find_peer(name: str) -> Builder | str:
    """What builds a peer's contestant, or why there is none.

    mamba_ssm is the installed package, built with its CUDA extension. VMamba is no package: its kernel is what its
    `kernels/selective_scan` installs, and its operators are found with its `classification/models` on PYTHONPATH.
    """
    try:
        if name == "mamba_ssm":
            scan = _mamba_scan()
            return lambda shape, inputs: mamba(shape, inputs, scan)
        ops = _vmamba_ops()
        return lambda shape, inputs: vmamba(shape, inputs, ops)
    except ModuleNotFoundError as error:
        return f"not installed (no module {error.name})"
    except ImportError as error:
        return f"does not load ({' '.join(str(error).split())})"


def _mamba_scan() -> Callable[..., Tensor]:
    import_module("selective_scan_cuda")  # without it mamba_ssm imports and fails at the first call
    scan: Callable[..., Tensor] = import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
    return scan


def _vmamba_ops() -> VMambaOps:
    import_module("selective_scan_cuda_oflex")  # without it VMamba falls back to a loop
    csm = import_module("csm_triton")
    return VMambaOps(csm.cross_scan_fn, csm.cross_merge_fn, import_module("csms6s").selective_scan_fn)
