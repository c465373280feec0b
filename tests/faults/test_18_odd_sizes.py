"""Fault 18: odd sizes are right or refused; the scan takes any length and stride."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from ssmvision.kernels.selective_scan import selective_scan
from ssmvision.recipes.segmentation.infer import load_model
from tests.faults.common import cli, labels_of, never_wrong, run_folder
from tests.recipes.synthetic import OBLIQUE, ball, save

SHAPES = [(1, 13, 11), (13, 1, 11), (17, 13, 1), (1, 1, 9), (3, 2, 2), (17, 19, 23), (31, 7, 5)]


@pytest.mark.parametrize("spacing", [None, (1.3, 1.2, 1.6)], ids=["as stored", "resampled"])
@pytest.mark.fault(18, part="1-voxel axes, smaller than the patch, prime sizes: labels on the exact grid")
def test_shapes(tmp_path: Path, spacing: tuple[float, float, float] | None) -> None:
    model = run_folder(tmp_path / "run", spacing_mm=spacing)
    for i, shape in enumerate(SHAPES):
        save(tmp_path / "in" / f"{i}.nii.gz", ball(shape, seed=i)[0])
    done = cli("predict", model, tmp_path / "in", tmp_path / "out", "--device", "cpu")
    assert done.status == 0, done.said
    for i, shape in enumerate(SHAPES):
        found = nibabel.load(tmp_path / "out" / f"{i}.nii.gz")
        never_wrong(found.shape == shape, f"shape {found.shape} of labels for {shape}")
        assert np.unique(found.dataobj).max() <= 1
    # What does not fit a window is padded: the part of a larger volume that is seen alone keeps its labels.
    assert 0.02 < labels_of(tmp_path / "out" / "5.nii.gz").mean() < 0.98


@pytest.mark.fault(18, part="arrays of any stride, and views turned round, give the labels of their contiguous copies")
def test_strides(model: Path) -> None:
    predictor = load_model(model, "cpu")
    image = ball((17, 19, 13))[0]
    spread = np.zeros((34, 19, 26), np.float32)
    spread[::2, :, ::2] = image
    expected = predictor(image, OBLIQUE)
    for view in (spread[::2, :, ::2], np.asfortranarray(image), image.astype(">f4"), image[::-1][::-1]):
        never_wrong(np.array_equal(predictor(view, OBLIQUE), expected), "the memory's order changed the labels")
    with pytest.raises(ValueError, match="expected"):
        predictor(np.zeros((1, 1, 4, 4, 4), np.float32), OBLIQUE)


def inputs(batch: int, length: int, channels: int = 6, state: int = 3) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    u, delta = (torch.randn(batch, length, channels, generator=g) for _ in range(2))
    A = -torch.rand(channels, state, generator=g)
    B, C = (torch.randn(batch, length, state, generator=g) for _ in range(2))
    return [u, delta, A, B, C, torch.randn(channels, generator=g)]


@pytest.mark.parametrize("length", [0, 1, 2, 7, 61, 127, 131])
@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.fault(18, part="the scan: lengths 0, 1, 2 and primes, batch 0, and any stride, equal to a plain loop")
def test_scan(batch: int, length: int) -> None:
    plain = inputs(batch, length)
    spaced = [torch.stack([t, t + 1], -1)[..., 0] for t in plain]
    assert length < 2 or batch == 0 or not spaced[0].is_contiguous()
    u, delta, A, B, C, D = (t.double() for t in plain)
    state, expected = torch.zeros(batch, 6, 3, dtype=torch.float64), []
    for i in range(length):
        step = torch.nn.functional.softplus(delta[:, i])[..., None]
        state = torch.exp(step * A) * state + step * B[:, i, None] * u[:, i, :, None]
        expected.append((state * C[:, i, None]).sum(-1) + D * u[:, i])
    y = torch.stack(expected, 1) if expected else torch.zeros(batch, 0, 6, dtype=torch.float64)
    for tensors in (plain, spaced):
        u, delta, A, B, C, D = tensors
        found = selective_scan(u.mT, delta.mT, A, B.mT, C.mT, D, delta_softplus=True)
        torch.testing.assert_close(found.mT.double(), y, rtol=1e-4, atol=1e-4)
