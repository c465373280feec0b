"""The bidirectional WKV attention of Vision-RWKV, with its token shift."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmvision.layers.gated_recurrence import gated_recurrence

__all__ = ["BiWKV", "bi_wkv", "q_shift"]

# A decay that forgets everything, even in float64.
ALL = 64.0


def _earlier(k: Tensor, v: Tensor, step: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """Logarithm of sum_{i < t} exp(k_i - (t - 1 - i) step) and the mean of v_i with these weights, each (B, T, C).

    Neither numerators nor denominators are formed. With a_t the logarithm of the denominator of all i <= t, the means
    obey r_t = f_t r_{t-1} + (1 - f_t) v_t for 1 - f_t = exp(k_t - a_t).
    """
    # Counted from the middle, so that what is added to the keys stays as small as can be.
    places = torch.arange(k.shape[1], device=k.device, dtype=k.dtype) - (k.shape[1] - 1) / 2
    slope = step.unsqueeze(-1) * places
    # A row for each channel, which many threads walk together; along the first axis of a map a thread would walk alone.
    rows = (k.transpose(1, 2) + slope).contiguous()
    total = (torch.logcumsumexp(rows, -1) - slope).transpose(1, 2)
    decay = F.softplus(k[:, 1:] - total[:, :-1] + step)
    mean = gated_recurrence(v, F.pad(decay, (0, 0, 1, 0), value=ALL), routes=("forward",), backend=backend)
    return F.pad(total[:, :-1], (0, 0, 1, 0), value=-torch.inf), F.pad(mean[:, :-1], (0, 0, 1, 0))


def bi_wkv(k: Tensor, v: Tensor, w: Tensor, u: Tensor, backend: str = "auto") -> Tensor:
    """Means of all values, weighted by their keys and their distance along the sequence.

    y_t = [sum_{i != t} exp(k_i - (|t - i| - 1) w / T) v_i + exp(k_t + u) v_t] / [the same without v], where T is the
    length. Nothing overflows, whatever the keys and decays: the means before, at and after t are combined by a softmax
    of their denominators' logarithms.

    Source: Duan et al., "Vision-RWKV" (arXiv 2403.02308), eq. 5. Computed in float32 (float64 where k or v is).

    Args:
        k, v: (B, T, C), T at least 1.
        w, u: (C,) decay and bonus of every channel.
        backend: of the scan, see `selective_scan_nd`.

    Returns:
        (B, T, C) in v's dtype.
    """
    dtype = torch.promote_types(torch.promote_types(k.dtype, v.dtype), torch.float32)
    with torch.autocast(v.device.type, enabled=False):
        keys, values = k.to(dtype), v.to(dtype)
        both_ways = torch.cat([keys, keys.flip(1)]), torch.cat([values, values.flip(1)])
        logs, means = _earlier(*both_ways, w.to(dtype) / k.shape[1], backend)
        (before, after), (past, future) = logs.chunk(2), means.chunk(2)
        weights = torch.stack([before, keys + u.to(dtype), after.flip(1)]).softmax(0)
        y = weights[0] * past + weights[1] * values + weights[2] * future.flip(1)
    return y.to(v.dtype)


def q_shift(x: Tensor) -> Tensor:
    """Equal shares of the channels moved by one position along each axis and direction, the last axis first.

    Zeros come in from the edge; channels that the 2 d shares leave over stay where they are. Source: Duan et al.,
    arXiv 2403.02308, section 3.3.

    Args:
        x: (B, *grid, C).

    Returns:
        (B, *grid, C).
    """
    axes = range(x.dim() - 2, 0, -1)
    share = x.shape[-1] // (2 * len(axes))
    pieces = list(x.split(share, -1)) if share else [x]
    for i, (axis, forward) in enumerate((axis, forward) for axis in axes for forward in (True, False)):
        if not share:
            break
        piece, size = pieces[i], x.shape[axis]
        edge = torch.zeros_like(piece.narrow(axis, 0, min(1, size)))
        kept = piece.narrow(axis, 0 if forward else min(1, size), max(size - 1, 0))
        pieces[i] = torch.cat([edge, kept] if forward else [kept, edge], axis)
    return torch.cat(pieces, -1)


class BiWKV(nn.Module):
    """Vision-RWKV's spatial mix: y = W_o (sigma(r) Bi-WKV(k, v)) over the positions in C order.

    k, v and r are projections of x and its `q_shift`, mixed by a learned share for each channel. The official code
    divides the bonus u by the number of positions as well, the paper's equation does not: it is not divided here.

    Source: Duan et al., "Vision-RWKV" (arXiv 2403.02308), sections 3.1 to 3.3.

    Args:
        dim, spatial_dims: channels and axes of the map.
        depth: of this layer in its network, from 0 to 1, which the published initialisation depends on.
        key_norm: norm the result before it is gated, as the larger published networks do.
        backend: of the scan, see `selective_scan_nd`.
        device, dtype: of the parameters.

    Shape:
        (B, *grid, dim) -> (B, *grid, dim).

    Raises:
        ValueError: a depth outside [0, 1].
    """

    def __init__(
        self,
        dim: int,
        spatial_dims: int,
        *,
        depth: float = 0.0,
        key_norm: bool = False,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= depth <= 1:
            raise ValueError(f"depth={depth}: from 0 for the first layer to 1 for the last")
        self.backend = backend
        self.key, self.value, self.receptance, self.out_proj = (
            nn.Linear(dim, dim, bias=False, device=device, dtype=dtype) for _ in range(4)
        )
        self.key_norm = nn.LayerNorm(dim, device=device, dtype=dtype) if key_norm else nn.Identity()
        channel = torch.arange(dim, device=device, dtype=dtype)
        place = channel / max(dim - 1, 1)
        self.decay = nn.Parameter(8 * place ** (0.7 + 1.3 * depth) - 5)
        self.bonus = nn.Parameter(math.log(0.3) + 0.5 * ((channel + 1) % 3 - 1))
        share = (channel / dim) ** (1 - depth)
        self.mix_k = nn.Parameter(share.clone())
        self.mix_v = nn.Parameter(share + 0.3 * depth)
        self.mix_r = nn.Parameter((channel / dim) ** (0.5 * (1 - depth)))

    def no_weight_decay(self) -> set[str]:
        """Parameters that are no weights: decay, bonus and the shares of the shift."""
        return {"decay", "bonus", "mix_k", "mix_v", "mix_r"}

    def forward(self, x: Tensor) -> Tensor:
        """(B, *grid, dim) -> (B, *grid, dim)."""
        shifted = q_shift(x)
        k, v, r = (
            layer(torch.lerp(shifted, x, mix.to(x.dtype).expand_as(x)))
            for layer, mix in ((self.key, self.mix_k), (self.value, self.mix_v), (self.receptance, self.mix_r))
        )
        mixed = bi_wkv(k.flatten(1, -2), v.flatten(1, -2), self.decay, self.bonus, self.backend).view(v.shape)
        out: Tensor = self.out_proj(torch.sigmoid(r) * self.key_norm(mixed))
        return out
