from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from ssmvision.recipes.fusion.config import LossConfig
from ssmvision.recipes.fusion.losses import (
    FusionLoss,
    gradient_loss,
    intensity_loss,
    published_ms_ssim,
    sobel,
    structure_loss,
    structure_similarity,
)
from tests.golden.fill import make_input

pytestmark = pytest.mark.usefixtures("one_thread")


def image(seed: int, side: int = 64) -> Tensor:
    return torch.from_numpy(np.clip(0.5 + 0.2 * make_input(seed, [2, 1, side, side]).astype(np.float64), 0, 1))


def blend(seed: int, side: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    """Two sources and a fused image of them."""
    a, b = image(21, side), image(22, side)
    return 0.4 * a + 0.4 * b + 0.2 * image(seed, side), a, b


def test_published_loss_is_that_of_the_published_code() -> None:
    """Values of millieXie/FusionMamba's Fusionloss at 3ee1e7a, weights 10, 10, 1."""
    a, b, noise = (image(seed).float() for seed in (21, 22, 23))
    fused = 0.4 * a + 0.4 * b + 0.2 * noise
    terms = FusionLoss(LossConfig.published())(fused, a, b)
    expected = (2.4403477, 0.02179350, 0.7447470, 0.14776656)
    for got, value in zip(terms, expected, strict=True):
        assert float(got) == pytest.approx(value, rel=1e-5)
    assert float(published_ms_ssim(fused, b)) == pytest.approx(0.85588443, rel=1e-5)
    assert float(published_ms_ssim(fused, b, normalize=False)) == pytest.approx(0.70933682, rel=1e-5)


def test_structure_similarity_is_that_of_torchmetrics() -> None:
    x, y = image(1, 48), 0.5 * image(1, 48) + 0.5 * image(2, 48)
    # torchmetrics continues images by reflection; only the windows inside are ours.
    _, map_ = structural_similarity_index_measure(x, y, data_range=1.0, return_full_image=True)
    assert isinstance(map_, Tensor)
    expected = float(map_[..., 5:-5, 5:-5].mean())
    assert float(structure_similarity(x, y)[0]) == pytest.approx(expected, rel=1e-6)
    assert float(structure_similarity(255 * x, 255 * y, 255.0)[0]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("config", [LossConfig(), replace(LossConfig.published(), clamp=False)])
def test_gradients_are_those_of_finite_differences(config: LossConfig) -> None:
    fused, a, b = blend(3, 17)
    fused.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: FusionLoss(config)(x, a, b).total, (fused,), fast_mode=True)


def test_a_source_of_itself_costs_nothing() -> None:
    x = image(4, 32)
    terms = FusionLoss(LossConfig())(x, x, x)
    assert [float(t) for t in terms] == pytest.approx([0, 0, 0, 0], abs=1e-12)


def test_intensity_targets() -> None:
    dark, bright = torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)
    assert float(intensity_loss(bright, dark, bright, "max")) == 0
    assert float(intensity_loss(bright, dark, bright, "mean")) == 0.25


def test_vector_gradients_know_the_side_and_magnitudes_do_not() -> None:
    edge = torch.zeros(1, 1, 12, 12)
    edge[..., 6:] = 1
    flat = torch.full_like(edge, 0.5)
    turned = 1 - edge
    assert float(gradient_loss(edge, edge, flat, "vector")) == 0
    assert float(gradient_loss(edge, flat, edge, "vector")) == 0
    assert float(gradient_loss(turned, edge, flat, "vector")) == pytest.approx(2 * 4 * 2 / 12 / 2)
    inner = (Ellipsis, slice(1, -1), slice(1, -1))
    strength = [sum(part.abs() for part in sobel(x))[inner] for x in (edge, turned)]
    torch.testing.assert_close(*strength)


def test_clamping_stops_gradients_outside_and_only_there() -> None:
    fused = torch.tensor([-0.5, 0.25, 0.75, 1.5]).reshape(1, 1, 2, 2).repeat(1, 1, 4, 4).requires_grad_()
    a, b = torch.rand(2, 1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    config = LossConfig(structure=0, gradient=0, intensity_target="max", clamp=True)
    FusionLoss(config)(fused, a, b).total.backward()
    assert fused.grad is not None
    outside = (fused.detach() < 0) | (fused.detach() > 1)
    assert (fused.grad[outside] == 0).all()
    assert (fused.grad[~outside] != 0).all()


def test_half_precision_images_are_compared_in_float32() -> None:
    fused, a, b = (x.bfloat16() for x in blend(5, 32))
    terms = FusionLoss(LossConfig())(fused, a, b)
    expected = FusionLoss(LossConfig())(fused.float(), a.float(), b.float())
    assert terms.total.dtype == torch.float32
    assert float(terms.total) == float(expected.total)


def test_sizes() -> None:
    x = torch.rand(1, 1, 15, 40)
    with pytest.raises(ValueError, match=r"at least 16 pixels a side, got \(15, 40\)"):
        published_ms_ssim(x, x)
    one = torch.rand(1, 1, 1, 1)
    assert math.isfinite(float(structure_loss(one, one, one)))
    eight_bit = 255 * image(6, 32)
    assert float(published_ms_ssim(eight_bit, eight_bit / 2)) == pytest.approx(
        float(published_ms_ssim(eight_bit, eight_bit / 2, data_range=255.0))
    )
