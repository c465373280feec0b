"""SSIM, MS-SSIM and VIF against both sources, by torchmetrics (extra `recipes`) in float64."""

from __future__ import annotations

import math
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

# torchmetrics takes seconds to import, so only who measures structure waits for it.


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
        ModuleNotFoundError: torchmetrics is missing.
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
        ModuleNotFoundError: torchmetrics is missing.
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
        ModuleNotFoundError: torchmetrics is missing.
    """
    from torchmetrics.functional.image import visual_information_fidelity

    gray = gray_images(data_range, a=a, b=b, fused=fused)
    require_side(fused, 41, "VIF")
    of_a, of_b = (visual_information_fidelity(gray[2], source, reduction="none") for source in gray[:2])
    # 0 / 0 is what is left of a constant source; the images themselves are finite.
    return per_image(over_sources(of_a.nan_to_num(nan=1.0), of_b.nan_to_num(nan=1.0), reduction), fused)


def _check(border: str, peak: float) -> None:
    if border not in ("valid", "mirror"):
        raise ValueError(f"border is {border!r}; expected 'valid' or 'mirror'")
    if not 0 < peak < float("inf"):
        raise ValueError(f"peak is {peak!r}; expected a positive number on the scale 0..255")


def _ssim(image: Tensor, reference: Tensor, window: str, border: str, peak: float) -> Tensor:
    """SSIM (B,) of images (B, 1, H, W)."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    side = _SIDES[window]
    # Moments over n pixels with the divisor n - 1 give SSIM's formula with a second constant smaller by (n - 1) / n.
    k2 = 0.03 * math.sqrt((side**2 - 1) / side**2) if window == "uniform" else 0.03
    _, full = structural_similarity_index_measure(
        *(image, reference),
        gaussian_kernel=window == "gaussian",
        kernel_size=side,
        data_range=peak,
        k2=k2,
        reduction="none",
        return_full_image=True,
    )
    inner = slice(side // 2, -(side // 2)) if border == "valid" else slice(None)
    return full[..., inner, inner].mean(dim=(1, 2, 3))


def _ms_ssim(image: Tensor, reference: Tensor, border: str, peak: float) -> Tensor:
    """MS-SSIM (B,) of images (B, 1, H, W)."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    factors = []
    for _ in _SCALE_WEIGHTS[:-1]:
        # The contrast term comes from inner windows under either border.
        _, contrast = structural_similarity_index_measure(
            *(image, reference), data_range=peak, reduction="none", return_contrast_sensitivity=True
        )
        factors.append(contrast)
        image, reference = F.avg_pool2d(image, 2), F.avg_pool2d(reference, 2)
    factors.append(_ssim(image, reference, "gaussian", border, peak))
    weights = image.new_tensor(_SCALE_WEIGHTS).unsqueeze(1)
    return (torch.stack(factors).clamp(min=0) ** weights).prod(0)
