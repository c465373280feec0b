"""Fusion metrics: conventions, input forms, degenerate images and refusals."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import mutual_info_score
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    structural_similarity_index_measure,
    visual_information_fidelity,
)

from ssmvision.metrics import fusion
from ssmvision.metrics.fusion import METRICS, applicable, fusion_metrics

SMALL = applicable(48, 56)
pytestmark = pytest.mark.usefixtures("one_thread")


def images(height: int = 48, width: int = 56, batch: int = 2, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """uint8 a, b and their mean, smooth enough to have structure."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(2 * batch, 1, height // 4, width // 4, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    fine = (fine * 235 + 20 * torch.rand(fine.shape, generator=generator)).round().to(torch.uint8)
    a, b = fine.chunk(2)
    return a, b, ((a.double() + b.double()) / 2).round().to(torch.uint8)


def test_table_has_every_metric_of_every_image():
    a, b, fused = images(176, 180)
    table = fusion_metrics(a, b, fused)
    assert list(table) == list(METRICS) == applicable(176, 180)
    for values in table.values():
        assert values.shape == (2,)
        assert values.dtype == torch.float64
        assert values.isfinite().all()
    assert {"EN", "SD", "SF", "AG", "CC", "SCD", "PSNR", "SSIM", "MS-SSIM", "VIF", "Qabf"} < set(table)
    assert all(metric.convention for metric in METRICS.values())


def test_a_batch_is_its_images_one_by_one():
    a, b, fused = images(batch=3)
    table = fusion_metrics(a, b, fused, names=SMALL)
    for i in range(3):
        single = fusion_metrics(a[i, 0], b[i, 0], fused[i, 0], names=SMALL)
        for name, value in single.items():
            assert value.shape == ()
            torch.testing.assert_close(value, table[name][i], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("dtype", "data_range", "factor"),
    [
        (torch.uint16, None, 257),
        (torch.int16, 255, 1),
        (torch.float64, 1.0, 1 / 255),
        (torch.float32, 1.0, 1 / 255),
        (torch.float16, 255.0, 1),
        (torch.bfloat16, 255.0, 1),
    ],
)
def test_dtypes_agree(dtype, data_range, factor):
    a, b, fused = images(batch=1)
    expected = fusion_metrics(a, b, fused, names=SMALL)
    got = fusion_metrics(*((x.double() * factor).to(dtype) for x in (a, b, fused)), data_range=data_range, names=SMALL)
    for name, value in got.items():
        torch.testing.assert_close(value, expected[name], rtol=2e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_strides_do_not_matter():
    a, b, fused = images()
    turned = [x.mT.contiguous().mT for x in (a, b, fused)]
    expected = fusion_metrics(a, b, fused, names=SMALL)
    for name, value in fusion_metrics(*turned, names=SMALL).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-12)


def test_sources_change_places():
    a, b, fused = images()
    swapped = fusion_metrics(b, a, fused, names=SMALL)
    for name, value in fusion_metrics(a, b, fused, names=SMALL).items():
        torch.testing.assert_close(value, swapped[name], rtol=1e-12, atol=1e-12)


def test_no_graph_is_built():
    a, b, fused = (x.double().requires_grad_() for x in images())
    assert not any(v.requires_grad for v in fusion_metrics(a, b, fused, data_range=255, names=SMALL).values())


@pytest.mark.gpu
def test_gpu_agrees_with_cpu():
    a, b, fused = images(176, 180)
    expected = fusion_metrics(a, b, fused)
    for name, value in fusion_metrics(a.cuda(), b.cuda(), fused.cuda()).items():
        torch.testing.assert_close(value.cpu(), expected[name], rtol=1e-9, atol=1e-9)


# Known values


def test_ramp_has_known_sharpness():
    ramp = torch.arange(0, 64, 4, dtype=torch.uint8).expand(8, 16)
    assert float(fusion.spatial_frequency(ramp)) == 4
    assert float(fusion.average_gradient(ramp)) == pytest.approx(4 / math.sqrt(2))
    assert float(fusion.standard_deviation(ramp)) == pytest.approx(4 * np.arange(16).std())
    assert float(fusion.entropy(ramp)) == pytest.approx(4)


def test_mutual_information_is_that_of_scikit_learn():
    a, b, fused = images(batch=1)
    rows = [x.flatten().numpy() for x in (a, b, fused)]
    nats = mutual_info_score(rows[0], rows[2]) + mutual_info_score(rows[1], rows[2])
    assert float(fusion.mutual_information(a, b, fused, unit="nats")) == pytest.approx(nats, rel=1e-9)
    assert float(fusion.mutual_information(a, b, fused)) == pytest.approx(nats / math.log(2), rel=1e-9)


def test_correlations_are_those_of_numpy():
    a, b, fused = images(batch=1)
    x, y, f = (v.flatten().numpy().astype(float) for v in (a, b, fused))
    cc = (np.corrcoef(x, f)[0, 1] + np.corrcoef(y, f)[0, 1]) / 2
    scd = np.corrcoef(f - y, x)[0, 1] + np.corrcoef(f - x, y)[0, 1]
    assert float(fusion.correlation_coefficient(a, b, fused)) == pytest.approx(cc, rel=1e-9)
    assert float(fusion.sum_of_correlations_of_differences(a, b, fused)) == pytest.approx(scd, rel=1e-9)


def test_mirrored_border_is_torchmetrics():
    a, b, fused = images(176, 180, batch=1)
    pairs = [(fused.double(), source.double()) for source in (a, b)]
    expected = sum(
        multiscale_structural_similarity_index_measure(*p, data_range=255.0, reduction="none") for p in pairs
    )
    torch.testing.assert_close(fusion.ms_ssim(a, b, fused, border="mirror"), expected, rtol=1e-6, atol=0)
    expected = sum(structural_similarity_index_measure(*p, data_range=255.0, reduction="none") for p in pairs)
    torch.testing.assert_close(fusion.ssim(a, b, fused, border="mirror"), expected, rtol=1e-9, atol=0)
    expected = sum(visual_information_fidelity(*p, reduction="none") for p in pairs) / 2
    torch.testing.assert_close(fusion.vif(a, b, fused, reduction="mean"), expected, rtol=1e-9, atol=0)


def test_psnr_conventions():
    black = torch.zeros(4, 4, dtype=torch.uint8)
    a, b, fused = black + 10, black + 30, black + 20
    assert float(fusion.psnr(a, b, fused)) == pytest.approx(20 * math.log10(255 / 10))
    assert float(fusion.psnr(a, b, fused, peak="fused")) == pytest.approx(20 * math.log10(20 / 10))
    far = black + 120
    db = (20 * math.log10(255 / 10) + 20 * math.log10(255 / 100)) / 2
    assert float(fusion.psnr(a, far, fused, average="db")) == pytest.approx(db)
    assert float(fusion.psnr(a, far, fused)) == pytest.approx(10 * math.log10(255**2 / 5050))


def test_a_perfect_copy_of_equal_sources():
    a, _, _ = images(batch=1)
    table = fusion_metrics(a, a, a, names=SMALL)
    for name, best in {"CC": 1, "PSNR": math.inf, "SSIM": 2, "VIF": 2, "FMI (none)": 1, "SCD": 0}.items():
        assert float(table[name]) == pytest.approx(best), name
    assert float(table["Qabf"]) == pytest.approx(0.9994 * 0.9879 / (1 + math.exp(-22 * 0.2)), rel=1e-3)
    assert float(table["MI (bits)"]) == pytest.approx(2 * float(table["EN"]))


def test_better_fusion_scores_better():
    a, b, fused = images(batch=1)
    noisy = (fused.double() + 40 * torch.randn(fused.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 255)
    names = ["CC", "PSNR", "SSIM", "VIF", "Qabf", "FMI (none)", "FMI (gradient)"]
    good = fusion_metrics(a, b, fused, names=names)
    for name, bad in fusion_metrics(a, b, noisy, data_range=255, names=names).items():
        assert float(good[name]) > float(bad), name


# Degenerate images


@pytest.mark.parametrize("level", [0, 77, 255])
@pytest.mark.parametrize("constant", ["a", "fused", "all"])
def test_constant_images_give_finite_values(level, constant):
    given = dict(zip(("a", "b", "fused"), images(batch=1), strict=True))
    for name in given:
        if constant in (name, "all"):
            given[name] = torch.full_like(given[name], level)
    table = fusion_metrics(**given, names=SMALL)
    undefined = [name for name, value in table.items() if not value.isfinite().all()]
    assert undefined == (["PSNR"] if constant == "all" else [])  # no error at all: infinite
    if constant in ("fused", "all"):
        assert [float(table[name]) for name in ("EN", "SD", "SF", "AG", "CC")] == [0] * 5
        assert float(table["MI (bits)"]) == pytest.approx(0, abs=1e-12)
    if constant == "all":
        assert float(table["VIF"]) == 2
        assert float(table["SSIM"]) == pytest.approx(2)
        assert float(table["FMI (none)"]) == 1


def test_constant_images_have_finite_structure_at_every_scale():
    a, b, fused = images(176, 176, batch=1)
    flat = torch.full_like(a, 3)
    assert float(fusion.ms_ssim(flat, flat, flat)) == pytest.approx(2)
    assert 0 <= float(fusion.ms_ssim(flat, b, fused)) < 2
    assert 0 <= float(fusion.ms_ssim(a, b, flat)) < 0.5


def test_constants_that_are_no_binary_fractions_have_no_correlation():
    a, b, _ = (x.double() / 255 for x in images())
    flat = torch.full_like(a, 0.1)
    assert fusion.correlation_coefficient(a, b, flat, data_range=1).tolist() == [0, 0]
    assert fusion.correlation_coefficient(a, b, flat, data_range=1, undefined=math.nan).isnan().all()
    copy = b * 0.1 * 10  # b but for rounding
    assert not torch.equal(copy, b)
    assert fusion.sum_of_correlations_of_differences(a, b, copy, data_range=1, undefined=math.nan).isnan().all()


def test_a_copy_of_one_source_has_added_nothing():
    a, b, _ = images()
    kept = fusion.sum_of_correlations_of_differences(a, b, b)
    assert kept.isfinite().all()
    assert fusion.sum_of_correlations_of_differences(a, b, b, undefined=math.nan).isnan().all()
    assert fusion.normalized_mutual_information(a * 0, a * 0, a * 0).tolist() == [2, 2]


def test_one_pixel_has_what_one_pixel_can_have():
    pixel = torch.tensor([[7]], dtype=torch.uint8)
    names = applicable(1, 1)
    assert "SSIM" not in names
    assert fusion_metrics(pixel, pixel + 1, pixel, names=names)["CC"] == 0
    with pytest.raises(ValueError, match=r"1x1 pixels are too small for SF \(2\), AG \(2\), SSIM \(11\)"):
        fusion_metrics(pixel, pixel, pixel)


@pytest.mark.parametrize(
    ("function", "least"),
    [
        (fusion.ssim, 11),
        (fusion.ms_ssim, 176),
        (fusion.vif, 41),
        (fusion.feature_mutual_information, 3),
        (lambda a, b, f: fusion.spatial_frequency(f), 2),
        (lambda a, b, f: fusion.average_gradient(f), 2),
        (lambda a, b, f: fusion.ssim(a, b, f, window="uniform"), 7),
    ],
)
def test_least_sizes(function, least):
    x = torch.arange(least * least).remainder(251).to(torch.uint8).view(least, least)
    assert function(x, x, x).isfinite()
    with pytest.raises(ValueError, match=f"at least {least}x{least} pixels, got {least - 1}x{least}"):
        function(x[1:], x[1:], x[1:])


# Refusals


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda a, b, f: (a, b[..., 1:], f), ValueError, r"b is \(2, 1, 48, 55\) but a is \(2, 1, 48, 56\)"),
        (lambda a, b, f: (a, b, f.tolist()), TypeError, "fused: expected a tensor, got list"),
        (lambda a, b, f: (a.repeat(1, 3, 1, 1),) * 3, ValueError, "of colour images take the luminance"),
        (lambda a, b, f: (a[:, 0], b[:, 0], f[:, 0]), ValueError, r"expected gray \(H, W\) or \(B, 1, H, W\)"),
        (lambda a, b, f: (a[..., :0], b[..., :0], f[..., :0]), ValueError, "there is no pixel"),
        (lambda a, b, f: (a, b, f > 9), TypeError, "fused is torch.bool"),
        (lambda a, b, f: (a, b.float(), f), ValueError, "b is torch.float32: say which value stands for white"),
        (lambda a, b, f: (a, b, f.to("meta")), ValueError, "fused is on meta but a on cpu"),
    ],
)
def test_what_is_no_batch_of_gray_images_is_refused(change, error, message):
    with pytest.raises(error, match=message):
        fusion_metrics(*change(*images()), names=SMALL)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (math.nan, "fused has 1 values that are NaN or infinite"),
        (-math.inf, "fused has 1 values that are NaN or infinite"),
        (1.5, r"fused has values from [0-9.]+ to 1.5, outside \[0, 1\]"),
        (-0.5, "fused has values from -0.5"),
    ],
)
@pytest.mark.parametrize("name", SMALL)
def test_values_that_are_no_gray_values_are_refused(name, value, message):
    a, b, fused = (x.double() / 255 for x in images())
    fused[1, 0, 3, 4] = value
    with pytest.raises(ValueError, match=message):
        fusion_metrics(a, b, fused, data_range=1, names=[name])


@pytest.mark.parametrize("data_range", [0, -1, math.inf, math.nan])
def test_impossible_ranges_are_refused(data_range):
    with pytest.raises(ValueError, match="expected a positive number"):
        fusion_metrics(*images(), data_range=data_range, names=SMALL)


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (fusion.ssim, {"window": "box"}, "window is 'box'"),
        (fusion.ssim, {"border": "zero"}, "border is 'zero'"),
        (fusion.ssim, {"peak": 0}, "peak is 0"),
        (fusion.ms_ssim, {"border": "zero"}, "border is 'zero'"),
        (fusion.vif, {"reduction": "max"}, "reduction is 'max'"),
        (fusion.psnr, {"peak": "max"}, "peak is 'max'"),
        (fusion.psnr, {"peak": -1}, "peak is -1"),
        (fusion.psnr, {"average": "both"}, "average is 'both'"),
        (fusion.mutual_information, {"unit": "bans"}, "unit is 'bans'"),
        (fusion.feature_mutual_information, {"feature": "wavelet"}, "feature is 'wavelet'"),
        (fusion_metrics, {"names": ["EN", "XY"]}, "unknown metric XY; choose from EN"),
    ],
)
def test_unknown_options_are_refused(function, options, message):
    with pytest.raises(ValueError, match=message):
        function(*images(), **options)
