"""Builds the recipe's network from its settings."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmvision.errors import UserError
from ssmvision.models.fusion_mamba import FusionMamba
from ssmvision.recipes.fusion.config import ModelConfig, Output

__all__ = ["FusionNetwork", "build_network"]

# The published network returns what it has computed plus this many times the sum of its inputs.
RESIDUAL = 2


class FusionNetwork(nn.Module):
    """FusionMamba, whose result is the fused image or how much of each image it takes.

    - output "image": network(s a, s b), which holds 2 s (a + b): with s = 1 the published result, with s = 1/4 the mean
      of both images and what the network adds to it.
    - output "weights": w a + (1 - w) b with w = sigmoid(G * (network(s a, s b) - 2 s (a + b))), G a Gaussian: every
      pixel lies between those of the images.

    Args:
        network: (B, 1, H, W) twice to (B, 1, H, W).
        output: see above.
        scale: s.
        smooth_px: standard deviation of G in pixels; 0: none.

    Attributes:
        stride: as of the network.

    Shape:
        a, b: (B, 1, H, W) floating point in [0, 1], of any size; an "image" is about [0, 1], not clamped.
    """

    gaussian: Tensor

    def __init__(self, network: FusionMamba, output: Output, scale: float, smooth_px: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("gaussian", _gaussian(smooth_px), persistent=False)
        self.network, self.output, self.scale, self.stride = network, output, scale, network.stride

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Fuse two images; of the published network, which pads nothing itself, their continued edges are cut off."""
        height, width = a.shape[-2:]
        x, y = self.scale * a, self.scale * b
        if self.network.faithful:
            x, y = (F.pad(z, (0, -width % self.stride, 0, -height % self.stride), mode="replicate") for z in (x, y))
        result: Tensor = self.network(x, y)[..., :height, :width]
        if self.output == "image":
            return result
        weight = torch.sigmoid(self._smoothed(result - RESIDUAL * self.scale * (a + b)))
        return weight * a + (1 - weight) * b

    def _smoothed(self, x: Tensor) -> Tensor:
        radius = len(self.gaussian) // 2
        if not radius:
            return x
        window = self.gaussian.to(x.dtype)
        x = F.pad(x, (radius,) * 4, mode="replicate")
        return F.conv2d(F.conv2d(x, window[None, None, :, None]), window[None, None, None, :])

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay should leave alone."""
        return {f"network.{name}" for name in self.network.no_weight_decay()}


def _gaussian(sigma: float) -> Tensor:
    """Window to three standard deviations on either side."""
    radius = math.ceil(3 * sigma)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    return torch.softmax(-(offsets**2) / (2 * sigma**2 or 1.0), 0).float()


def build_network(config: ModelConfig) -> FusionNetwork:
    """The network with fresh weights.

    Raises:
        UserError: settings contradict each other.
    """
    try:
        network = FusionMamba(
            config.depths,
            config.depths_decoder,
            config.dims,
            d_state=config.d_state,
            drop_path_rate=config.drop_path_rate,
            faithful=config.faithful,
            fusion_block=config.fusion_block or "dffm",
        )
    except ValueError as error:
        raise UserError(f"model: {error}") from error
    return FusionNetwork(network, config.output, config.input_scale, config.smooth_px)
