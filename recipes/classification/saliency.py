"""Which pixels a classifier's answer hangs on: the gradient of its score by the picture."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["input_gradient"]


def input_gradient(network: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Largest size over the channels of the score's gradient by each pixel.

    Args:
        network: (B, C, H, W) to logits; in eval mode, and without batch statistics.
        images: (B, C, H, W) as the network takes them.
        classes: (B,) whose logits are differentiated.

    Returns:
        (B, H, W) float32, 0 or more.

    Source: Simonyan, Vedaldi and Zisserman, "Deep inside convolutional networks" (arXiv 1312.6034), section 3.1.
    """
    with torch.enable_grad():
        pixels = images.detach().clone().requires_grad_(True)
        scores = network(pixels).float().gather(1, classes[:, None])
        (gradient,) = torch.autograd.grad(scores.sum(), pixels)
    return gradient.detach().float().abs().amax(1)
