"""Whether kernels that Numba compiles can run. Importing this module does not import numba."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch

from ssmvision.kernels.registry import Request

__all__ = ["can_run"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def can_run(request: Request) -> str | None:
    """Why the request cannot run on Numba, or None."""
    if torch.device(request.device).type != "cpu":
        return f"{request.device} is no CPU"
    if request.dtype not in DTYPES:
        return f"computes in float32, so {request.dtype} is left to others"
    return _missing()


@cache
def _missing() -> str | None:
    return "numba is not installed: pip install numba" if find_spec("numba") is None else None
