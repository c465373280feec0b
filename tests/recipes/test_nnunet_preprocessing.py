"""nnU-Net's preprocessing beside its rules written down plainly with SciPy, and prediction beside training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes, gaussian_filter, map_coordinates, zoom

from ssmvision.recipes.preprocessing.case import prepare
from ssmvision.recipes.preprocessing.crop import nonzero_box
from ssmvision.recipes.preprocessing.resize import resize_image, resize_labels, separate_axis
from ssmvision.recipes.segmentation.infer import Predictor
from ssmvision.recipes.segmentation.maps import Maps
from ssmvision.recipes.segmentation.preprocessing import ChannelScale, Preprocessing
from ssmvision.recipes.segmentation.weights import ModelCard
from tests.recipes.synthetic import OBLIQUE


def resized(values: NDArray[Any], shape: Sequence[int], order: int) -> NDArray[Any]:
    """scikit-image's `resize(order, mode="edge", anti_aliasing=False)`, which is this."""
    factors = [m / n for n, m in zip(values.shape, shape, strict=True)]
    found = zoom(values.astype(np.float64), factors, order=order, mode="nearest", grid_mode=True)
    return np.clip(found, values.min(), values.max())


def by_slices(values: NDArray[Any], shape: Sequence[int], order: int, axis: int) -> NDArray[Any]:
    """Slices resized in their plane, then the nearest of them."""
    plane = [n for i, n in enumerate(shape) if i != axis]
    stack = np.stack([resized(part, plane, order) for part in np.moveaxis(values, axis, 0)], axis)
    places = np.indices(shape, dtype=np.float64)
    places[axis] = stack.shape[axis] / shape[axis] * (places[axis] + 0.5) - 0.5
    return map_coordinates(stack, places, order=0, mode="nearest")


def by_labels(labels: NDArray[Any], shape: Sequence[int], axis: int | None) -> NDArray[Any]:
    """Each label's share, in rising order, where it is one half or more."""
    result = np.zeros(shape, np.int64)
    for label in np.unique(labels):
        mask = (labels == label).astype(np.float64)
        share = resized(mask, shape, 1) if axis is None else by_slices(mask, shape, 1, axis)
        result[share >= 0.5] = label
    return result


def scan(seed: int, shape: tuple[int, ...]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """An image (2, X, Y, Z) with zeros around a body that has a hole, and labels in it."""
    rng = np.random.default_rng(seed)
    body = np.zeros(shape, bool)
    body[2:-3, 4:-2, 1:-1] = True
    middle = tuple(slice(n // 2 - 1, n // 2 + 2) for n in shape)
    body[:6, :8] = False
    body[middle] = False
    image = np.stack([gaussian_filter(rng.normal(size=shape), 1) * 50 + 10 for _ in range(2)]) * body
    labels = np.zeros(shape, np.int32)
    for i in (1, 2, 4):
        labels[(gaussian_filter(rng.normal(size=shape), 2) > 0.05) & body] = i
    return image.astype(np.float32), labels


@pytest.mark.parametrize("shape", [(41, 17, 26), (16, 40, 12), (5, 28, 51)])
@pytest.mark.parametrize("axis", [None, 0, 2])
def test_resizing_is_nnunets(shape: tuple[int, int, int], axis: int | None) -> None:
    image, labels = scan(0, (30, 28, 26))
    labels[:2] = -1
    found = resize_image(image, shape, axis)
    for channel, before in zip(found, image, strict=True):
        expected = resized(before, shape, 3) if axis is None else by_slices(before, shape, 3, axis)
        np.testing.assert_allclose(channel, expected, atol=2e-6 * np.abs(image).max())
    np.testing.assert_array_equal(resize_labels(labels, shape, axis), by_labels(labels, shape, axis))


def test_which_axis_is_resized_apart() -> None:
    assert separate_axis((1, 1, 3), (1, 1, 1)) is None
    assert separate_axis((1, 1, 3.1), (1, 1, 1)) == 2
    assert separate_axis((1, 1, 1), (4, 1, 1)) == 0
    assert separate_axis((1, 4, 4), (4, 1, 1)) is None  # two longest axes in the source: the target is not asked
    tiny = np.zeros((8, 8, 8), np.int32)
    tiny[3, 3, 3] = 1
    assert not resize_labels(tiny, (2, 2, 2), None).any()  # no voxel of the target looks at it


def test_the_box_around_what_is_not_zero() -> None:
    image = np.zeros((2, 7, 8, 9))
    assert nonzero_box(image) is None
    image[0, 2, 3, 4], image[1, 4, 5, 1] = 1, -1
    assert nonzero_box(image) == (slice(2, 5), slice(3, 6), slice(1, 5))
    image[0, [0, -1], [0, -1], [0, -1]] = 1
    assert nonzero_box(image) is None


@pytest.mark.parametrize("edges", [(0.8, 1.1, 0.9), (1.0, 1.3, 5.0)])
def test_training_cases(edges: tuple[float, ...]) -> None:
    image, labels = scan(1, (30, 28, 14))
    spacing = np.array([1.0, 1.2, 4.0])
    scales = (ChannelScale("zscore_nonzero"), ChannelScale("ct", -20, 60, 5, 12))
    how = Preprocessing("RAS", edges, scales, "nnunet")
    # Stored as LPS: the first two axes are turned round.
    case = prepare(how, image[:, ::-1, ::-1].copy(), np.diag([-1.0, -1.2, 4, 1]), labels[::-1, ::-1].copy(), 5)

    filled = binary_fill_holes((image != 0).any(0))
    box = tuple(slice(found.min(), found.max() + 1) for found in np.nonzero(filled))
    inside, cut = filled[box], image[(slice(None), *box)].astype(np.float64)
    voxels = cut[0][inside]
    cut[0] = np.where(inside, (cut[0] - voxels.mean()) / voxels.std(), 0)
    cut[1] = (cut[1].clip(-20, 60) - 5) / 12
    shape = [round(float(n * s / t)) for n, s, t in zip(inside.shape, spacing, edges, strict=True)]
    marked = labels[box].copy()
    marked[(marked == 0) & ~inside] = -1
    expected = np.stack([by_slices(channel, shape, 3, 2) for channel in cut])
    np.testing.assert_allclose(case.image, expected, atol=2e-5)
    np.testing.assert_array_equal(case.label, by_labels(marked, shape, 2))
    assert (case.label == -1).any()
    np.testing.assert_allclose(case.spacing_mm, spacing * inside.shape / np.array(shape))


class Identity(torch.nn.Module):
    """Two classes whose logits are the first channel and its opposite."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.cat([image[:, :1], -image[:, :1]], 1)


@pytest.mark.parametrize("thick", [False, True])
def test_prediction_prepares_as_training_and_goes_back_by_the_same_way(thick: bool) -> None:
    image, labels = scan(2, (26, 24, 12))
    affine = OBLIQUE @ np.diag([1, 1, 4 if thick else 1, 1])
    how = Preprocessing("ASR", (0.9, 5.0 if thick else 1.7, 1.2), (ChannelScale("zscore_nonzero"),) * 2, "nnunet")
    seen: list[torch.Tensor] = []

    class Spy(Identity):
        def forward(self, window: torch.Tensor) -> torch.Tensor:
            seen.append(window)
            return super().forward(window)

    case = prepare(how, image, affine, labels, 5)
    card = ModelCard({}, ("a", "b"), {"background": 0, "x": 1}, case.image.shape[1:], how)
    predictor = Predictor(Spy(), card, "cpu")
    logits = predictor.logits(image, affine).numpy()
    assert len(seen) == 1
    np.testing.assert_array_equal(seen[0][0].numpy(), case.image)

    box = tuple(slice(found.min(), found.max() + 1) for found in np.nonzero((image != 0).any(0)))
    # Stored as RPS: the axes of ASR are its second, reversed, its third and its first one.
    back = case.image[0].transpose(2, 0, 1)[:, ::-1]
    cut = [part.stop - part.start for part in box]
    expected = by_slices(back, cut, 1, 2) if thick else resized(back, cut, 1)
    np.testing.assert_allclose(logits[0][box], expected, atol=1e-5)
    outside = np.ones(image.shape[1:], bool)
    outside[box] = False
    maps = Maps(*(np.full(s, 9, t) for s, t in ((outside.shape, np.uint8), (outside.shape, np.float32))))
    predictor.fill(maps, image, affine)
    assert maps.labels is not None
    assert maps.uncertainty is not None
    assert not maps.labels[outside].any()
    assert not maps.uncertainty[outside].any()
    np.testing.assert_array_equal(maps.labels, logits.argmax(0))
    probabilities = predictor.probabilities(image, affine)
    np.testing.assert_array_equal(probabilities[:, outside][0], 1)


def test_older_models_keep_their_rules() -> None:
    how = Preprocessing("RAS", (1.0, 1.0, 1.0), (ChannelScale("zscore"),), "nnunet")
    values = how.to_json()
    assert Preprocessing.from_json(values) == how
    del values["rules"]
    assert Preprocessing.from_json(values).rules == "linear"
    with pytest.raises(ValueError, match="rules are 'cubic', this version knows linear and nnunet"):
        Preprocessing.from_json(values | {"rules": "cubic"})
    with pytest.raises(ValueError, match=r"use recipes\.preprocessing\.case\.prepare"):
        how.label(np.zeros((4, 4, 4), np.int32), np.eye(4))
