"""The MambaLayer of U-Mamba: a sequence mixer on a feature map.

Source: Ma et al., "U-Mamba" (arXiv 2401.04722), figure 1b, and its code; that code has no residual around the layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ssmvision.kernels.branch import norm_map
from ssmvision.kernels.mamba_mixer.interface import Recompute
from ssmvision.layers.mamba import MambaMixer
from ssmvision.layers.mixers import Mixer, resolve_mixer
from ssmvision.layers.norm import LayerNorm

__all__ = ["MambaLayer", "TokenNorm", "autocast_off"]

# A mixer keeps about ten times its map for the backward. From this many elements on, that is worth a second forward.
LARGE = 1 << 24


def autocast_off(device: torch.device) -> AbstractContextManager[object]:
    """Switches autocast off for a device; does nothing on devices that have none (meta)."""
    if device.type == "meta":
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


class TokenNorm(LayerNorm):
    """Layer norm over the channels of a map, whose positions come out as tokens.

    CUDA tensors take one pass in either memory format, which has no second derivative.

    Shape:
        (B, C, *spatial) -> (B, L, C), positions in C order, in the dtype of `weight`; for CUDA tensors under autocast
        in autocast's dtype, which the matrix product that follows would cast it to.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Norm and transposition; see the class."""
        if x.is_cuda and x.is_contiguous():
            wide = x.to(self.weight.dtype) if self.weight.dtype == torch.float64 else x
            return norm_map(wide.flatten(2), self.weight, self.bias, self.eps)
        return super().forward(x.to(self.weight.dtype).flatten(2).transpose(1, 2))


class MambaLayer(nn.Module):
    """LayerNorm and a mixer over all positions of a feature map; the result replaces the map (no residual).

    Autocast is off inside, unless asked for: the layer computes in its parameters' dtype (float32, or float64 after
    `.double()`) and casts the result back to the input's dtype.

    Args:
        dim: token width: channels, or voxels of the map in channel-token mode.
        channel_token: each channel is a token and the voxels are its features. All parameters then have the shape of
            one map size, and only maps of `dim` voxels can be mixed.
        mixer: name, `Mixer`, or callable `(dim) -> nn.Module`; grid mixers are never in channel-token mode.
        spatial_dims: axes of the map, told to grid mixers.
        recompute: in training, keep the map alone and compute everything again in the backward, which a Mamba mixer
            on CUDA does sample by sample. None: where that saves much, for CUDA maps of 16 million elements on.
        autocast: follow autocast. Projections and activations of a Mamba mixer then have its dtype; norm, convolution,
            step sizes and the scan's state stay in float32 on CUDA. For bfloat16; float16 may overflow.

    Shape:
        (B, C, *spatial) -> (B, C, *spatial), contiguous if the input is. Voxels are tokens in C order, the last axis
        fastest.

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
        recompute: bool | None = None,
        autocast: bool = False,
    ) -> None:
        super().__init__()
        resolved = resolve_mixer(mixer)
        if resolved is None:
            raise ValueError('mixer="none": a MambaLayer without a mixer is nn.Identity(); use that instead')
        self.layout = resolved.layout
        self.is_grid = resolved.layout != "tokens"
        if self.is_grid and channel_token:
            raise ValueError("channel_token=True needs a mixer on tokens; grid mixers see the axes themselves")
        self.dim, self.channel_token = dim, channel_token
        self.recompute, self.autocast = recompute, autocast
        self.norm = nn.LayerNorm(dim) if channel_token or self.is_grid else TokenNorm(dim)
        # Checkpoints of U-Mamba call the mixer so.
        self.mamba = resolved.build(dim, spatial_dims) if self.is_grid else resolved.build(dim)

    def extra_repr(self) -> str:
        """The layer's settings, for `print`."""
        return f"dim={self.dim}, channel_token={self.channel_token}"

    def forward(self, x: Tensor) -> Tensor:
        """Mix the positions of a map (B, C, *spatial); see the class."""
        self._check(x)
        with nullcontext() if self.autocast else autocast_off(x.device):
            out = self._on_map(x) if self._is_large(x) else None
            if out is not None:
                return out
            if not self.recomputes(x):
                return self._mixed(x)
            mixed: Tensor = checkpoint(self._mixed, x, "none", use_reentrant=False)
            return mixed

    def recomputes(self, x: Tensor) -> bool:
        """Whether a call with this map keeps nothing but the map for its backward."""
        return torch.is_grad_enabled() and self._is_large(x)

    def _is_large(self, x: Tensor) -> bool:
        return x.is_cuda and x.numel() >= LARGE if self.recompute is None else self.recompute

    def _on_map(self, x: Tensor) -> Tensor | None:
        """By the operator that leaves the map as it lies, where that can do it."""
        if type(self.mamba) is not MambaMixer or self.channel_token or not x.is_contiguous() or not x.numel():
            return None
        out = self.mamba.on_map(x.flatten(2), self.norm)
        return None if out is None else out.view(x.shape)

    def _mixed(self, x: Tensor, recompute: Recompute | None = None) -> Tensor:
        dtype = self.norm.weight.dtype
        if self.layout == "map":
            mixed = self._mix(self.norm(x.to(dtype).movedim(1, -1)), recompute).movedim(-1, 1)
            mixed = mixed.contiguous() if x.is_contiguous() else mixed
        elif self.is_grid:
            mixed = self._mix(self.norm(x.to(dtype).movedim(1, -1)).movedim(-1, 1), recompute)
        elif self.channel_token:
            mixed = self._mix(self.norm(x.to(dtype).flatten(2)), recompute)
        else:
            mixed = self._mix(self.norm(x), recompute).transpose(1, 2)
            if x.is_contiguous():  # a transposed map would make the convolutions that follow take another layout
                mixed = mixed.contiguous()
        return mixed.reshape(x.shape).to(x.dtype)

    def _mix(self, t: Tensor, recompute: Recompute | None) -> Tensor:
        mixed: Tensor = self.mamba(t, recompute) if type(self.mamba) is MambaMixer else self.mamba(t)
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
