"""Residual convolution blocks of U-Mamba's U-Net, in 2D and 3D.

Source: Ma et al., "U-Mamba" (arXiv 2401.04722), and its code; the identity block is nnU-Net's BasicBlockD. Parameter
names are those of the published checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

from ssmvision.kernels import registry
from ssmvision.kernels.instance_norm import instance_norm
from ssmvision.kernels.instance_norm.op import OP

__all__ = ["ConvNorm", "IdentityResBlock", "ProjectedResBlock", "UpsampleConv", "conv_nd", "residual_stage"]

Size = tuple[int, ...]
SLOPE = 0.01
CONVS: dict[int, Callable[..., nn.Conv2d | nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _has_kernel(device: str, dtype: torch.dtype) -> bool:
    """Asked of the registry, which a compiler need not trace."""
    return registry.choose(OP, registry.Request(device, dtype)).name == "triton"


class _FreshInstanceNorm(_InstanceNorm):
    """PyTorch's instance norm with weight and bias and without running statistics, whose result is no view.

    PyTorch returns a view of a batch norm's result. What follows in place on a view copies its gradient twice in the
    backward and holds it twice meanwhile. In low precision on CUDA, where PyTorch takes one block for a whole channel,
    `ssmvision.kernels.instance_norm` runs in its place.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *spatial) -> the same, contiguous."""
        if math.prod(x.shape[2:]) == 1:  # PyTorch refuses it
            return super().forward(x)
        if x.is_cuda and x.dtype.itemsize == 2 and _has_kernel(str(x.device), x.dtype):
            return instance_norm(x, self.weight, self.bias, self.eps)
        batch, channels, *size = x.shape
        flat = x.contiguous().view(1, batch * channels, *size)
        weight, bias = self.weight.repeat(batch), self.bias.repeat(batch)
        y = torch.batch_norm(flat, weight, bias, None, None, True, 0.0, self.eps, torch.backends.cudnn.enabled)
        out: Tensor = torch.ops.aten._unsafe_view(y, x.shape)
        return out


class _InstanceNorm2d(_FreshInstanceNorm, nn.InstanceNorm2d):
    pass


class _InstanceNorm3d(_FreshInstanceNorm, nn.InstanceNorm3d):
    pass


NORMS: dict[int, type[_InstanceNorm2d] | type[_InstanceNorm3d]] = {2: _InstanceNorm2d, 3: _InstanceNorm3d}


def conv_nd(
    in_channels: int, out_channels: int, kernel_size: Size, stride: Size | None = None, bias: bool = True
) -> nn.Conv2d | nn.Conv3d:
    """A convolution padded by k // 2, Kaiming-normal for the leaky ReLU that follows, with zero bias."""
    dims = len(kernel_size)
    padding = tuple(k // 2 for k in kernel_size)
    conv = CONVS[dims](in_channels, out_channels, kernel_size, stride or (1,) * dims, padding, bias=bias)
    nn.init.kaiming_normal_(conv.weight, a=SLOPE)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def _norm(channels: int, kernel_size: Size, eps: float) -> nn.InstanceNorm2d | nn.InstanceNorm3d:
    return NORMS[len(kernel_size)](channels, eps=eps, affine=True)


def _act() -> nn.LeakyReLU:
    return nn.LeakyReLU(SLOPE, inplace=True)


class ProjectedResBlock(nn.Module):
    """conv - norm - act - conv - norm, plus a 1x1 convolution of the input (without norm), act.

    Args:
        in_channels: channels before.
        out_channels: channels after.
        kernel_size: odd, one per axis.
        stride: of the first convolution and of the projection, one per axis; 1 if None.
        eps: of the instance norms.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Size, stride: Size | None = None, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.conv1 = conv_nd(in_channels, out_channels, kernel_size, stride)
        self.norm1 = _norm(out_channels, kernel_size, eps)
        self.conv2 = conv_nd(out_channels, out_channels, kernel_size)
        self.norm2 = _norm(out_channels, kernel_size, eps)
        self.conv3 = conv_nd(in_channels, out_channels, (1,) * len(kernel_size), stride)
        self.act = _act()

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, *spatial) -> (B, out_channels, *ceil(spatial / stride))."""
        y = self.act(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        y += self.conv3(x)
        out: Tensor = self.act(y)
        return out


class ConvNorm(nn.Module):
    """A convolution and an instance norm."""

    def __init__(self, channels: int, kernel_size: Size, bias: bool = True, eps: float = 1e-5) -> None:
        super().__init__()
        self.conv = conv_nd(channels, channels, kernel_size, bias=bias)
        self.norm = _norm(channels, kernel_size, eps)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *spatial) -> the same."""
        out: Tensor = self.norm(self.conv(x))
        return out


class IdentityResBlock(nn.Module):
    """conv - norm - act - conv - norm, plus the input, act.

    Args:
        channels: C.
        kernel_size: odd, one per axis.
        bias: of the convolutions.
        eps: of the instance norms.
    """

    def __init__(self, channels: int, kernel_size: Size, bias: bool = True, eps: float = 1e-5) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels, kernel_size, bias, eps)
        self.conv2 = ConvNorm(channels, kernel_size, bias, eps)
        self.act = _act()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *spatial) -> the same."""
        y = self.conv2(self.act(self.conv1(x)))
        y += x
        out: Tensor = self.act(y)
        return out


class UpsampleConv(nn.Module):
    """Nearest upsampling by `scale` (one factor per axis) with a 1x1 convolution."""

    def __init__(self, in_channels: int, out_channels: int, scale: Size) -> None:
        super().__init__()
        self.conv = conv_nd(in_channels, out_channels, (1,) * len(scale))
        self.scale = tuple(float(s) for s in scale)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, *spatial) -> (B, out_channels, *(spatial * scale))."""
        # The two commute; the convolution costs prod(scale) times less on the coarse grid.
        return F.interpolate(self.conv(x), scale_factor=self.scale, mode="nearest")


def residual_stage(
    in_channels: int,
    out_channels: int,
    kernel_size: Size,
    n_blocks: int,
    stride: Size | None = None,
    conv_bias: bool = True,
    eps: float = 1e-5,
) -> nn.Sequential:
    """One `ProjectedResBlock` with the stride, then `n_blocks - 1` of `IdentityResBlock`.

    Args:
        in_channels: channels before.
        out_channels: channels after.
        kernel_size: odd, one per axis.
        n_blocks: at least 1.
        stride: one per axis; 1 if None.
        conv_bias: whether the identity blocks' convolutions have a bias; the first block's always have.
        eps: of the instance norms.
    """
    rest = [IdentityResBlock(out_channels, kernel_size, conv_bias, eps) for _ in range(n_blocks - 1)]
    return nn.Sequential(ProjectedResBlock(in_channels, out_channels, kernel_size, stride, eps), *rest)
