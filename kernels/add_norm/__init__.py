"""Adding to the residual stream and RMS or layer norm in one operator."""

from ssmvision.kernels.add_norm.interface import add_layer_norm, add_rms_norm

__all__ = ["add_layer_norm", "add_rms_norm"]
