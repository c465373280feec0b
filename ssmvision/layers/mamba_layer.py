"""The MambaLayer of U-Mamba: a sequence mixer on a feature map.

Source: Ma et al., "U-Mamba" (arXiv 2401.04722), figure 1b, and its code; that code has no residual around the layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from ssmvision.layers.mixers import Mixer, resolve_mixer

__all__ = ["MambaLayer", "autocast_off"]


def autocast_off(device: torch.device) -> AbstractContextManager[object]:
    """Switches autocast off for a device; does nothing on devices that have none (meta)."""
    if device.type == "meta":
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


class MambaLayer(nn.Module):
    """LayerNorm and a mixer over all positions of a feature map; the result replaces the map (no residual).

    Autocast is off inside: the layer computes in its parameters' dtype (float32, or float64 after `.double()`) and
    casts the result back to the input's dtype.

    Args:
        dim: token width: channels, or voxels of the map in channel-token mode.
        channel_token: each channel is a token and the voxels are its features. All parameters then have the shape of
            one map size, and only maps of `dim` voxels can be mixed.
        mixer: name, `Mixer`, or callable `(dim) -> nn.Module`; grid mixers are never in channel-token mode.
        spatial_dims: axes of the map, told to grid mixers.

    Shape:
        (B, C, *spatial) -> (B, C, *spatial). Voxels are tokens in C order, the last axis fastest.

    Raises:
        ValueError: `mixer` is "none" or a grid mixer with channel tokens, or, from forward, the map does not fit
            `dim`, or the mixer changes the shape.
    """

    def __init__(
        self,
        dim: int,
        channel_token: bool = False,
        mixer: str | Mixer | Callable[[int], nn.Module] = "mamba",
        spatial_dims: int = 3,
    ) -> None:
        super().__init__()
        resolved = resolve_mixer(mixer)
        if resolved is None:
            raise ValueError('mixer="none": a MambaLayer without a mixer is nn.Identity(); use that instead')
        self.is_grid = resolved.layout == "grid"
        if self.is_grid and channel_token:
            raise ValueError("channel_token=True needs a mixer on tokens; grid mixers see the axes themselves")
        self.dim, self.channel_token = dim, channel_token
        self.norm = nn.LayerNorm(dim)
        # Checkpoints of U-Mamba call the mixer so.
        self.mamba = resolved.build(dim, spatial_dims) if self.is_grid else resolved.build(dim)

    def extra_repr(self) -> str:
        """The layer's settings, for `print`."""
        return f"dim={self.dim}, channel_token={self.channel_token}"

    def forward(self, x: Tensor) -> Tensor:
        """Mix the positions of a map (B, C, *spatial); see the class."""
        self._check(x)
        with autocast_off(x.device):
            wide = x.to(self.norm.weight.dtype)
            if self.is_grid:
                mixed = self._mix(self.norm(wide.movedim(1, -1)).movedim(-1, 1))
            elif self.channel_token:
                mixed = self._mix(self.norm(wide.flatten(2)))
            else:
                mixed = self._mix(self.norm(wide.flatten(2).transpose(1, 2))).transpose(1, 2)
            return mixed.reshape(x.shape).to(x.dtype)

    def _mix(self, t: Tensor) -> Tensor:
        mixed: Tensor = self.mamba(t)
        if mixed.shape != t.shape:  # the reshape above would scramble it silently
            raise ValueError(f"mixer {type(self.mamba).__name__} turned {tuple(t.shape)} into {tuple(mixed.shape)}")
        return mixed

    def _check(self, x: Tensor) -> None:
        grid = tuple(x.shape[2:])
        width = math.prod(grid) if self.channel_token else x.shape[1]
        if width != self.dim:
            what = f"{width} voxels {grid}" if self.channel_token else f"{width} channels"
            unit = "voxels (channel tokens)" if self.channel_token else "channels"
            raise ValueError(f"MambaLayer was built for {self.dim} {unit}, got a map of {what}")
