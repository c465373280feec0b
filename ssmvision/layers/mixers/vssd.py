"""The non-causal SSD of VSSD: one state for the whole map."""

from __future__ import annotations

import torch
from torch import Tensor

from ssmvision.kernels.ssd.products import product_dtype
from ssmvision.layers.mixers.heads import HeadInputs, HeadMixer
from ssmvision.layers.norm import LayerNorm

__all__ = ["VSSD", "noncausal_ssd"]


def noncausal_ssd(x: Tensor, m: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """H = sum_j m_j B_j x_j^T over all positions j, y_i = C_i H: whatever the order of the positions.

    Source: Shi et al., "VSSD" (arXiv 2407.18559), section 3. Summed in at least float32; see
    `product_dtype` for what.

    Args:
        x: (B, *grid, H, P) heads.
        m: (B, *grid, H) weights of the positions.
        B, C: (B, *grid, G, N), each of the G groups for H / G neighbouring heads.

    Returns:
        (B, *grid, H, P) in x's dtype.
    """
    dtype = product_dtype(x)
    with torch.autocast(x.device.type, enabled=False):
        wide = m.to(torch.promote_types(x.dtype, torch.float32))
        values = (x * wide.unsqueeze(-1)).to(dtype).flatten(1, -3)
        keys, queries = (t.to(dtype).flatten(1, -3) for t in (B, C))
        state = torch.einsum("blgn,blghp->bgnhp", keys, values.unflatten(2, (keys.shape[2], -1)))
        y = torch.einsum("blgn,bgnhp->blghp", queries, state)
    return y.reshape(x.shape).to(x.dtype)


class VSSD(HeadMixer):
    """Non-causal state-space duality: y_i = C_i sum_j delta_j |A| B_j x_j^T + D x_i, then W (LayerNorm(y) z).

    Each position adds to one state for the whole map as much as its step size says, and reads from it: cost linear in
    the positions, no scan order. The convolution in front is what knows where a position is.

    Source: Shi et al., "VSSD: Vision Mamba with Non-Causal State Space Duality" (arXiv 2407.18559), section 3, and its
    published code, for the weights delta |A| and the gate z without activation.

    Args:
        dim, spatial_dims: channels and axes of the map.
        d_state: states of a channel (N).
        expand: inner width / `dim`.
        head_dim: channels of a head; None for the widest divisor of the inner width up to 64.
        n_groups: groups of heads with B and C of their own.
        d_conv: odd side of the depthwise convolution.
        device, dtype: of the parameters.

    Shape:
        (B, *grid, dim) -> (B, *grid, dim).

    Raises:
        ValueError: a head or group size that does not divide, an even `d_conv`, or not 1 to 3 axes.
    """

    def __init__(
        self,
        dim: int,
        spatial_dims: int,
        *,
        d_state: int = 64,
        expand: float = 2.0,
        head_dim: int | None = None,
        n_groups: int = 1,
        d_conv: int = 3,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim, spatial_dims, 1, d_state, expand, head_dim, n_groups, d_conv, device=device, dtype=dtype)
        self.norm = LayerNorm(self.d_inner, device=device, dtype=dtype)

    def mix(self, inputs: HeadInputs) -> Tensor:
        """(B, *grid, H, P)."""
        weights = (-inputs.delta * inputs.A.view(-1)).squeeze(1)
        y = noncausal_ssd(inputs.x, weights, inputs.B.squeeze(1), inputs.C.squeeze(1))
        return y + (inputs.D.view(-1, 1) * inputs.x).to(y.dtype)

    def gate(self, y: Tensor, z: Tensor) -> Tensor:
        """LayerNorm(y) z."""
        normed: Tensor = self.norm(y)
        return normed.to(y.dtype) * z
