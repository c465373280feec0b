"""What Mamba-2's mixers share: projections, convolution and parameters of heads with one scalar decay each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmvision.layers.depthwise import DepthwiseConv
from ssmvision.layers.mamba import inverse_softplus_dt

__all__ = ["HeadInputs", "HeadMixer", "head_width"]


def head_width(channels: int, asked: int | None, widest: int = 64) -> int:
    """Channels of a head: as asked, or the widest that divides `channels`, up to `widest`.

    Raises:
        ValueError: `asked` does not divide `channels`.
    """
    if asked is None:
        return next(width for width in range(min(widest, channels), 0, -1) if channels % width == 0)
    if asked < 1 or channels % asked:
        raise ValueError(f"head_dim={asked} does not divide {channels} channels")
    return asked


class HeadInputs(NamedTuple):
    """Heads x (B, *grid, H, P), delta (B, K, *grid, H), A and D (K, H), B and C (B, K, *grid, G, N)."""

    x: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor


class HeadMixer(nn.Module, ABC):
    """Projections, convolution and SiLU in front of K state-space layers of heads, a gate and a projection after them.

    Subclasses say how the heads mix positions (`mix`) and how the result meets its gate (`gate`).

    Args:
        dim, spatial_dims: channels and axes of the map.
        layers: K, how many times B, C, step sizes, A and D there are.
        d_state: states of a channel (N).
        expand: inner width / `dim`.
        head_dim: channels of a head (P); None for the widest divisor of the inner width up to 64.
        n_groups: groups of heads with B and C of their own (G).
        d_conv: odd side of the depthwise convolution over x, B and C.
        factory: device and dtype of the parameters.
    """

    def __init__(
        self,
        dim: int,
        spatial_dims: int,
        layers: int,
        d_state: int,
        expand: float,
        head_dim: int | None,
        n_groups: int,
        d_conv: int,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.dim, self.d_inner, self.d_state, self.layers = dim, int(expand * dim), d_state, layers
        self.head_dim, self.n_groups = head_width(self.d_inner, head_dim), n_groups
        self.heads = self.d_inner // self.head_dim
        if n_groups < 1 or self.heads % n_groups:
            raise ValueError(f"n_groups={n_groups} does not divide {self.heads} heads")
        convolved = self.d_inner + 2 * layers * n_groups * d_state
        self._split = (self.d_inner, convolved, layers * self.heads)
        self.in_proj = nn.Linear(dim, sum(self._split), bias=False, **factory)
        self.conv = DepthwiseConv(convolved, spatial_dims, d_conv, "silu", **factory)
        biases = inverse_softplus_dt(layers * self.heads, **factory)
        self.dt_bias = nn.Parameter(biases.view(layers, self.heads))
        self.A_log = nn.Parameter(torch.empty(layers, self.heads, **factory).uniform_(1, 16).log_())
        self.D = nn.Parameter(torch.ones(layers, self.heads, **factory))
        self.out_proj = nn.Linear(self.d_inner, dim, bias=False, **factory)

    def no_weight_decay(self) -> set[str]:
        """Parameters that Mamba-2's authors exclude from weight decay: A_log, D and the step-size biases."""
        return {"A_log", "D", "dt_bias"}

    @abstractmethod
    def mix(self, inputs: HeadInputs) -> Tensor:
        """(B, *grid, H, P), the sum over the layers."""

    @abstractmethod
    def gate(self, y: Tensor, z: Tensor) -> Tensor:
        """Norm of the mixed y and its gate z, both (B, *grid, E)."""

    def _per_layer(self, t: Tensor, *shape: int) -> Tensor:
        """(B, *grid, K shape) -> (B, K, *grid, *shape)."""
        split: Tensor = t.unflatten(-1, (self.layers, *shape))
        return split.movedim(-1 - len(shape), 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, *grid, dim) -> (B, *grid, dim)."""
        z, mixed, dt = self.in_proj(x).split(self._split, -1)
        states = self.layers * self.n_groups * self.d_state
        u, B, C = self.conv(mixed).split((self.d_inner, states, states), -1)
        wide = torch.promote_types(dt.dtype, torch.float32)
        delta = F.softplus(self._per_layer(dt.to(wide) + self.dt_bias.flatten().to(wide), self.heads))
        B, C = (self._per_layer(t, self.n_groups, self.d_state) for t in (B, C))
        heads = u.unflatten(-1, (self.heads, self.head_dim))
        y = self.mix(HeadInputs(heads, delta, -self.A_log.to(wide).exp(), B, C, self.D))
        out: Tensor = self.out_proj(self.gate(y.flatten(-2), z))
        return out
