"""`torch.compile` of every network: one whole graph, training and evaluation, for every batch and size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import get_type_hints

import pytest
import timm
import torch
from torch import Tensor, nn

from ssmvision import models
from ssmvision.cli.model_counts import COUNTS
from ssmvision.layers.ss2d import SS2D
from tests.small_models import FORMS

pytestmark = pytest.mark.usefixtures("one_thread", "fresh_compiler")


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_every_network_has_a_small_form() -> None:
    tested = {type(form.build()) for form in FORMS.values()}
    makers = {name: timm.model_entrypoint(name) for name in timm.list_models()}
    ours = {name: make for name, make in makers.items() if make.__module__.startswith("ssmvision.")}
    assert {name for name, make in ours.items() if get_type_hints(make)["return"] not in tested} == set()
    assert {name for name in models.__all__ if getattr(models, name) not in tested} == set()
    assert set(ours) <= set(COUNTS)


def compiled(network: nn.Module, dynamic: bool) -> nn.Module:
    whole: nn.Module = torch.compile(network, fullgraph=True, dynamic=dynamic, backend="eager")
    return whole


def gradients(outputs: Tensor | list[Tensor], network: nn.Module) -> list[Tensor]:
    """Of the mean square of all outputs; zero where a parameter has none."""
    several = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    loss = sum((out.square().mean() for out in several), torch.zeros(()))
    found = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
    return [torch.zeros(()) if one is None else one for one in found]


@pytest.mark.parametrize("name", FORMS)
def test_evaluation_is_one_graph_for_every_batch_and_size(name: str) -> None:
    form = FORMS[name]
    network = form.build().eval()
    with torch.no_grad():
        fast = compiled(network, dynamic=not form.graph_per_size)
        fast(*form.images(2))
        with torch._dynamo.config.patch(error_on_recompile=not form.graph_per_size):
            for batch, size in enumerate(form.sizes, start=3):
                images = form.images(batch, size)
                torch.testing.assert_close(fast(*images), network(*images))


@pytest.mark.parametrize("name", FORMS)
def test_training_has_the_same_gradients(name: str) -> None:
    form = FORMS[name]
    network, images = form.build().train(), form.images(2)
    torch.manual_seed(0)
    wanted = network(*images)
    torch.manual_seed(0)
    got = compiled(network, dynamic=False)(*images)
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(gradients(got, network), gradients(wanted, network), rtol=1e-4, atol=1e-6)


def test_training_of_a_scan_is_one_graph_for_every_size() -> None:
    layer = SS2D(6, d_state=1, gate="none")
    fast = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    fast(torch.randn(2, 5, 7, 6)).sum().backward()
    with torch._dynamo.config.patch(error_on_recompile=True):
        x = torch.randn(3, 9, 4, 6)
        torch.testing.assert_close(gradients(fast(x), layer), gradients(layer(x), layer), rtol=1e-4, atol=1e-5)


def test_s4_of_open_size_says_that_it_wants_an_input_first() -> None:
    form = FORMS["s4nd_vit"]
    open_size = replace(form, settings={**form.settings, "dynamic_img_size": True})
    with pytest.raises(RuntimeError, match="run the network once before it is compiled or exported"):
        compiled(open_size.build().eval(), dynamic=False)(*form.images(1))
