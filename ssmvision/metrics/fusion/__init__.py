"""Measures of image fusion on batches of gray images, on the CPU or a GPU, with the convention of each named.

Numbers from two tool boxes compare only where their conventions agree: sum or mean over the sources, bits or nats,
windows, peaks. Every function says which published code it agrees with, and `METRICS` holds the same in one line each.
All of them take gray images as (H, W) or (B, 1, H, W) of any integer or floating dtype, compute in float64 on the
8-bit scale 0..255, and return one float64 value per image, 0-dimensional or (B,). The input is detached.
"""

from __future__ import annotations

from ssmvision.metrics.fusion.correlation import correlation_coefficient, sum_of_correlations_of_differences
from ssmvision.metrics.fusion.edges import qabf
from ssmvision.metrics.fusion.errors import mean_squared_error, psnr
from ssmvision.metrics.fusion.feature_information import feature_mutual_information
from ssmvision.metrics.fusion.information import entropy, mutual_information, normalized_mutual_information
from ssmvision.metrics.fusion.sharpness import average_gradient, spatial_frequency, standard_deviation
from ssmvision.metrics.fusion.structure import ms_ssim, ssim, vif
from ssmvision.metrics.fusion.table import METRICS, Metric, applicable, fusion_metrics

__all__ = [
    "METRICS",
    "Metric",
    "applicable",
    "average_gradient",
    "correlation_coefficient",
    "entropy",
    "feature_mutual_information",
    "fusion_metrics",
    "mean_squared_error",
    "ms_ssim",
    "mutual_information",
    "normalized_mutual_information",
    "psnr",
    "qabf",
    "spatial_frequency",
    "ssim",
    "standard_deviation",
    "sum_of_correlations_of_differences",
    "vif",
]
