"""Parts of a ConvNeXt with S4ND in place of its convolutions, in 2D and 3D.

Sources: Liu et al., "A ConvNet for the 2020s" (arXiv 2201.03545), section 2; Nguyen et al., "S4ND" (arXiv 2210.06583),
section 4.2 and appendix D, and the authors' code for the stem and the downsampling. Parameter names are timm's where
timm has the part.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from ssmvision.kernels.branch import add_branch, norm_map
from ssmvision.kernels.s4nd.two_sided import AxisKernels
from ssmvision.layers.s4nd import S4ND, autocast_dtype
from ssmvision.layers.s4nd_output import ChannelLinear

__all__ = ["ChannelNorm", "PooledS4ND", "S4NDBlock", "S4NDStem", "patch_conv"]

Size = tuple[int, ...]
CONVS: dict[int, Callable[..., nn.Module]] = {2: nn.Conv2d, 3: nn.Conv3d}
POOLS: dict[int, Callable[..., Tensor]] = {2: F.avg_pool2d, 3: F.avg_pool3d}
EPS = 1e-6


def patch_conv(in_channels: int, out_channels: int, size: Size, **factory: Any) -> nn.Module:
    """A convolution of patches without overlap."""
    return CONVS[len(size)](in_channels, out_channels, size, size, **factory)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of (B, C, *grid), in one pass; under autocast the result has autocast's dtype.

    Args:
        channels: C.
        channels_last: memory order of the result, that of the convolution that follows.
        factory: device and dtype.
    """

    def __init__(self, channels: int, channels_last: bool = False, **factory: Any) -> None:
        super().__init__(channels, eps=EPS, **factory)
        self.channels_last = channels_last

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *grid) -> the same."""
        y = norm_map(x, self.weight, self.bias, self.eps, self.channels_last)
        return y.movedim(-1, 1) if self.channels_last else y


class S4NDBlock(nn.Module):
    """x + drop_path(gamma * mlp(norm(S4ND(x)))).

    Args:
        channels: C.
        l_max: longest kernel of each axis, or None.
        s4nd: further arguments of `S4ND`.
        mlp_ratio: width of the hidden layer.
        drop_path: probability of dropping a sample's branch in training.
        init_scale: initial gamma; None for no gamma.
        factory: device and dtype.

    Shape:
        (B, C, *grid) -> (B, C, *grid).
    """

    def __init__(
        self,
        channels: int,
        l_max: tuple[int | None, ...],
        s4nd: dict[str, Any],
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        init_scale: float | None = 1e-6,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.conv_dw = S4ND(channels, l_max=l_max, dim=None, **s4nd, **factory)
        self.norm = nn.LayerNorm(channels, eps=EPS, **factory)
        self.mlp = Mlp(channels, int(mlp_ratio * channels), act_layer=nn.GELU, **factory)
        scale = None if init_scale is None else nn.Parameter(torch.full((channels,), init_scale, **factory))
        self.gamma: nn.Parameter | None = scale
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor, kernels: AxisKernels | None = None) -> Tensor:
        """See the class; `kernels` are the convolution's, if they were made before."""
        return self.step(x, None, kernels)[0]

    def step(
        self, x: Tensor, rounded: Tensor | None, kernels: AxisKernels | None = None, last: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """One of several blocks in a row.

        Args:
            x: (B, C, *grid).
            rounded: x in the convolution's dtype where that is another, as the block before gave it; None to use x.
            kernels: of the convolution.
            last: whether no block follows.

        Returns:
            The block's output, and the same in the dtype of the next block's convolution if that is another.
        """
        y = self.conv_dw(x if rounded is None else rounded, kernels=kernels)
        tokens = self.mlp(norm_map(y, self.norm.weight, self.norm.bias, self.norm.eps))
        copy_dtype = None if last else autocast_dtype(x.device)
        return add_branch(x, tokens, self.gamma, self._kept(x), copy_dtype)

    def _kept(self, x: Tensor) -> Tensor | None:
        """Stochastic depth (Huang et al., arXiv 1603.09382): 0 for images without this branch, 1 / (1 - p) else."""
        share = 1 - float(getattr(self.drop_path, "drop_prob", 0.0))
        if not self.training or share == 1:
            return None
        kept = torch.empty(len(x), device=x.device).bernoulli_(share)
        return kept / share if share > 0 else kept


class PooledS4ND(nn.Module):
    """S4ND, average pooling, linear map, GLU: S4ND's strided convolution.

    Args:
        conv: the S4ND layer.
        out_channels: of the result.
        stride: of each axis.
        factory: device and dtype.

    Shape:
        (B, conv.d_model, *grid) -> (B, out_channels, *(grid // stride)).
    """

    def __init__(self, conv: S4ND, out_channels: int, stride: Size, **factory: Any) -> None:
        super().__init__()
        self.conv, self.stride = conv, stride
        self.linear = ChannelLinear(conv.d_output, 2 * out_channels, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        pooled = POOLS[len(self.stride)](self.conv(x), self.stride, self.stride)
        return F.glu(self.linear(pooled), 1)


class S4NDStem(PooledS4ND):
    """A dense S4ND from the image's channels, pooled over patches, and a norm; shapes of `PooledS4ND`."""

    def __init__(self, conv: S4ND, out_channels: int, stride: Size, **factory: Any) -> None:
        super().__init__(conv, out_channels, stride, **factory)
        self.norm = ChannelNorm(out_channels, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        out: Tensor = self.norm(super().forward(x))
        return out
