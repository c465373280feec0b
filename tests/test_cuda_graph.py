"""Graphed inference: what it refuses anywhere, and on a GPU that a recording does what the module does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ssmvision.cuda_graph import GraphedModule, GraphedStep
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


def test_refusals_of_a_step() -> None:
    weights = list(nn.Linear(2, 2).parameters())
    with pytest.raises(ValueError, match="SGD must be built with capturable=True"):
        GraphedStep(lambda: weights[0], torch.optim.SGD(weights))
    adam = torch.optim.Adam(weights, capturable=True)
    with pytest.raises(ValueError, match="one CUDA device, found cpu"):
        GraphedStep(lambda: weights[0], adam)
    with pytest.raises(ValueError, match="max_shapes=0"):
        GraphedStep(lambda: weights[0], adam, max_shapes=0)


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


def trained(graphed: bool, rates: list[float], shapes: list[tuple[int, int]]) -> tuple[list[float], list[Tensor]]:
    """Losses and weights of a short training, a step for each learning rate and shape."""
    torch.manual_seed(0)
    net = FusionMamba(depths=(1, 1), depths_decoder=(1, 1), dims=(16, 32), drop_path_rate=0.0).cuda()
    optimizer = torch.optim.Adam(net.parameters(), lr=rates[0], capturable=True)

    def step(x1: Tensor, x2: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = (net(x1, x2) - torch.maximum(x1, x2)).abs().mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    run = GraphedStep(step, optimizer) if graphed else step
    losses = []
    for seed, (rate, shape) in enumerate(zip(rates, shapes, strict=True)):
        optimizer.param_groups[0]["lr"] = rate
        losses.append(float(run(*pair(*shape, seed=seed))))
    return losses, [p.detach().clone() for p in net.parameters()]


@pytest.mark.gpu
def test_graphed_steps_train_as_steps() -> None:
    rates = [1e-3] * 8 + [3e-4] * 8
    shapes = [(32, 32)] * 5 + [(32, 40)] * 5 + [(32, 32)] * 3 + [(32, 40)] * 3
    losses, weights = trained(False, rates, shapes)
    graphed_losses, graphed_weights = trained(True, rates, shapes)
    torch.testing.assert_close(graphed_losses, losses, rtol=2e-3, atol=1e-4)
    # Adam's first steps are signs of gradients, which rounding may turn where they are nearly 0.
    moved = sum(float((a - b).abs().sum()) for a, b in zip(graphed_weights, weights, strict=True))
    assert moved / sum(p.numel() for p in weights) < 2e-4
    assert losses[-1] < losses[0]


@pytest.mark.gpu
def test_a_step_refuses_inputs_elsewhere() -> None:
    net = nn.Linear(2, 2).cuda()
    fast = GraphedStep(lambda x: net(x).sum(), torch.optim.Adam(net.parameters(), capturable=True))
    with pytest.raises(ValueError, match="input 0 is on cpu and the weights on cuda:0"):
        fast(torch.zeros(1, 2))
