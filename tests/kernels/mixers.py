"""Mixers for the tests of the mixer operator: as layers and as one operator, their results and gradients."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ssmvision.layers.mamba import MambaMixer


def pair(dim: int, dtype: torch.dtype = torch.float64, device: str = "cpu", **options: Any) -> Sequence[MambaMixer]:
    """The same mixer as one operator and as layers."""
    torch.manual_seed(0)
    fused = MambaMixer(dim, backward_dt_init="mamba", fused=True, dtype=dtype, **options).to(device)
    layers = copy.deepcopy(fused)
    layers.fused = False
    return fused, layers


def tokens(*shape: int, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Tensor:
    g = torch.Generator().manual_seed(1)
    return torch.randn(*shape, generator=g, dtype=torch.float64).to(device, dtype).requires_grad_()


def results(mixer: MambaMixer, x: Tensor, autocast: torch.dtype | None = None) -> dict[str, Tensor]:
    """The result, and gradients of a loss that weighs every element differently."""
    with torch.autocast(x.device.type, autocast, enabled=autocast is not None):
        out = mixer(x)
    weigh = torch.cos(torch.arange(out.numel(), device=x.device, dtype=torch.float64)).view(out.shape)
    named = {"tokens": x, **dict(mixer.named_parameters())}
    grads = torch.autograd.grad(out, list(named.values()), weigh.to(out.dtype))
    return {"out": out.detach(), **dict(zip(named, grads, strict=True))}


def error(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, float]:
    """Relative error by norm of every result; of one that is zero, as A's gradient is for one token, the norm."""
    assert got.keys() == wanted.keys()
    pairs = {name: (got[name].double() - value.double(), value.double().norm()) for name, value in wanted.items()}
    return {name: float(difference.norm() / (norm if norm > 0 else 1)) for name, (difference, norm) in pairs.items()}


def assert_near(got: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    """Every result within the relative error; what is not a number is not."""
    errors = error(got, wanted)
    assert {name: value for name, value in errors.items() if not value < tolerance} == {}
