"""SSIM, MS-SSIM and VIF against both sources.

Their windows are products of two one-dimensional ones and are applied so. Libraries convolve in two dimensions, for
which PyTorch on a CPU takes over a gigabyte per 512x512 image in float64, and in float32 VIF is only good to 1e-4.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ssmvision.metrics.fusion.images import WHITE, OverSources, gray_images, over_sources, per_image, require_side

__all__ = ["Border", "ms_ssim", "ssim", "vif"]

Border = Literal["valid", "mirror"]
# Side of SSIM's window; the Gaussian one has sigma 1.5.
_SIDES = {"gaussian": 11, "uniform": 7}
# Wang, Simoncelli & Bovik 2003, section 3.2.
_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)

# Moments (B, 1, H, W) of two images: two means, two variances, covariance.
Moments = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]

# Sheikh & Bovik's noise variance on the scale 0..255, and the variance below which they take an image for flat.
_VIF_NOISE, _VIF_FLAT = 2.0, 1e-10


def ssim(
    a: Tensor,
    b: Tensor,
    fused: Tensor,
    *,
    data_range: float | None = None,
    window: Literal["gaussian", "uniform"] = "gaussian",
    border: Border = "valid",
    peak: float = WHITE,
    reduction: OverSources = "sum",
) -> Tensor:
    """SSIM of the fused image with each source (Wang et al. 2004), summed over the sources.

    The defaults are the original ones: a Gaussian window of 11x11, sigma 1.5, population moments, only windows inside
    the image (scikit-image with gaussian_weights=True, use_sample_covariance=False; piq without downsampling). Known
    variants: scikit-image's default is window="uniform" (7x7, sample covariance); CDDFuse's tables are that one with
    peak=2, which old scikit-image took for every floating image; torchmetrics is border="mirror"; tables by Tang's tool
    box hold the mean over the sources. Constant images are no special case.

    Args:
        a, b, fused: (H, W) or (B, 1, H, W), all of one shape, at least 11x11 (uniform: 7x7) pixels.
        data_range: value that stands for white; None takes the range of uint8 or uint16.
        window: "gaussian" or "uniform".
        border: "valid" leaves out windows that cross the border, "mirror" reflects the image there.
        peak: the dynamic range L in SSIM's two constants, on the scale 0..255.
        reduction: sum or mean over the two sources.

    Raises:
        TypeError, ValueError: see `ssmvision.metrics.fusion.images.gray_images`; or a small image, an unknown option.
    """
    if window not in _SIDES:
        raise ValueError(f"window is {window!r}; expected 'gaussian' or 'uniform'")
    _check(border, peak)
    gray = gray_images(data_range, a=a, b=b, fused=fused)
    require_side(fused, _SIDES[window], f"SSIM with a {window} window")
    of_a, of_b = (_ssim(gray[2], source, window, border, peak) for source in gray[:2])
    return per_image(over_sources(of_a, of_b, reduction), fused)


def ms_ssim(
    a: Tensor,
    b: Tensor,
    fused: Tensor,
    *,
    data_range: float | None = None,
    border: Border = "valid",
    peak: float = WHITE,
    reduction: OverSources = "sum",
) -> Tensor:
    """MS-SSIM of the fused image with each source (Wang, Simoncelli & Bovik 2003), summed over the sources.

    Contrast and structure of five scales and luminance of the coarsest, each scale the last one's means of 2x2 pixels
    (an odd last row or column is dropped); negative factors count as 0. border="valid" agrees with piq, "mirror" with
    torchmetrics (up to 1.5 % off), whose coarsest scale sees the reflected image. What Tang's MATLAB box calls MS_SSIM
    is another measure (MEF-SSIM by Ma et al.), and so is the training loss of FusionMamba.

    Args:
        a, b, fused: (H, W) or (B, 1, H, W), all of one shape, at least 176x176 pixels.
        data_range: value that stands for white; None takes the range of uint8 or uint16.
        border: see `ssim`.
        peak: the dynamic range L in SSIM's two constants, on the scale 0..255.
        reduction: sum or mean over the two sources.

    Raises:
        TypeError, ValueError: see `ssmvision.metrics.fusion.images.gray_images`; or a small image, an unknown option.
    """
    _check(border, peak)
    gray = gray_images(data_range, a=a, b=b, fused=fused)
    require_side(fused, _SIDES["gaussian"] * 2 ** (len(_SCALE_WEIGHTS) - 1), "MS-SSIM")
    of_a, of_b = (_ms_ssim(gray[2], source, border, peak) for source in gray[:2])
    return per_image(over_sources(of_a, of_b, reduction), fused)


def vif(
    a: Tensor, b: Tensor, fused: Tensor, *, data_range: float | None = None, reduction: OverSources = "sum"
) -> Tensor:
    """VIF in the pixel domain: vifp(A, F) + vifp(B, F), the source as reference (Sheikh & Bovik 2006).

    Four scales, noise variance 2 on the scale 0..255. Agrees with sewar's `vifp` and, as "VIFF", with CDDFuse's
    evaluator. A source without any variance counts as 1, as in both.

    Args:
        a, b, fused: (H, W) or (B, 1, H, W), all of one shape, at least 41x41 pixels.
        data_range: value that stands for white; None takes the range of uint8 or uint16.
        reduction: sum or mean over the two sources.

    Raises:
        TypeError, ValueError: see `ssmvision.metrics.fusion.images.gray_images`; or a small image, another reduction.
    """
    gray = gray_images(data_range, a=a, b=b, fused=fused)
    require_side(fused, 41, "VIF")
    of_a, of_b = (_vif(gray[2], source) for source in gray[:2])
    return per_image(over_sources(of_a, of_b, reduction), fused)


def _check(border: str, peak: float) -> None:
    if border not in ("valid", "mirror"):
        raise ValueError(f"border is {border!r}; expected 'valid' or 'mirror'")
    if not 0 < peak < float("inf"):
        raise ValueError(f"peak is {peak!r}; expected a positive number on the scale 0..255")


def _ssim(image: Tensor, reference: Tensor, window: str, border: str, peak: float) -> Tensor:
    """SSIM (B,) of images (B, 1, H, W)."""
    if border == "mirror":
        image, reference = (F.pad(x, [_SIDES[window] // 2] * 4, mode="reflect") for x in (image, reference))
    luminance, contrast = _ssim_terms(image, reference, window, peak)
    return (luminance * contrast).mean(dim=(1, 2, 3))


def _ssim_terms(image: Tensor, reference: Tensor, window: str, peak: float) -> tuple[Tensor, Tensor]:
    """Luminance, and contrast times structure, of every window inside the images."""
    side = _SIDES[window]
    gaussian = window == "gaussian"
    kernel = _gaussian(side, 1.5, image) if gaussian else image.new_full((side,), 1 / side)
    mean_x, mean_y, var_x, var_y, covariance = _moments(image, reference, kernel)
    sample = 1.0 if gaussian else side**2 / (side**2 - 1)
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    return luminance, (2 * sample * covariance + c2) / (sample * (var_x + var_y) + c2)


def _ms_ssim(image: Tensor, reference: Tensor, border: str, peak: float) -> Tensor:
    """MS-SSIM (B,) of images (B, 1, H, W)."""
    factors = []
    for _ in _SCALE_WEIGHTS[:-1]:
        # Of inner windows under either border, as torchmetrics has it.
        _, contrast = _ssim_terms(image, reference, "gaussian", peak)
        factors.append(contrast.mean(dim=(1, 2, 3)))
        image, reference = F.avg_pool2d(image, 2), F.avg_pool2d(reference, 2)
    factors.append(_ssim(image, reference, "gaussian", border, peak))
    weights = image.new_tensor(_SCALE_WEIGHTS).unsqueeze(1)
    return (torch.stack(factors).clamp(min=0) ** weights).prod(0)


def _vif(image: Tensor, reference: Tensor) -> Tensor:
    """Pixel-domain VIF (B,) of images (B, 1, H, W)."""
    kept = total = image.new_zeros(image.shape[0])
    for scale in range(4):
        side = 2 ** (4 - scale) + 1
        kernel = _gaussian(side, side / 5, image)
        if scale:
            image, reference = (_filtered(x, kernel)[..., ::2, ::2] for x in (image, reference))
        _, _, var_reference, var_image, covariance = _moments(reference, image, kernel)
        gain = covariance / (var_reference + _VIF_FLAT)
        alike = (var_reference >= _VIF_FLAT) & (var_image >= _VIF_FLAT) & (gain >= 0)
        gain = gain.where(alike, 0.0)
        unexplained = (var_image - gain * covariance).clamp(min=_VIF_FLAT)
        var_reference = var_reference.where(var_reference >= _VIF_FLAT, 0.0)
        signal = gain.square() * var_reference / (unexplained + _VIF_NOISE)
        kept = kept + signal.log1p().sum(dim=(1, 2, 3))
        total = total + (var_reference / _VIF_NOISE).log1p().sum(dim=(1, 2, 3))
    return (kept / total.where(total > 0, 1.0)).where(total > 0, 1.0)


def _gaussian(side: int, sigma: float, like: Tensor) -> Tensor:
    """One axis of a Gaussian window, of sum 1."""
    offsets = torch.arange(side, dtype=like.dtype, device=like.device) - (side - 1) / 2
    return torch.softmax(-offsets.square() / (2 * sigma**2), dim=0)


def _moments(x: Tensor, y: Tensor, kernel: Tensor) -> Moments:
    """Weighted moments of every window inside the images; variances are not negative."""
    stacked = torch.cat((x, y, x * x, y * y, x * y))
    mean_x, mean_y, xx, yy, xy = _filtered(stacked, kernel).chunk(5)
    var_x, var_y = ((v - m.square()).clamp(min=0) for v, m in ((xx, mean_x), (yy, mean_y)))
    return mean_x, mean_y, var_x, var_y, xy - mean_x * mean_y


def _filtered(image: Tensor, kernel: Tensor) -> Tensor:
    """Images (B, 1, H, W) under a symmetric window, one value for every position inside."""
    return F.conv2d(F.conv2d(image, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
