"""Strides of what our operators return on a CPU, beside those that they tell a compiler: inductor relies on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from ssmvision.layers.mixers import build_mixer
from ssmvision.models import VisionMamba

CHANNELS = 5  # fills no vector


class Told(TorchDispatchMode):
    """Runs our operators twice, the second time on tensors without content; notes where the results look different."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: set[str] = set()
        self.differences: list[str] = []

    def __torch_dispatch__(self, func: OpOverload, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.namespace == "ssmvision":
            self.calls.add(func._opname)
            with FakeTensorMode() as mode:
                given = tree_map(lambda t: mode.from_tensor(t) if isinstance(t, Tensor) else t, args)
                told = func(*given)
            for i, (ours, theirs) in enumerate(zip(tree_leaves(out), tree_leaves(told), strict=True)):
                if layout(ours) != layout(theirs):
                    self.differences.append(f"{func._opname}, result {i}: {layout(ours)}, told {layout(theirs)}")
        return out


def layout(t: Tensor) -> tuple[Any, ...]:
    """Shape, dtype, and strides where they mean something."""
    return (tuple(t.shape), t.dtype, [s for s, n in zip(t.stride(), t.shape, strict=True) if n > 1 and t.numel()])


def mixer(name: str) -> Callable[[], tuple[nn.Module, Tensor]]:
    return lambda: (build_mixer(name, CHANNELS, 2), torch.randn(2, 3, 7, CHANNELS))


CASES: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    **{name: mixer(name) for name in ("s6", "hgrn", "biwkv", "ssd", "vssd", "s4nd", "hyena", "dwconv")},
    "mamba": lambda: (build_mixer("mamba", CHANNELS, 3), torch.randn(2, 2, 3, 5, CHANNELS)),
    "vim": lambda: (VisionMamba(16, 8, 3, embed_dim=10, depth=2, num_classes=3), torch.randn(2, 3, 16, 16)),
}


@pytest.mark.parametrize("name", CASES)
def test_strides_are_those_told(name: str) -> None:
    torch.manual_seed(0)
    network, x = CASES[name]()
    with Told() as told:
        network(x.requires_grad_()).float().square().sum().backward()
    assert not told.differences
    assert told.calls
