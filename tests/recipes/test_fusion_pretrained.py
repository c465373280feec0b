"""The weights that ship: what they are, and that they fuse what they have not seen."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import pytest
import torch
from torch import Tensor

from ssmvision.recipes.fusion.classical import METHODS
from ssmvision.recipes.fusion.demo_data import load_task
from ssmvision.recipes.fusion.network import FusionNetwork
from ssmvision.recipes.fusion.weights import WEIGHTS, open_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def network() -> FusionNetwork:
    return open_model()[0]


def fused(network: FusionNetwork, a: Tensor, b: Tensor) -> Tensor:
    with torch.no_grad():
        return network(a, b)


def psnr(image: np.ndarray, truth: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((image - truth) ** 2)))


def test_card_says_what_they_were_trained_on() -> None:
    network, card = open_model()
    assert set(card.training["data"]) == {"visible-nir", "multi-focus"}
    assert "CC BY 2.0" in card.training["data"]["multi-focus"]
    assert "Copernicus Sentinel" in card.training["data"]["visible-nir"]
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert (files("ssmvision.recipes.fusion") / "pretrained" / WEIGHTS).stat().st_size < 1_500_000  # type: ignore[attr-defined]


def test_an_unseen_photograph_gets_sharp(network: FusionNetwork) -> None:
    pair = load_task("multi-focus").tests[0]
    window = (slice(90, 282), slice(240, 432))
    a, b = (np.ascontiguousarray(x[window]) for x in (pair.a, pair.b))
    assert pair.truth is not None
    truth = pair.truth[window]
    ours = fused(network, *(torch.from_numpy(x)[None, None] for x in (a, b)))[0, 0].numpy()
    for method in ("average", "max"):
        assert psnr(ours, truth) > psnr(METHODS[method](a, b), truth) + 3
    other = fused(network, *(torch.from_numpy(x)[None, None] for x in (b, a)))[0, 0].numpy()
    assert np.abs(ours - other).mean() < 0.01, "the order of the images hardly matters"


@pytest.mark.parametrize("size", [(1, 1), (3, 50), (33, 31)])
def test_any_size_and_nothing_that_is_in_neither_image(network: FusionNetwork, size: tuple[int, int]) -> None:
    a, b = torch.rand(2, 1, 1, *size, generator=torch.Generator().manual_seed(1))
    out = fused(network, a, b)
    assert out.shape == a.shape
    assert bool(((out >= torch.minimum(a, b) - 1e-6) & (out <= torch.maximum(a, b) + 1e-6)).all())
    torch.testing.assert_close(fused(network, a, a), a)
