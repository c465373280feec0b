"""Squared error of the fused image against both sources."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ssmvision.metrics.fusion.images import WHITE, gray_images, per_image

__all__ = ["mean_squared_error", "psnr"]


def mean_squared_error(a: Tensor, b: Tensor, fused: Tensor, *, data_range: float | None = None) -> Tensor:
    """MSE: mean of the squared errors against the two sources, in squared gray levels of 0..255.

    Args:
        a, b, fused: (H, W) or (B, 1, H, W), all of one shape.
        data_range: value that stands for white; None takes the range of uint8 or uint16.

    Raises:
        TypeError, ValueError: see `ssmvision.metrics.fusion.images.gray_images`.
    """
    of_a, of_b = _squared_errors(*gray_images(data_range, a=a, b=b, fused=fused))
    return per_image((of_a + of_b) / 2, fused)


def psnr(
    a: Tensor,
    b: Tensor,
    fused: Tensor,
    *,
    data_range: float | None = None,
    peak: float | Literal["fused"] = WHITE,
    average: Literal["mse", "db"] = "mse",
) -> Tensor:
    """PSNR: 10 log10(peak^2 / MSE) in decibels; infinite where there is no error.

    Args:
        a, b, fused: (H, W) or (B, 1, H, W), all of one shape.
        data_range: value that stands for white; None takes the range of uint8 or uint16.
        peak: on the scale 0..255. CDDFuse's evaluator takes the maximum of the fused image ("fused").
        average: over the sources, "mse" averages the errors before the logarithm (as CDDFuse does), "db" the two PSNRs
            (infinite as soon as the fused image equals one source).

    Raises:
        TypeError, ValueError: see `ssmvision.metrics.fusion.images.gray_images`; or an unknown `peak` or `average`.
    """
    if average not in ("mse", "db"):
        raise ValueError(f"average is {average!r}; expected 'mse' or 'db'")
    if not (peak == "fused" if isinstance(peak, str) else 0 < peak < float("inf")):
        raise ValueError(f"peak is {peak!r}; expected a positive number or 'fused'")
    images = gray_images(data_range, a=a, b=b, fused=fused)
    of_a, of_b = _squared_errors(*images)
    top = images[-1].amax(dim=(1, 2, 3)) if peak == "fused" else of_a.new_full((), peak)
    errors = ((of_a + of_b) / 2,) if average == "mse" else (of_a, of_b)
    return per_image(sum((_decibels(top, e) for e in errors), start=of_a.new_zeros(())) / len(errors), fused)


def _squared_errors(a: Tensor, b: Tensor, fused: Tensor) -> tuple[Tensor, Tensor]:
    return (a - fused).square().mean(dim=(1, 2, 3)), (b - fused).square().mean(dim=(1, 2, 3))


def _decibels(peak: Tensor, error: Tensor) -> Tensor:
    # As a difference of logarithms a black fused image (peak 0) of black sources is still free of error.
    return (20 * peak.log10() - 10 * error.log10()).where(error > 0, float("inf"))
