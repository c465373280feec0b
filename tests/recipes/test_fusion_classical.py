"""Classical fusion: what each method must keep, against definitions written out and on a pair of half-sharp images."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ssmvision.errors import UserError
from ssmvision.metrics import fusion
from ssmvision.recipes.fusion import classical
from ssmvision.recipes.fusion.classical import METHODS, fuse, guided_filter, laplacian_pyramid, wavelet

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "fusion_metrics"


def pair(shape=(40, 52), dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(rng.random(shape).astype(dtype) for _ in range(2))


@pytest.fixture(scope="module")
def half_sharp():
    """A is sharp on the right, B on the left; the third image is sharp everywhere."""
    with np.load(GOLDEN / "camera_multifocus.npz") as arrays:
        a, b = (arrays[name] / 255 for name in "AB")
    middle = a.shape[1] // 2
    return a, b, np.concatenate((b[:, :middle], a[:, middle:]), axis=1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(40, 52), (37, 41), (1, 1), (1, 9), (2, 3), (64, 1)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_image_fused_with_itself_stays(method, shape, dtype):
    a, _ = pair(shape, dtype)
    fused = fuse(a, a.copy(), method)
    assert fused.dtype == dtype
    np.testing.assert_allclose(fused, a, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(40, 52), (37, 41), (1, 1), (1, 9), (2, 3), (64, 1)])
def test_order_does_not_matter_and_values_stay_in_range(method, shape):
    a, b = pair(shape)
    fused = fuse(a, b, method)
    np.testing.assert_allclose(fused, fuse(b, a, method), atol=1e-12)
    assert fused.shape == shape
    assert fused.min() >= 0
    assert fused.max() <= 1


@pytest.mark.parametrize("method", METHODS)
def test_constant_images(method):
    dark, light = np.full((20, 24), 0.2), np.full((20, 24), 0.8)
    expected = 0.8 if method == "max" else 0.5
    np.testing.assert_allclose(fuse(dark, light, method), expected, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_inputs_are_left_alone(method):
    a, b = (x[:, ::2] for x in pair())
    copies = a.copy(), b.copy()
    fuse(a, b, method)
    assert np.array_equal(a, copies[0])
    assert np.array_equal(b, copies[1])


def test_average_and_maximum():
    a, b = pair()
    np.testing.assert_array_equal(fuse(a, b, "average"), (a + b) / 2)
    np.testing.assert_array_equal(fuse(a, b, "max"), np.maximum(a, b))


@pytest.mark.parametrize("method", ["laplacian", "wavelet", "guided"])
def test_the_sharp_halves_are_found(half_sharp, method):
    a, b, sharp = half_sharp
    errors = {name: np.sqrt(np.mean((fuse(a, b, name) - sharp) ** 2)) for name in ("average", method)}
    assert errors[method] < 0.5 * errors["average"]
    edges = {
        name: float(fusion.qabf(*(torch.from_numpy(x) for x in (a, b, fuse(a, b, name))), data_range=1))
        for name in ("average", method)
    }
    assert edges[method] > edges["average"] + 0.05


def test_laplacian_pyramid_without_levels_is_the_average():
    a, b = pair()
    np.testing.assert_array_equal(laplacian_pyramid(a, b, levels=0), (a + b) / 2)
    assert not np.allclose(laplacian_pyramid(a, b, levels=1), (a + b) / 2)
    with pytest.raises(ValueError, match="levels is -1"):
        laplacian_pyramid(a, b, levels=-1)


def test_laplacian_pyramid_keeps_the_stronger_detail():
    flat = np.full((32, 32), 0.5)
    spots = flat.copy()
    spots[8::16, 8::16] = 0.9
    fused = laplacian_pyramid(flat, spots, levels=4)
    # All of the detail is in one image; of the coarsest mean half is lost.
    assert np.ptp(fused) == pytest.approx(np.ptp(spots), rel=0.02)


def test_wavelet_without_levels_is_the_average_and_with_them_takes_all_detail():
    a, b = pair()
    np.testing.assert_array_equal(wavelet(a, b, levels=0), (a + b) / 2)
    flat = np.full((32, 32), 0.5)
    spots = flat.copy()
    spots[8::16, 8::16] = 0.9
    assert np.ptp(wavelet(flat, spots)) == pytest.approx(np.ptp(spots), rel=0.02)
    with pytest.raises(ValueError, match="levels is -1"):
        wavelet(a, b, levels=-1)


def test_wavelet_does_not_depend_on_where_the_image_starts():
    a, b = pair((72, 72))
    fused, later = wavelet(a, b), wavelet(a[1:], b[1:])
    reach = 2 * sum(2**level for level in range(4))
    np.testing.assert_allclose(fused[1 + reach :], later[reach:], atol=1e-12)


def test_guided_filter_is_the_mean_of_ridge_regressions():
    guide, image = pair((9, 11))
    radius, epsilon = 2, 0.05
    height, width = guide.shape
    sums, counts = np.zeros_like(guide), np.zeros_like(guide)
    for row in range(height):
        for column in range(width):
            window = np.s_[max(row - radius, 0) : row + radius + 1, max(column - radius, 0) : column + radius + 1]
            x, y = guide[window].ravel(), image[window].ravel()
            # minimises mean((slope x + offset - y)^2) + epsilon slope^2
            design = np.stack((x, np.ones_like(x)), 1)
            slope, offset = np.linalg.solve(design.T @ design / x.size + np.diag([epsilon, 0]), design.T @ y / x.size)
            sums[window] += slope * guide[window] + offset
            counts[window] += 1
    # A pixel is in the windows around exactly those pixels that are in its own window.
    np.testing.assert_allclose(classical._guided(guide, image, radius, epsilon), sums / counts, rtol=1e-9)


def test_guided_filter_takes_the_detail_of_the_salient_image():
    rows = np.arange(64)
    stripes = np.tile(0.5 + 0.2 * (rows // 4 % 2 * 2 - 1), (64, 1))
    flat = np.full((64, 64), 0.5)
    fused = guided_filter(flat, stripes)
    assert np.corrcoef(fused.ravel(), stripes.ravel())[0, 1] > 0.99
    assert fused.std() > 0.9 * stripes.std()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda a, b: (a, b[1:]), ValueError, r"\(40, 52\) and \(39, 52\)"),
        (lambda a, b: (a[None], b[None]), ValueError, r"a is \(1, 40, 52\); expected a gray image"),
        (lambda a, b: (a[:0], b[:0]), ValueError, "at least one pixel"),
        (lambda a, b: ((255 * a).astype(np.uint8), b), TypeError, "a is uint8; expected floating"),
        (lambda a, b: (a, np.where(b > 0.5, np.nan, b)), ValueError, r"b has \d+ values that are NaN"),
        (lambda a, b: (a, 255 * b), ValueError, "b has values from .* expected 0 to 1"),
        (lambda a, b: (a - 0.5, b), ValueError, "a has values from -0"),
    ],
)
def test_what_is_no_pair_of_gray_images_is_refused(method, change, error, message):
    with pytest.raises(error, match=message):
        fuse(*change(*pair()), method)


def test_unknown_method():
    with pytest.raises(
        UserError, match="method 'median' is unknown; choose from average, max, laplacian, wavelet, guided"
    ):
        fuse(*pair(), "median")
