"""Graphed inference: what it refuses anywhere, and on a GPU that a recording does what the module does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ssmvision.cuda_graph import GraphedModule
from ssmvision.models import FusionMamba


def test_refusals() -> None:
    with pytest.raises(ValueError, match="training mode"):
        GraphedModule(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="one CUDA device, found cpu"):
        GraphedModule(nn.Linear(2, 2).eval())
    with pytest.raises(ValueError, match="found no weights"):
        GraphedModule(nn.ReLU().eval())
    with pytest.raises(ValueError, match="max_shapes=0"):
        GraphedModule(nn.Linear(2, 2).eval(), max_shapes=0)


def pair(*size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator("cuda").manual_seed(seed)
    return tuple(torch.rand(1, 1, *size, generator=generator, device="cuda") for _ in range(2))  # type: ignore[return-value]


@pytest.mark.gpu
def test_recordings_of_several_shapes_do_as_the_module() -> None:
    torch.manual_seed(0)
    net = FusionMamba(depths=(1, 1), depths_decoder=(1, 1), dims=(16, 32)).eval().cuda()
    fast = GraphedModule(net, max_shapes=2)
    for seed, size in enumerate([(32, 32), (40, 17), (32, 32), (64, 64), (40, 17), (32, 32)]):
        x1, x2 = pair(*size, seed=seed)
        with torch.no_grad():
            exact = net(x1, x2)
        torch.testing.assert_close(fast(x1, x2), exact, rtol=1e-4, atol=1e-4)
    first, second = fast(*pair(32, 32, seed=1)), fast(*pair(32, 32, seed=2))
    assert not torch.equal(first, second)


@pytest.mark.gpu
def test_weights_that_change_or_move_count() -> None:
    net = nn.Linear(8, 8).eval().cuda()
    x = torch.rand(3, 8, device="cuda")
    fast = GraphedModule(net)
    fast(x)
    with torch.no_grad():
        net.weight.mul_(2)
        torch.testing.assert_close(fast(x), net(x))
        net.cpu().cuda()
        net.weight.mul_(2)
        torch.testing.assert_close(fast(x), net(x))
        with torch.autocast("cuda", torch.bfloat16):
            assert fast(x).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="input 0 is on cpu"):
        fast(x.cpu())
