"""Maps weighed channel by channel, image by image, and added: what channel attentions end with."""

from ssmvision.kernels.channel_scale.interface import scale_channels

__all__ = ["scale_channels"]
