"""Depthwise causal convolution along a token sequence, in one or several directions from one read of the input."""

from ssmvision.kernels.causal_conv.interface import causal_conv

__all__ = ["causal_conv"]
