"""Depthwise convolution of a channels-last map, with bias and SiLU in the same pass."""

from ssmvision.kernels.depthwise_conv.interface import depthwise_conv2d

__all__ = ["depthwise_conv2d"]
