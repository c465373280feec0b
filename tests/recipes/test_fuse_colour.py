"""Colour and published post-processing: equal to the published code where that is meant, lossless where ours is."""

from pathlib import Path

import numpy as np
import pytest

from ssmvision.recipes.fusion.colour import (
    chroma,
    luminance,
    mixed_chroma,
    recoloured,
    rgb_to_ycrcb,
    ycrcb_to_rgb,
)
from ssmvision.recipes.fusion.postprocess import clamped, official_uint8, stretched

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "fusion"


def colours(seed=0, shape=(17, 13)):
    return np.random.default_rng(seed).random((*shape, 3))


def test_published_conversion_and_its_way_back():
    with np.load(GOLDEN / "colour.npz") as stored:
        rgb, there, back = (np.moveaxis(stored[name], 1, -1) for name in ("in.rgb", "out", "back"))
    ours = rgb_to_ycrcb(rgb)
    assert ours.dtype == rgb.dtype
    np.testing.assert_allclose(ours, there, atol=1e-6)
    np.testing.assert_allclose(ycrcb_to_rgb(ours), back, atol=1e-6)


def test_published_postprocessing():
    with np.load(GOLDEN / "postprocess.npz") as stored:
        x, out, levels = (stored[name] for name in ("in.x", "out", "uint8"))
    np.testing.assert_array_equal(stretched(x), out)
    np.testing.assert_array_equal(official_uint8(stretched(x)[0, 0]), levels)


@pytest.mark.parametrize("value", [-3.0, 0.25, 7.0])
def test_a_constant_output_is_not_divided_by_zero(value):
    out = stretched(np.full((4, 5), value, dtype=np.float32))
    np.testing.assert_array_equal(out, np.full((4, 5), min(max(value, 0), 1), dtype=np.float32))
    np.testing.assert_array_equal(clamped(np.full((4, 5), value)), np.clip(value, 0, 1))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_colour_of_its_own_luminance_comes_back(dtype):
    rgb = colours().astype(dtype)
    back = recoloured(luminance(rgb), chroma(rgb))
    assert luminance(rgb).dtype == dtype
    np.testing.assert_allclose(back, rgb, atol=1e-6 if dtype == np.float32 else 1e-14)


def test_luminance_and_hue_stay_where_the_colour_has_no_room():
    rgb, y = colours(), np.random.default_rng(1).random((17, 13))
    out = recoloured(y, chroma(rgb))
    assert out.min() >= 0
    assert out.max() <= 1
    np.testing.assert_allclose(luminance(out), y, atol=1e-12)
    # Same direction of chroma, never longer, and unchanged for most of mid-gray.
    before, after = chroma(rgb), chroma(out)
    np.testing.assert_allclose(before[..., 0] * after[..., 1], before[..., 1] * after[..., 0], atol=1e-12)
    assert (np.linalg.norm(after, axis=-1) <= np.linalg.norm(before, axis=-1) + 1e-12).all()
    weak = 0.5 + 0.2 * (rgb - 0.5)
    np.testing.assert_allclose(chroma(recoloured(0.4 + 0.2 * y, chroma(weak))), chroma(weak), atol=1e-12)


def test_mixed_chroma_keeps_the_only_colour_and_is_gray_without_any():
    rgb = chroma(colours())
    gray = np.zeros_like(rgb)
    np.testing.assert_allclose(mixed_chroma(rgb, gray), rgb)
    np.testing.assert_array_equal(mixed_chroma(gray, gray), gray)
    np.testing.assert_allclose(mixed_chroma(rgb, rgb), rgb)
    np.testing.assert_allclose(mixed_chroma(np.array([0.4, 0.0]), np.array([-0.2, 0.1])), [0.2, 0.1])
