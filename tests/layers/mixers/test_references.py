"""Attention, windowed attention and a convolution: what the state-space mixers are compared with."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor

from ssmvision.layers.mixers.attention import GlobalAttention
from ssmvision.layers.mixers.dwconv import DepthwiseMixer
from ssmvision.layers.mixers.window_attention import WindowAttention

pytestmark = pytest.mark.usefixtures("one_thread")


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def attend(layer: Any, x: Tensor, bias: Tensor | float = 0.0, qk_norm: bool = False) -> Tensor:
    """softmax(Q K^T / sqrt(P) + bias) V of tokens (B, L, C), head by head."""
    width, heads = layer.attention.head_dim, layer.attention.num_heads
    q, k, v = (t.unflatten(-1, (heads, width)).transpose(1, 2) for t in layer.attention.qkv(x).chunk(3, -1))
    if qk_norm:
        q, k = (F.layer_norm(t, (width,), eps=1e-5) for t in (q, k))  # of new layers, whose weights are 1 and 0
    weights = (q @ k.transpose(-1, -2) / width**0.5 + bias).softmax(-1)
    return layer.attention.proj((weights @ v).transpose(1, 2).flatten(2))


def test_attention() -> None:
    layer, x = GlobalAttention(6, 2, head_dim=3, dtype=torch.float64), normal(2, 3, 4, 6)
    torch.testing.assert_close(layer(x).flatten(1, 2), attend(layer, x.flatten(1, 2)))
    assert layer.attention.num_heads == 2
    normed = GlobalAttention(6, 2, qk_norm=True, dtype=torch.float64)
    torch.testing.assert_close(normed(x).flatten(1, 2), attend(normed, x.flatten(1, 2), qk_norm=True))
    assert not torch.allclose(normed(x), layer(x))


def window_by_window(layer: WindowAttention, x: Tensor) -> Tensor:
    """Every window of a plane on its own, from its edges and with biases looked up pair by pair."""
    out, side = torch.zeros_like(x), layer.window
    span = 2 * side - 1

    def edges(size: int) -> list[int]:
        start = side // 2 if layer.shift and size > side else 0
        return sorted({0, size, *range(start, size, side)})

    rows, columns = edges(x.shape[1]), edges(x.shape[2])
    for top, bottom in pairwise(rows):
        for left, right in pairwise(columns):
            places = [(r, c) for r in range(top, bottom) for c in range(left, right)]
            index = [[(a - c + side - 1) * span + b - d + side - 1 for c, d in places] for a, b in places]
            window = x[:, top:bottom, left:right]
            y = attend(layer, window.flatten(1, 2), layer.position_bias[:, torch.tensor(index)])
            out[:, top:bottom, left:right] = y.view(window.shape)
    return out


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("grid", [(6, 9), (7, 8), (2, 5)], ids=str)
def test_window_attention_is_attention_in_each_window(grid: tuple[int, int], shift: bool) -> None:
    layer = WindowAttention(6, 2, window=3, shift=shift, head_dim=2, dtype=torch.float64)
    torch.nn.init.normal_(layer.position_bias)
    x = normal(2, *grid, 6).requires_grad_()
    found, expected = layer(x), window_by_window(layer, x)
    torch.testing.assert_close(found, expected)
    inputs = (x, *layer.parameters())
    for ours, theirs in zip(*(torch.autograd.grad(y.square().sum(), inputs) for y in (found, expected)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_shifted_windows_are_swins() -> None:
    """With timm's block, which rolls the map and masks what does not belong together."""
    block = SwinTransformerBlock(6, (6, 9), num_heads=3, window_size=3, shift_size=1).double()
    layer = WindowAttention(6, 2, window=3, shift=True, head_dim=2, dtype=torch.float64)
    table = torch.nn.init.normal_(block.attn.relative_position_bias_table.detach())
    layer.attention.load_state_dict(block.attn.state_dict(), strict=False)
    layer.load_state_dict({"position_bias": table.T}, strict=False)
    x = normal(2, 6, 9, 6)
    torch.testing.assert_close(layer(x), block._attn(x))


def test_windows_of_lines_and_volumes() -> None:
    """A volume one position thick is a plane, and a line is a plane one position high."""
    plane, line, volume = (WindowAttention(4, d, window=3, dtype=torch.float64) for d in (2, 1, 3))
    torch.nn.init.normal_(plane.position_bias)
    with torch.no_grad():
        line.load_state_dict(plane.state_dict() | {"position_bias": plane.position_bias.view(-1, 5, 5)[:, 2]})
        biases = torch.zeros(1, 5, 5, 5, dtype=torch.float64)
        biases[:, 2] = plane.position_bias.view(-1, 5, 5)
    volume.load_state_dict(plane.state_dict() | {"position_bias": biases.flatten(1)})
    x = normal(1, 4, 7, 4)
    torch.testing.assert_close(volume(x.unsqueeze(1)).squeeze(1), plane(x))
    torch.testing.assert_close(line(x[:, 0]), plane(x[:, :1])[:, 0])


@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
def test_dwconv(spatial_dims: int) -> None:
    layer = DepthwiseMixer(3, spatial_dims, kernel_size=5, dtype=torch.float64)
    x = normal(2, *(4, 5, 6)[:spatial_dims], 3)
    convolve = (F.conv1d, F.conv2d, F.conv3d)[spatial_dims - 1]
    weight, bias = layer.conv.conv.weight, layer.conv.conv.bias
    expected = layer.proj(convolve(x.movedim(-1, 1), weight, bias, padding=2, groups=3).movedim(1, -1))
    torch.testing.assert_close(layer(x), expected)
