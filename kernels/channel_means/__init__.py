"""Means over a map of its channels and of its normed channels, from one read: what channel attentions start from."""

from ssmvision.kernels.channel_means.interface import channel_means

__all__ = ["channel_means"]
