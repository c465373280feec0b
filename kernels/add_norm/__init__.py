"""Adding to the residual stream and RMS norm in one operator."""

from ssmvision.kernels.add_norm.interface import add_rms_norm

__all__ = ["add_rms_norm"]
