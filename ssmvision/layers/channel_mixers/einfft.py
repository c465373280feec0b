"""EinFFT: channels mixed in the frequency domain.

Source: Patro, Agneeswaran, "SiMBA: Simplified Mamba-Based Architecture for Vision and Multivariate Time series" (arXiv
2403.15360), and the authors' code (badripatro/simba, 5007d43), which decides where the text leaves things open.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmvision.layers.mamba_layer import autocast_off

__all__ = ["EinFFT"]

SCALE = 0.02


class EinFFT(nn.Module):
    """Two complex block-diagonal layers on the Fourier transform over tokens and blocks of channels.

    X = fft2(x) over the positions and the blocks, orthonormal, so that every block mixes all channels; Y = W2 relu(W1 X
    + b1) + b2 in each block, relu and softshrink acting on real and imaginary parts; y = Re ifft2(softshrink(Y)).
    Computed in at least float32.

    Args:
        dim: channels.
        blocks: that they are cut into.
        threshold: of the softshrink.

    Shape:
        (B, *grid, dim) -> the same, any grid; positions are one axis in C order, as published.

    Raises:
        ValueError: `blocks` does not divide `dim`.
    """

    def __init__(self, dim: int, *, blocks: int = 4, threshold: float = 0.01) -> None:
        super().__init__()
        if blocks < 1 or dim % blocks:
            raise ValueError(f"blocks={blocks} must divide the {dim} channels")
        self.blocks, self.threshold = blocks, threshold
        width = dim // blocks
        self.weight1 = nn.Parameter(SCALE * torch.randn(2, blocks, width, width))
        self.weight2 = nn.Parameter(SCALE * torch.randn(2, blocks, width, width))
        self.bias1 = nn.Parameter(SCALE * torch.randn(2, blocks, width))
        self.bias2 = nn.Parameter(SCALE * torch.randn(2, blocks, width))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        if x.numel() == 0:
            return x
        with autocast_off(x.device):
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            tokens = wide.flatten(1, -2).unflatten(-1, (self.blocks, -1))
            spectrum = torch.fft.fft2(tokens, dim=(1, 2), norm="ortho")
            real, imag = _linear(spectrum.real, spectrum.imag, self.weight1, self.bias1)
            real, imag = _linear(real.relu(), imag.relu(), self.weight2, self.bias2)
            shrunk = torch.complex(F.softshrink(real, self.threshold), F.softshrink(imag, self.threshold))
            mixed: Tensor = torch.fft.ifft2(shrunk, dim=(1, 2), norm="ortho").real
        return mixed.reshape(x.shape).to(x.dtype)


def _linear(real: Tensor, imag: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """A complex linear layer of each block: (B, L, blocks, width) twice -> the same."""
    weight, bias = weight.to(real.dtype), bias.to(real.dtype)

    def times(part: Tensor, by: Tensor) -> Tensor:
        return torch.einsum("...bd,bdk->...bk", part, by)

    return (
        times(real, weight[0]) - times(imag, weight[1]) + bias[0],
        times(real, weight[1]) + times(imag, weight[0]) + bias[1],
    )
