"""S4ND as a mixer, the one of U-Mamba's S4ND networks."""

from __future__ import annotations

from typing import Any

from torch import nn

from ssmvision.layers.s4nd import S4ND

__all__ = ["s4nd_mixer"]


def s4nd_mixer(dim: int, spatial_dims: int, **options: Any) -> nn.Module:
    """A global S4ND with a gated pointwise output, on feature maps of any size.

    Diagonal kernels, since their parameters do not depend on the map's size; memories of 1 to 100 voxels.

    Args:
        dim: channels.
        spatial_dims: axes.
        options: of `S4ND`, over these defaults.
    """
    defaults: dict[str, Any] = {"kernel": "s4d", "init": "legs", "n_ssm": 1, "dt_min": 0.01, "dt_max": 1.0}
    defaults |= {"linear": False, "final_act": "glu", "symmetric_center": True}
    return S4ND(dim, dim=spatial_dims, **(defaults | options))
