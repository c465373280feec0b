"""Windows put together part by part give what MONAI gives for the whole volume, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data.utils import compute_importance_map
from monai.inferers import SliceInferer, sliding_window_inference
from torch import Tensor, nn

from ssmvision.recipes.segmentation.streaming import WindowGrid, stream_labels, stream_logits

pytestmark = pytest.mark.usefixtures("one_thread")

CASES = [
    ((24, 20, 17), (8, 8, 8), 0.5),
    ((23, 19, 31), (8, 10, 7), 0.5),
    ((9, 40, 11), (8, 16, 6), 0.25),
    ((13, 13, 13), (6, 6, 6), 0.75),
    ((12, 30, 12), (5, 7, 3), 0.9),
    ((16, 16, 16), (8, 8, 8), 0.0),
    ((11, 5, 9), (8, 8, 12), 0.5),
    ((5, 5, 5), (8, 8, 8), 0.5),
    ((1, 17, 1), (4, 4, 4), 0.5),
]


def network(dims: int, classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Conv3d(2, classes, 3, padding=1) if dims == 3 else nn.Conv2d(2, classes, 3, padding=1)


def volume(shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(np.random.default_rng(1).normal(size=(2, *shape)).astype(np.float32))


def together(image: Tensor, net: nn.Module, patch: tuple[int, ...], overlap: float, **options: object) -> Tensor:
    """All blocks in one tensor; every voxel is written exactly once."""
    result, times = torch.full((3, *image.shape[1:]), torch.nan), torch.zeros(image.shape[1:], dtype=torch.int64)
    with torch.inference_mode():
        for block in stream_logits(net, image, patch, overlap, **options):
            result[(slice(None), *block.box)] = block.logits
            times[block.box] += 1
    assert bool((times == 1).all())
    return result


def whole(image: Tensor, net: nn.Module, patch: tuple[int, ...], overlap: float, order: tuple[int, ...]) -> Tensor:
    """MONAI's sliding windows over the volume with its axes in the given order, turned back."""
    options = {"overlap": overlap, "mode": "gaussian", "sigma_scale": 0.125, "padding_mode": "constant"}
    back = [2 + order.index(axis) for axis in range(3)]

    def forward(window: Tensor) -> Tensor:
        return net(window.permute(0, 1, *back).contiguous()).permute(0, 1, *(2 + axis for axis in order))

    with torch.inference_mode():
        if len(patch) == 2:
            return SliceInferer(spatial_dim=2, roi_size=patch, **options)(image[None], net)[0]
        # The Gaussian's factors are multiplied in the axes' order, which would show in the last bit.
        weight = compute_importance_map(patch, mode="gaussian", sigma_scale=0.125).permute(order)
        turned = image[None].permute(0, 1, *(2 + axis for axis in order))
        window = tuple(patch[axis] for axis in order)
        found = sliding_window_inference(turned, window, 1, forward, roi_weight_map=weight, **options)
        return found.permute(0, 1, *back)[0]


@pytest.mark.parametrize(("shape", "patch", "overlap"), CASES)
def test_equals_whole_volume_accumulation(shape: tuple[int, ...], patch: tuple[int, ...], overlap: float) -> None:
    image, net = volume(shape), network(3)
    found = together(image, net, patch, overlap)
    order = WindowGrid.over(shape, patch, overlap).order
    assert torch.equal(found, whole(image, net, patch, overlap, order))
    plain = whole(image, net, patch, overlap, (0, 1, 2))
    torch.testing.assert_close(found, plain, rtol=0, atol=2e-6)
    assert torch.equal(found.argmax(0), plain.argmax(0))
    assert torch.equal(stream_labels(net, image, patch, overlap), found.argmax(0).short())


@pytest.mark.parametrize(("shape", "patch"), [((20, 18, 5), (8, 8)), ((7, 9, 3), (8, 12)), ((8, 8, 1), (8, 8))])
def test_slices_equal_whole_volume_accumulation(shape: tuple[int, ...], patch: tuple[int, ...]) -> None:
    image, net = volume(shape), network(2)
    found = together(image, net, patch, 0.5)
    assert torch.equal(found, whole(image, net, patch, 0.5, (0, 1, 2)))


def test_several_windows_at_once() -> None:
    image, net = volume((23, 19, 31)), network(3)
    one = together(image, net, (8, 10, 7), 0.5)
    for batch in (2, 5, 1000):
        many = together(image, net, (8, 10, 7), 0.5, batch=batch)
        torch.testing.assert_close(many, one, rtol=0, atol=2e-6)
        assert torch.equal(many.argmax(0), one.argmax(0))


def test_kept_sums_follow_the_window_and_not_the_volume() -> None:
    grid = WindowGrid.over((512, 512, 600), (96, 96, 96), 0.5)
    assert grid.kept_bytes(20) < 0.18 * 20 * 512 * 512 * 600 * 4
    longer = WindowGrid.over((512, 512, 6000), (96, 96, 96), 0.5)
    assert longer.kept_bytes(20) <= grid.kept_bytes(20)
    assert longer.order[0] == 2
    slices = WindowGrid.over((512, 512, 600), (512, 512), 0.5)
    assert slices.kept_bytes(20) == 21 * 512 * 512 * 4
