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
            # Transforms are over the last two axes: over others, torch.compile expects another layout than it gets.
            tokens = wide.flatten(1, -2).unflatten(-1, (self.blocks, -1)).permute(0, 3, 1, 2).contiguous()
            spectrum = torch.view_as_real(torch.fft.fft2(tokens, norm="ortho")).permute(0, 3, 2, 1, 4).flatten(-2)
            hidden = _linear(spectrum, self.weight1, self.bias1).relu()
            shrunk = F.softshrink(_linear(hidden, self.weight2, self.bias2), self.threshold)
            pairs = shrunk.unflatten(-1, (-1, 2)).permute(0, 3, 2, 1, 4).contiguous()
            mixed: Tensor = torch.fft.ifft2(torch.view_as_complex(pairs), norm="ortho").real
        return mixed.permute(0, 2, 3, 1).reshape(x.shape).to(x.dtype)


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A complex linear layer of each block: (B, blocks, L, 2 width) -> the same, imaginary parts beside the real ones.

    One real product in place of four. Its matrices are repeated over the batch, whose gradients are then products of
    B x blocks small matrices: of the blocks alone they would be a few long sums, which leave a GPU idle.
    """
    real, imag = weight.to(x.dtype)
    columns = torch.stack([torch.stack([real, imag], -1), torch.stack([-imag, real], -1)], 2)  # (blocks, in, 2, out, 2)
    matrix = columns.flatten(-2).flatten(1, 2)
    shift = bias.to(x.dtype).movedim(0, -1).flatten(-2).unsqueeze(1)
    y: Tensor = x @ matrix.expand(x.shape[0], *matrix.shape) + shift
    return y
