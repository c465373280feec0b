"""Plane by plane, volumes land where MONAI's transforms put them, and come back to the stored grid."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ssmvision.recipes.segmentation import resampling
from ssmvision.recipes.segmentation.preprocessing import ChannelScale, Preprocessing
from ssmvision.recipes.segmentation.resampling import Regrid
from ssmvision.recipes.segmentation.streaming import Block
from tests.recipes.synthetic import OBLIQUE, ball

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (17, 14, 11)
SHEARED = OBLIQUE @ np.array([[1, 0.2, -0.1, 0], [0, 1, 0.3, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
TARGETS = [None, (1.3, 1.1, 1.7), (0.7, 2.5, 1.0), (1.2, 1.2, -1.0), (4.0, 0.9, 6.0)]


def preprocessing(target: tuple[float, ...] | None) -> Preprocessing:
    return Preprocessing("RAS", target, (ChannelScale("none"),))


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resampling, "CHUNK_BYTES", 20_000)


def parts(logits: torch.Tensor, axis: int) -> Iterator[Block]:
    """Blocks in groups of four planes along the axis, each group cut in two."""
    across = (axis + 1) % 3
    for planes in torch.arange(logits.shape[1 + axis]).split(4):
        for columns in torch.arange(logits.shape[1 + across]).split(5):
            start = [0, 0, 0]
            start[axis], start[across] = int(planes[0]), int(columns[0])
            chosen = logits.index_select(1 + axis, planes).index_select(1 + across, columns)
            yield Block((start[0], start[1], start[2]), chosen)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("affine", [OBLIQUE, OBLIQUE[:, [2, 0, 1, 3]], SHEARED], ids=["oblique", "turned", "sheared"])
def test_equals_monai_there_and_back(
    small_chunks: None, affine: NDArray[np.float64], target: tuple[float, ...] | None
) -> None:
    how = preprocessing(target)
    image = torch.from_numpy(ball(SHAPE)[0])[None]
    expected = how.image(image, affine)
    regrid = Regrid.of(how, SHAPE, affine)
    found = regrid.forward(image)
    assert regrid.shape == tuple(expected.shape[1:])
    np.testing.assert_allclose(regrid.affine, np.asarray(expected.affine), atol=1e-9)
    torch.testing.assert_close(found, expected.as_tensor(), rtol=0, atol=1e-4)

    logits = torch.randn(3, *regrid.shape, generator=torch.Generator().manual_seed(0))
    restored = how.restore(logits, expected).numpy()
    for axis in range(3):
        result = np.full((3, *SHAPE), np.nan, dtype=np.float32)
        turned, back = regrid.turn(result), regrid.backward(axis)
        for part in parts(logits, axis):
            for block in back.add(part) if regrid.resamples else [part]:
                turned[(slice(None), *block.box)] = block.logits.numpy()
        np.testing.assert_allclose(result, restored, rtol=0, atol=1e-5)
        np.testing.assert_array_equal(result.argmax(0), restored.argmax(0))


def test_axes_in_place_and_no_resampling_copy_nothing() -> None:
    regrid = Regrid.of(preprocessing((1.0, 1.0, 1.0)), SHAPE, np.eye(4))
    assert not regrid.resamples
    image = torch.from_numpy(ball(SHAPE)[0])[None]
    assert regrid.forward(image).data_ptr() == image.data_ptr()
    assert np.shares_memory(regrid.turn(image.numpy()), image.numpy())
