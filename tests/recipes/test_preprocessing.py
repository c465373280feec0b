from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from ssmvision.errors import UserError
from ssmvision.recipes.segmentation.config import DataConfig
from ssmvision.recipes.segmentation.datalist import read_dataset
from ssmvision.recipes.segmentation.preprocessing import ChannelScale, Preprocessing, fit_preprocessing
from tests.recipes.synthetic import OBLIQUE, ball, nnunet_folder, save, write_description

SHAPE = (9, 8, 7)
ORIENTATIONS = list(itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)))


@pytest.mark.parametrize(("axes", "signs"), ORIENTATIONS)
def test_all_48_axis_orders_give_one_image_and_return_exactly(axes: tuple[int, ...], signs: tuple[int, ...]) -> None:
    data = ball(SHAPE)[0]
    how = Preprocessing("RAS", None, (ChannelScale("none"),))
    canonical = how.image(data[None], OBLIQUE)
    stored = np.transpose(data, axes)[tuple(slice(None, None, s) for s in signs)].copy()
    affine = OBLIQUE.copy()  # column j belongs to the axis that went to place j, reversed where the sign says
    for j, (axis, sign) in enumerate(zip(axes, signs, strict=True)):
        affine[:3, j] = OBLIQUE[:3, axis] * sign
        if sign < 0:
            affine[:3, 3] += OBLIQUE[:3, axis] * (SHAPE[axis] - 1)
    turned = how.image(stored[None], affine)
    np.testing.assert_array_equal(turned.as_tensor().numpy(), canonical.as_tensor().numpy())
    np.testing.assert_allclose(turned.affine.numpy(), canonical.affine.numpy(), atol=1e-12)
    logits = torch.cat([turned.as_tensor(), -turned.as_tensor()])
    np.testing.assert_array_equal(how.restore(logits, turned)[0].numpy(), stored)


def test_resampling_keeps_world_positions_on_an_oblique_grid() -> None:
    shape = (24, 20, 16)
    index = np.moveaxis(np.indices(shape), 0, -1)
    world = index @ OBLIQUE[:3, :3].T + OBLIQUE[:3, 3]
    how = Preprocessing("RAS", (1.3, 1.1, 1.7), (ChannelScale("none"),) * 3)
    image = how.image(np.moveaxis(world, -1, 0).astype(np.float32), OBLIQUE)
    new = np.moveaxis(np.indices(image.shape[1:]), 0, -1) @ image.affine.numpy()[:3, :3].T + image.affine.numpy()[:3, 3]
    inner = (slice(2, -2),) * 3
    np.testing.assert_allclose(np.moveaxis(image.as_tensor().numpy(), 0, -1)[inner], new[inner], atol=1e-3)
    back = np.moveaxis(how.restore(image.as_tensor(), image).numpy(), 0, -1)
    assert back.shape == world.shape
    inner = (slice(3, -3),) * 3
    np.testing.assert_allclose(back[inner], world[inner], atol=1e-3)


def test_label_and_image_grids_agree_after_resampling() -> None:
    image, mask = ball((24, 20, 16))
    how = Preprocessing("RAS", (1.0, 1.0, 1.0), (ChannelScale("none"),))
    prepared, label = how.image(image[None], OBLIQUE), how.label(mask, OBLIQUE)
    assert prepared.shape == label.shape
    assert label.dtype == torch.int64
    restored = how.restore(torch.stack([1.0 - label[0], label[0]]).float(), prepared).argmax(0).numpy()
    assert 2 * (restored & mask).sum() / (restored.sum() + mask.sum()) > 0.9


def test_scales(tmp_path: Path) -> None:
    nnunet_folder(tmp_path, [SHAPE, SHAPE])
    write_description(tmp_path, channel_names={"0": "CT"})
    how, spacing = fit_preprocessing(DataConfig(tmp_path, spacing_mm="median"), read_dataset(tmp_path), 3)
    (scale,) = how.scales
    assert scale.kind == "ct"
    assert 240 < scale.low < 280 < scale.mean < 320 < scale.high < 360  # the ball is 300 +- 20
    np.testing.assert_allclose(spacing, np.linalg.norm(OBLIQUE[:3, :3], axis=0), rtol=1e-6)
    assert Preprocessing.from_json(how.to_json()) == how
    image = how.image(ball(SHAPE)[0][None], OBLIQUE)
    assert float(image.min()) == pytest.approx((scale.low - scale.mean) / scale.std, abs=1e-5)

    z = Preprocessing(None, None, (ChannelScale("zscore"),)).image(ball(SHAPE)[0][None], OBLIQUE)
    assert float(z.mean()) == pytest.approx(0, abs=1e-5)
    assert float(z.std(correction=0)) == pytest.approx(1, abs=1e-4)
    flat = Preprocessing(None, None, (ChannelScale("zscore"),)).image(np.full((1, *SHAPE), 7, np.float32), OBLIQUE)
    assert not flat.any()


def test_bad_cases_are_found_before_training(tmp_path: Path) -> None:
    nnunet_folder(tmp_path, [SHAPE, SHAPE])
    save(tmp_path / "labelsTr" / "case_1.nii.gz", ball(SHAPE)[1] * 5)
    with pytest.raises(UserError, match=r"labelsTr/case_1\.nii\.gz: label ids not in \[0, 1\]"):
        fit_preprocessing(DataConfig(tmp_path), read_dataset(tmp_path), 3)
    save(tmp_path / "labelsTr" / "case_1.nii.gz", ball(SHAPE)[1])
    with pytest.raises(UserError, match=r"data\.spacing_mm: \(1\.0, 1\.0\) does not fit; give 3"):
        fit_preprocessing(DataConfig(tmp_path, spacing_mm=(1.0, 1.0)), read_dataset(tmp_path), 3)
