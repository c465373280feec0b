"""The networks of the resolution recipe: one residual network without any pooling, and what mixes its positions.

Source: Nguyen et al., "S4ND" (arXiv 2210.06583), section 4.3 and appendix D: an isotropic network whose mixing layers
are S4ND or, for comparison, local convolutions.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ssmvision.layers.s4nd import S4ND
from ssmvision.layers.s4nd_blocks import ChannelNorm
from ssmvision.layers.s4nd_output import ChannelLinear, PointwiseOutput
from ssmvision.recipes.resolution.config import DigitsConfig

__all__ = ["METHODS", "ResidualNet", "build_network"]

BANDLIMITED, FREE, TWIN = "S4ND, bandlimit", "S4ND, no bandlimit", "Conv2D"
METHODS = (BANDLIMITED, FREE, TWIN)
CLASSES = 10


class ResidualNet(nn.Module):
    """A linear stem, blocks x + mixer(norm(x)), the mean over all positions, and a linear head: for any grid.

    Args:
        mixers: of the blocks, (B, width, *grid) -> the same.
        width: channels.
        in_channels: of the images.

    Shape:
        (B, in_channels, *grid) -> (B, 10).
    """

    def __init__(self, mixers: list[nn.Module], width: int, in_channels: int = 1) -> None:
        super().__init__()
        self.stem = ChannelLinear(in_channels, width)
        self.norms = nn.ModuleList(ChannelNorm(width) for _ in mixers)
        self.mixers = nn.ModuleList(mixers)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = self.stem(x)
        for norm, mixer in zip(self.norms, self.mixers, strict=True):
            x = x + mixer(norm(x))
        out: Tensor = self.head(self.norm(x.flatten(2).mean(-1)))
        return out


def _s4nd(config: DigitsConfig, bandlimit: float | None) -> nn.Module:
    rates = dict.fromkeys(("A", "B", "dt"), config.system_lr)
    options: dict[str, Any] = {"kernel": "s4d", "init": "diag-lin", "n_ssm": 1, "dt_min": 0.1, "dt_max": 1.0}
    options |= {"lr": rates, "bandlimit": bandlimit, "symmetric_center": True}
    return S4ND(config.width, config.d_state, dim=2, linear=False, final_act="glu", **options)


def _conv(config: DigitsConfig) -> nn.Module:
    width, edge = config.width, config.conv_kernel
    local = nn.Conv2d(width, width, edge, padding=edge // 2, groups=width)
    return nn.Sequential(local, PointwiseOutput(width, width, final_act="glu"))


def build_network(method: str, config: DigitsConfig) -> ResidualNet:
    """One of `METHODS`, with weights from torch's global generator.

    Raises:
        ValueError: no such method.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r}: choose from {', '.join(METHODS)}")
    limit = config.bandlimit if method == BANDLIMITED else None
    mixers = [_conv(config) if method == TWIN else _s4nd(config, limit) for _ in range(config.depth)]
    return ResidualNet(mixers, config.width)
