"""Calls around the dispatcher give what the operator gives, and who listens to operators still hears them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from ssmvision.kernels.branch.op import branch_norm, branch_sum
from ssmvision.kernels.eager import EagerOperator
from ssmvision.kernels.s4nd.op import long_conv


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64)


CALLS: dict[str, tuple[EagerOperator, tuple[Any, ...]]] = {
    "norm": (branch_norm, (rand(2, 3, 4), rand(3), rand(3, seed=1), 1e-6, torch.float64, True, "auto")),
    "sum": (branch_sum, (rand(2, 3, 4), rand(2, 4, 3), rand(3), None, torch.float64, torch.float64, "auto")),
    "no scale": (branch_sum, (rand(2, 3, 4), rand(2, 4, 3), None, None, torch.float64, None, "auto")),
    "lists": (
        long_conv,
        (rand(2, 3, 4, 5), [rand(1, 1, 3, 8), rand(1, 1, 3, 10)], [4, 5], rand(1, 3), False, "auto", "auto"),
    ),
}


def leaves(args: tuple[Any, ...]) -> list[Tensor]:
    flat = [t for arg in args for t in (arg if isinstance(arg, list) else [arg])]
    return [t for t in flat if isinstance(t, Tensor)]


def first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple | list) else output


@pytest.fixture(params=CALLS)
def call(request: pytest.FixtureRequest) -> tuple[EagerOperator, tuple[Any, ...]]:
    operator, args = CALLS[request.param]
    copies = tuple([t.clone() for t in a] if isinstance(a, list) and isinstance(a[0], Tensor) else a for a in args)
    return operator, tuple(a.clone() if isinstance(a, Tensor) else a for a in copies)


class Heard(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def test_results_and_gradients_are_the_operators(call: tuple[EagerOperator, tuple[Any, ...]]) -> None:
    operator, args = call
    with torch.no_grad():
        assert torch.equal(first(operator(*args)), first(operator.operator(*args)))
    for chosen in (leaves(args), leaves(args)[1:2]):
        for t in leaves(args):
            t.requires_grad_(any(t is c for c in chosen))
        found, expected = (first(run(*args)) for run in (operator, operator.operator))
        assert torch.equal(found, expected)
        weight = rand(*found.shape)
        pairs = (torch.autograd.grad(y, chosen, weight) for y in (found, expected))
        assert all(torch.equal(a, b) for a, b in zip(*pairs, strict=True))


def test_dispatch_modes_hear_the_operator(call: tuple[EagerOperator, tuple[Any, ...]]) -> None:
    operator, args = call
    with Heard() as heard, torch.no_grad():
        operator(*args)
    assert operator.operator.name() in heard.names  # type: ignore[attr-defined]


def test_fake_and_meta_tensors_have_shapes_only(call: tuple[EagerOperator, tuple[Any, ...]]) -> None:
    operator, args = call
    expected = first(operator(*args))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = mode.from_tensor(args[0])
        assert first(operator(fake, *args[1:])).shape == expected.shape
    meta = [[t.to("meta") for t in a] if isinstance(a, list) and isinstance(a[0], Tensor) else a for a in args]
    meta = [a.to("meta") if isinstance(a, Tensor) else a for a in meta]
    assert first(operator(*meta)).is_meta


def test_a_gradient_has_no_gradient(call: tuple[EagerOperator, tuple[Any, ...]]) -> None:
    operator, args = call
    x = leaves(args)[1].requires_grad_()
    (grad,) = torch.autograd.grad(first(operator(*args)).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.sum().backward()


def test_vmap_is_refused(call: tuple[EagerOperator, tuple[Any, ...]]) -> None:
    operator, args = call
    with pytest.raises(NotImplementedError, match="no vmap rule"):
        torch.vmap(lambda x: first(operator(x, *args[1:])))(torch.stack([args[0]] * 2))
