"""Long convolutions with 1D state-space kernels along every axis: S4ND's operator and its kernels' formulas."""

from ssmvision.kernels.s4nd.interface import long_conv_nd

__all__ = ["long_conv_nd"]
