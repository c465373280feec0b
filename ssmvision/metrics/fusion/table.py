"""All measures of a batch at once, each with its convention."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from ssmvision.metrics.fusion.correlation import correlation_coefficient, sum_of_correlations_of_differences
from ssmvision.metrics.fusion.edges import qabf
from ssmvision.metrics.fusion.errors import psnr
from ssmvision.metrics.fusion.feature_information import feature_mutual_information
from ssmvision.metrics.fusion.images import WHITE, gray_images, per_image
from ssmvision.metrics.fusion.information import entropy, mutual_information
from ssmvision.metrics.fusion.sharpness import average_gradient, spatial_frequency, standard_deviation
from ssmvision.metrics.fusion.structure import ms_ssim, ssim, vif

__all__ = ["METRICS", "Metric", "applicable", "fusion_metrics"]

# (a, b, fused) on the scale 0..255 -> (B,)
Measure = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Metric:
    """A column of a table of fusion results; larger is better for all of them.

    Attributes:
        name: the column's head.
        convention: which of the definitions in use it is, for the table's caption.
        least_side: smallest image height and width in pixels.
        measure: from a, b and fused, (B, 1, H, W) on the scale 0..255, to (B,).
    """

    name: str
    convention: str
    least_side: int
    measure: Measure


def _of_fused(measure: Callable[..., Tensor]) -> Measure:
    return lambda a, b, fused: measure(fused, data_range=WHITE)


def _of_all(measure: Callable[..., Tensor]) -> Measure:
    return partial(measure, data_range=WHITE)


_FMI = "fast-FMI (Haghighat & Razian), 3x3 windows, mean over the sources, feature"
_COLUMNS = (
    Metric("EN", "bits, 256 levels", 1, _of_fused(entropy)),
    Metric("SD", "population, scale 0..255", 1, _of_fused(standard_deviation)),
    Metric(
        "SF", "mean squared first differences, each over its own number, scale 0..255", 2, _of_fused(spatial_frequency)
    ),
    Metric("AG", "mean of sqrt((gx^2 + gy^2) / 2), central differences, scale 0..255", 2, _of_fused(average_gradient)),
    Metric("MI (bits)", "sum over the sources, 256 levels, bits", 1, _of_all(mutual_information)),
    Metric("MI (nats)", "sum over the sources, 256 levels, nats", 1, _of_all(partial(mutual_information, unit="nats"))),
    Metric("CC", "Pearson, mean over the sources; with a constant 0", 1, _of_all(correlation_coefficient)),
    Metric("SCD", "r(F-B, A) + r(F-A, B); with a constant 0", 1, _of_all(sum_of_correlations_of_differences)),
    Metric("PSNR", "dB, peak 255, mean squared error averaged over the sources", 1, _of_all(psnr)),
    Metric("SSIM", "sum over the sources, Gaussian window 11, sigma 1.5, inner windows, L 255", 11, _of_all(ssim)),
    Metric("MS-SSIM", "sum over the sources, Wang's five scales, inner windows, L 255", 176, _of_all(ms_ssim)),
    Metric("VIF", "pixel domain, sum over the sources, four scales, noise variance 2", 41, _of_all(vif)),
    Metric("Qabf", "Xydeas & Petrovic, Sobel, constants 0.9994/15/0.5 and 0.9879/22/0.8", 1, _of_all(qabf)),
    Metric("FMI (none)", f"{_FMI}: gray values", 3, _of_all(feature_mutual_information)),
    Metric("FMI (gradient)", f"{_FMI}: d/dx", 3, _of_all(partial(feature_mutual_information, feature="gradient"))),
    Metric("FMI (dct)", f"{_FMI}: DCT-II", 3, _of_all(partial(feature_mutual_information, feature="dct"))),
)
METRICS: dict[str, Metric] = {column.name: column for column in _COLUMNS}


def applicable(height: int, width: int) -> list[str]:
    """Names of the metrics whose windows fit into an image, in the table's order."""
    return [name for name, metric in METRICS.items() if min(height, width) >= metric.least_side]


def fusion_metrics(
    a: Tensor, b: Tensor, fused: Tensor, *, data_range: float | None = None, names: Iterable[str] | None = None
) -> dict[str, Tensor]:
    """A row of a results table for every image of a batch: metric name -> (B,) float64.

    Args:
        a, b, fused: (H, W) or (B, 1, H, W), all of one shape; of a single (H, W) the values are 0-dimensional.
        data_range: value that stands for white; None takes the range of uint8 or uint16.
        names: keys of `METRICS` to compute, in this order; None computes all. For small images take
            `applicable(height, width)`.

    Raises:
        TypeError, ValueError: see `ssmvision.metrics.fusion.images.gray_images`; or an unknown name, or a metric whose
            windows do not fit.
    """
    chosen = list(METRICS) if names is None else list(names)
    unknown = [name for name in chosen if name not in METRICS]
    if unknown:
        raise ValueError(f"unknown metric {', '.join(unknown)}; choose from {', '.join(METRICS)}")
    gray_a, gray_b, gray_fused = gray_images(data_range, a=a, b=b, fused=fused)
    height, width = gray_fused.shape[-2:]
    small = [f"{n} ({METRICS[n].least_side})" for n in chosen if n not in applicable(height, width)]
    if small:
        raise ValueError(
            f"images of {height}x{width} pixels are too small for {', '.join(small)} (pixels a side); "
            f"leave these out: names=applicable({height}, {width})"
        )
    return {name: per_image(METRICS[name].measure(gray_a, gray_b, gray_fused), fused) for name in chosen}
