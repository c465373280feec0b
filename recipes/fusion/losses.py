"""Losses of image fusion without a reference: what the fused image should keep of its two sources.

All functions take images (B, 1, H, W), floating point on one device, and return a 0-dimensional tensor. The published
forms are those of the training code of FusionMamba (Xie et al., arXiv 2404.09498); they are kept as they are, including
where they part from the papers they go back to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmvision.recipes.fusion.config import GradientForm, IntensityTarget, LossConfig, StructureForm

__all__ = [
    "FusionLoss",
    "FusionTerms",
    "gradient_loss",
    "intensity_loss",
    "published_ms_ssim",
    "sobel",
    "structure_loss",
    "structure_similarity",
]

WINDOW, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03
# Wang, Simoncelli & Bovik 2003, section 3.2: exponents of the five scales.
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
SOBEL = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))
# The published code takes images with brighter pixels than this for 8-bit ones.
EIGHT_BIT_ABOVE = 128


class FusionTerms(NamedTuple):
    """Loss of a batch: the weighted sum, and its terms before they are weighted; all 0-dimensional."""

    total: Tensor
    intensity: Tensor
    gradient: Tensor
    structure: Tensor


@lru_cache(maxsize=64)
def _constant(values: tuple[Any, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """A tensor that is copied to its device once: copies would end every step's head start, and CUDA graphs."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)


def intensity_loss(fused: Tensor, a: Tensor, b: Tensor, target: IntensityTarget = "max") -> Tensor:
    """mean((fused - t)^2).

    Args:
        fused, a, b: (B, 1, H, W).
        target: t, pixel by pixel: "max" is max(a, b), the published form, for sources that show things bright (CT, PET,
            infrared); "mean" is (a + b) / 2, where dark means as much as bright (T1-T2, multi-focus).
    """
    return F.mse_loss(fused, torch.maximum(a, b) if target == "max" else (a + b) / 2)


def sobel(image: Tensor, zero_outside: bool = True) -> tuple[Tensor, Tensor]:
    """Derivatives along x and y by Sobel's 3x3 kernels, not divided by their sum 8.

    Args:
        image: (B, 1, H, W).
        zero_outside: continue the image by zeros, which makes an edge of its border; else by its outermost pixels.

    Returns:
        two (B, 1, H, W).
    """
    kernel = _constant(SOBEL, image.device, image.dtype)
    padded = F.pad(image, (1, 1, 1, 1)) if zero_outside else F.pad(image, (1, 1, 1, 1), mode="replicate")
    both = F.conv2d(padded, torch.stack((kernel, kernel.T))[:, None])
    return both[:, :1], both[:, 1:]


def gradient_loss(fused: Tensor, a: Tensor, b: Tensor, form: GradientForm = "magnitude") -> Tensor:
    """How far the fused image's gradients are from the stronger of the sources'.

    Args:
        fused, a, b: (B, 1, H, W).
        form: "magnitude" is the published one, mean |max(S(a), S(b)) - S(fused)| with S = |Sobel_x| + |Sobel_y| and
            zeros outside the image: it knows how strong an edge is, not which side of it is bright. "vector" is
            mean (|Sobel_x(fused) - g_x| + |Sobel_y(fused) - g_y|) / 2 with g the gradient of the source in which it is
            longer, as in fusion in the gradient domain (Petrovic & Xydeas, IEEE TIP 13(2), 2004, section III).
    """
    if form == "magnitude":
        strength, of_a, of_b = (across.abs() + down.abs() for across, down in map(sobel, (fused, a, b)))
        return F.l1_loss(strength, torch.maximum(of_a, of_b))
    (fused_x, fused_y), (a_x, a_y), (b_x, b_y) = (sobel(image, zero_outside=False) for image in (fused, a, b))
    longer = a_x.square() + a_y.square() >= b_x.square() + b_y.square()
    across, down = torch.where(longer, a_x, b_x), torch.where(longer, a_y, b_y)
    return (F.l1_loss(fused_x, across) + F.l1_loss(fused_y, down)) / 2


@lru_cache(maxsize=16)
def _gaussian(size: int) -> tuple[float, ...]:
    """Weights as the published code rounds them: two roundings to float32, which do not sum to 1 exactly."""
    window = torch.tensor([math.exp(-((i - size // 2) ** 2) / (2 * SIGMA**2)) for i in range(size)])
    return tuple((window / window.sum()).tolist())


def _blurred(image: Tensor) -> Tensor:
    """Gaussian mean over the windows that lie inside; a smaller image gets smaller windows."""
    window = _constant(_gaussian(min(WINDOW, *image.shape[-2:])), image.device, image.dtype)
    return F.conv2d(F.conv2d(image, window[None, None, :, None]), window[None, None, None, :])


@contextmanager
def _without_onednn() -> Iterator[None]:
    was = bool(torch.backends.mkldnn.enabled)
    # By name: its type, a descriptor, is what type checkers would see assigned.
    setattr(torch.backends.mkldnn, "enabled", False)  # noqa: B010
    try:
        yield
    finally:
        setattr(torch.backends.mkldnn, "enabled", was)  # noqa: B010


def _blurred_at_once(image: Tensor) -> Tensor:
    """The same by one two-dimensional window, which rounds as the published code does.

    Variances of smooth images are small differences of large numbers: the order of summation, and so the choice of a
    convolution, shows in the fifth digit of the loss.
    """
    window = _constant(_gaussian(min(WINDOW, *image.shape[-2:])), image.device, torch.float32)
    with _without_onednn():
        return F.conv2d(image, torch.outer(window, window)[None, None].to(image.dtype))


def structure_similarity(
    x: Tensor, y: Tensor, data_range: float = 1.0, blur: Callable[[Tensor], Tensor] = _blurred
) -> tuple[Tensor, Tensor]:
    """SSIM and its contrast-structure factor, means over all windows (Wang, Bovik, Sheikh & Simoncelli 2004, eq. 13).

    Gaussian windows of 11 pixels and sigma 1.5 inside the image, K1 = 0.01, K2 = 0.03.

    Args:
        x, y: (B, 1, H, W).
        data_range: L, the distance of white from black.
        blur: mean over windows.
    """
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    mean_x, mean_y, xx, yy, xy = blur(torch.cat((x, y, x * x, y * y, x * y))).chunk(5)
    square_x, square_y, product = mean_x.square(), mean_y.square(), mean_x * mean_y
    common, own = 2 * (xy - product) + c2, (xx - square_x) + (yy - square_y) + c2
    similarity = (2 * product + c1) * common / ((square_x + square_y + c1) * own)
    return similarity.mean(), (common / own).mean()


def published_ms_ssim(x: Tensor, y: Tensor, normalize: bool = True, data_range: float | None = None) -> Tensor:
    """The multi-scale similarity that FusionMamba's weights were trained with; not Wang's MS-SSIM.

    prod over the first four of five scales j of c_j^w_j * s_5^w_5: contrast factor c_j, SSIM s_5 of the coarsest scale
    (it enters four times), exponents w of Wang, Simoncelli & Bovik 2003. Means over the batch come before the product.

    Args:
        x, y: (B, 1, H, W), at least 16 pixels a side; x tells the data range.
        normalize: take (v + 1) / 2 of every factor, as training does; without it a negative factor gives NaN.
        data_range: L; None goes by x as the published code: 255 where a pixel is above 128, else 1.

    Raises:
        ValueError: the coarsest of the five scales would have no pixel.
    """
    least = 2 ** (len(SCALES) - 1)
    if min(x.shape[-2:]) < least:
        raise ValueError(f"five scales need images of at least {least} pixels a side, got {tuple(x.shape[-2:])}")
    if data_range is None:
        data_range = 255.0 if float(x.detach().max()) > EIGHT_BIT_ABOVE else 1.0
    factors = []
    for scale in range(len(SCALES)):
        if scale:
            x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
        similarity, contrast = structure_similarity(x, y, data_range, _blurred_at_once)
        factors.append(contrast if scale < len(SCALES) - 1 else similarity)
    values = torch.stack(factors)
    if normalize:
        values = (values + 1) / 2
    powers: Tensor = values ** _constant(SCALES, values.device, values.dtype)
    return (powers[:-1] * powers[-1]).prod()


def structure_loss(
    fused: Tensor, a: Tensor, b: Tensor, form: StructureForm = "ssim", data_range: float | None = 1.0
) -> Tensor:
    """(1 - m(fused, a)) / 2 + (1 - m(fused, b)) / 2.

    Args:
        fused, a, b: (B, 1, H, W).
        form: m; "ssim" is `structure_similarity`, "published" is `published_ms_ssim`.
        data_range: distance of white from black; None: see `published_ms_ssim`, and 1 for "ssim".
    """
    if form == "published":
        similar = [published_ms_ssim(fused, source, data_range=data_range) for source in (a, b)]
    else:
        similar = [structure_similarity(fused, source, data_range or 1.0)[0] for source in (a, b)]
    return 1 - (similar[0] + similar[1]) / 2


class FusionLoss(nn.Module):
    """structure * L_structure + intensity * L_intensity + gradient * L_gradient, weights and forms from a config.

    `LossConfig.published()` is the training loss of FusionMamba's code.

    Shape:
        fused, a, b: (B, 1, H, W) in [0, 1]; computed in float32 or the images' own higher precision, also under
        autocast.

    Example:
        >>> white = torch.ones(1, 1, 32, 32)
        >>> float(FusionLoss(LossConfig())(white, white, white).total)
        0.0
    """

    def __init__(self, config: LossConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, fused: Tensor, a: Tensor, b: Tensor) -> FusionTerms:
        """Loss and its terms."""
        c = self.config
        with torch.autocast(fused.device.type, enabled=False):
            fused, a, b = (x.float() if x.dtype.itemsize < 4 else x for x in (fused, a, b))
            if c.clamp:
                # Not by clamp, whose gradient at exactly 0 and 1 is 1.
                fused = torch.where(fused < 0, 0.0, torch.where(fused > 1, 1.0, fused))
            intensity = intensity_loss(fused, a, b, c.intensity_target)
            gradient = gradient_loss(fused, a, b, c.gradient_form)
            structure = structure_loss(fused, a, b, c.structure_form, c.data_range)
        total = c.structure * structure + c.intensity * intensity + c.gradient * gradient
        return FusionTerms(total, intensity, gradient, structure)
