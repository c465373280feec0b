"""Builds the recipe's network from its settings."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ssmvision.errors import UserError
from ssmvision.models.fusion_mamba import FusionMamba
from ssmvision.recipes.fusion.config import ModelConfig

__all__ = ["ScaledFusion", "build_network"]


class ScaledFusion(nn.Module):
    """FusionMamba of images multiplied by a constant.

    The network adds twice each input to what it has computed; a constant of a quarter makes that the mean of the two
    images, from which a small network has less far to go than from their fourfold.

    Args:
        network: (B, 1, H, W) twice to (B, 1, H, W).
        scale: the constant.

    Attributes:
        stride: as of the network.

    Shape:
        a, b: (B, 1, H, W) floating point in [0, 1]; the result is about [0, 1], not clamped.
    """

    def __init__(self, network: FusionMamba, scale: float) -> None:
        super().__init__()
        self.network, self.scale, self.stride = network, scale, network.stride

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Fuse two images; of the published network, which pads nothing itself, their continued edges are cut off."""
        height, width = a.shape[-2:]
        if self.network.faithful:
            a, b = (F.pad(x, (0, -width % self.stride, 0, -height % self.stride), mode="replicate") for x in (a, b))
        fused: Tensor = self.network(self.scale * a, self.scale * b)
        return fused[..., :height, :width]

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay should leave alone."""
        return {f"network.{name}" for name in self.network.no_weight_decay()}


def build_network(config: ModelConfig) -> ScaledFusion:
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
        )
    except ValueError as error:
        raise UserError(f"model: {error}") from error
    return ScaledFusion(network, config.input_scale)
