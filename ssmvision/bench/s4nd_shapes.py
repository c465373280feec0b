"""The maps on which `ssmvision bench s4nd` convolves, and what runs on each of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from ssmvision.bench.contestants import Contestant, Inputs
from ssmvision.kernels.s4nd import long_conv_nd

__all__ = [
    "DEPTHWISE",
    "FFT",
    "MATMUL",
    "OURS",
    "SHAPES",
    "Map",
    "contestants",
    "global_conv",
    "make_inputs",
    "part_of",
]

OURS, MATMUL, FFT, DEPTHWISE = "ours", "matmul", "FFT", "depthwise 7^d"
EDGE = 7
CONVS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@dataclass(frozen=True)
class Map:
    """Maps (batch, channels, *grid).

    Attributes:
        about: where such maps occur.
        batch, channels, grid: their sizes.
        device: for which `--shapes auto` takes them.
    """

    about: str
    batch: int
    channels: int
    grid: tuple[int, ...]
    device: str = "cuda"

    @property
    def size(self) -> str:
        """Such as "B2 H32 56x56"."""
        return f"B{self.batch} H{self.channels} {'x'.join(map(str, self.grid))}"

    @property
    def values(self) -> int:
        """Numbers in one map."""
        return self.batch * self.channels * prod(self.grid)


SHAPES: dict[str, Map] = {
    "stage1": Map("ConvNeXt-T's first stage at 224 px", 128, 96, (56, 56)),
    "stage3": Map("its third stage", 128, 384, (14, 14)),
    "volume64": Map("a patch of a CT", 2, 32, (64, 64, 64)),
    "volume128": Map("a large patch of a CT", 1, 32, (128, 128, 128)),
    "image": Map("a small batch of the first stage", 2, 32, (56, 56), "cpu"),
    "image96": Map("two pictures in the first stage", 2, 96, (56, 56), "cpu"),
    "patch16": Map("a small volume", 2, 32, (16, 16, 16), "cpu"),
    "patch32": Map("a patch of a volume", 1, 32, (32, 32, 32), "cpu"),
}


def make_inputs(shape: Map, dtype: torch.dtype, device: torch.device | str) -> Inputs:
    """Random maps, kernels to both sides as far as each axis is long that decay over a quarter of it, and a skip.

    Keys: "u" and "dout" (B, H, *grid), "kernel0" and on (H, 2 L), lag 0 at L, "D" (H,), "depthwise" (H, 1, 7, ...).
    Kernels and skip are float32 where the maps are of lower precision, as a network's parameters are.
    """
    generator = torch.Generator(device).manual_seed(0)
    wide = torch.promote_types(dtype, torch.float32)

    def rand(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device, dtype=wide)

    maps = (shape.batch, shape.channels, *shape.grid)
    inputs = {"u": rand(*maps).to(dtype), "dout": rand(*maps).to(dtype)}
    for axis, length in enumerate(shape.grid):
        lags = torch.arange(-length, length, device=device, dtype=wide)
        decay = torch.exp(-4 * lags.abs() / length) * 2 / length**0.5
        inputs[f"kernel{axis}"] = rand(shape.channels, 2 * length) * decay
    inputs["D"] = rand(shape.channels)
    # Convolutions want one dtype for maps and weights.
    inputs["depthwise"] = rand(shape.channels, 1, *(EDGE,) * len(shape.grid)).to(dtype) / EDGE
    return inputs


def part_of(inputs: Inputs, features: int) -> Inputs:
    """The first features: the convolution treats every feature by itself."""
    whole = {name: t[:, :features] for name, t in inputs.items() if name in ("u", "dout")}
    return whole | {name: t[:features] for name, t in inputs.items() if name not in whole}


def global_conv(name: str, inputs: Inputs, backend: str, precision: str = "auto") -> Contestant:
    """`long_conv_nd` by a backend."""
    given = [key for key in inputs if key in ("u", "D") or key.startswith("kernel")]
    leaves = {key: inputs[key].detach().requires_grad_() for key in given}
    kernels = [leaves[key] for key in given if key.startswith("kernel")]
    centers = [kernel.shape[-1] // 2 for kernel in kernels]
    options = {"centers": centers, "precision": precision, "backend": backend}
    forward = partial(long_conv_nd, leaves["u"], kernels, leaves["D"], **options)  # type: ignore[arg-type]
    return Contestant(name, forward, leaves, inputs["dout"].unsqueeze(1))


def _depthwise(inputs: Inputs) -> Contestant:
    """Maps and their gradient lie as the library likes them best: of pictures on a GPU, the channels last."""
    maps = inputs["u"]
    last = maps.is_cuda and maps.dim() == 4
    layout = torch.channels_last if last else torch.contiguous_format
    u, weight, dout = (inputs[key].detach().contiguous(memory_format=layout) for key in ("u", "depthwise", "dout"))
    leaves = {"u": u.requires_grad_(), "depthwise": weight.requires_grad_()}
    convolve = partial(CONVS[u.dim() - 2], u, weight, padding=EDGE // 2, groups=u.shape[1])
    return Contestant(DEPTHWISE, convolve, leaves, dout)


def contestants(
    inputs: Inputs, backend: str, precision: str, matmul: bool = False
) -> dict[str, Callable[[], Contestant]]:
    """By name, how to make each of them ready; with `matmul`, plain matrix products too, if ours is another engine."""
    plain = {MATMUL: partial(global_conv, MATMUL, inputs, "toeplitz", precision)} if matmul else {}
    return {
        OURS: partial(global_conv, OURS, inputs, backend, precision),
        **plain,
        FFT: partial(global_conv, FFT, inputs, "fft"),
        DEPTHWISE: partial(_depthwise, inputs),
    }
