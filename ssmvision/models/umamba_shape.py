"""The numbers of a U-Mamba network: features, kernels, strides and block counts per stage, checked once. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["PerStage", "SizePerStage", "UNetShape"]

Size = tuple[int, ...]
PerStage = int | Sequence[int]
SizePerStage = int | Sequence[int | Sequence[int]]

BASE_FEATURES = 32
MAX_FEATURES = {2: 512, 3: 320}
DEFAULT_STAGES = 6


def _integers(name: str, values: PerStage, n: int) -> Size:
    """`values` as n integers of at least 1; a single one stands for all."""
    out = (values,) * n if isinstance(values, int) else tuple(int(v) for v in values)
    if len(out) != n:
        raise ValueError(f"{name} needs {n} entries, got {len(out)}: {list(out)}")
    if any(v < 1 for v in out):
        raise ValueError(f"{name} must be at least 1, got {list(out)}")
    return out


def _sizes(name: str, values: SizePerStage, n: int, dims: int) -> tuple[Size, ...]:
    """`values` as one size per stage; a single integer stands for all stages or, within one, for all axes."""
    stages = [values] * n if isinstance(values, int) else values
    return tuple(_integers(f"{name}[{s}]", size, dims) for s, size in enumerate(stages))


def _count_stages(n_stages: int | None, given: dict[str, object]) -> int:
    lengths = {name: len(v) for name, v in given.items() if isinstance(v, Sequence)}
    if n_stages is None:
        n_stages = next(iter(lengths.values()), DEFAULT_STAGES)
    wrong = {name: n for name, n in lengths.items() if n != n_stages}
    if wrong:
        said = ", ".join(f"{name} {n}" for name, n in wrong.items())
        raise ValueError(f"one entry per stage is needed, the network has {n_stages} stages, but: {said}")
    if n_stages < 2:
        raise ValueError(f"a U-Net needs at least 2 stages, got {n_stages}")
    return n_stages


@dataclass(frozen=True)
class UNetShape:
    """What every stage of the U-Net looks like; stage 0 is the finest.

    Attributes:
        spatial_dims: 2 or 3.
        features: channels per stage.
        kernel_sizes: odd, per stage and axis.
        strides: of the first convolution, per stage and axis.
        encoder_blocks: residual blocks per stage; the stem has as many as stage 0.
        decoder_blocks: residual blocks per level, deepest first, one level less than stages.
    """

    spatial_dims: int
    features: Size
    kernel_sizes: tuple[Size, ...]
    strides: tuple[Size, ...]
    encoder_blocks: Size
    decoder_blocks: Size

    @classmethod
    def build(
        cls,
        spatial_dims: int,
        n_stages: int | None = None,
        features_per_stage: PerStage | None = None,
        kernel_sizes: SizePerStage = 3,
        strides: SizePerStage = 2,
        n_conv_per_stage: PerStage = 2,
        n_conv_per_stage_decoder: PerStage = 2,
    ) -> UNetShape:
        """Fill in what is not given; the arguments are those of `UMambaBot`. Sequences are copied, never changed.

        Raises:
            ValueError: a wrong number of entries, an even kernel, or a size below 1.
        """
        if spatial_dims not in MAX_FEATURES:
            raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}")
        per_stage = {"features_per_stage": features_per_stage, "kernel_sizes": kernel_sizes, "strides": strides}
        n = _count_stages(n_stages, {**per_stage, "n_conv_per_stage": n_conv_per_stage})
        if features_per_stage is None:
            features_per_stage = [min(BASE_FEATURES * 2**s, MAX_FEATURES[spatial_dims]) for s in range(n)]
        kernels = _sizes("kernel_sizes", kernel_sizes, n, spatial_dims)
        if any(k % 2 == 0 for kernel in kernels for k in kernel):
            raise ValueError(f"kernel_sizes must be odd (they are padded by k // 2), got {list(kernels)}")
        steps = [1, *[strides] * (n - 1)] if isinstance(strides, int) else strides
        blocks = _integers("n_conv_per_stage", n_conv_per_stage, n)
        levels = _integers("n_conv_per_stage_decoder", n_conv_per_stage_decoder, n - 1)
        return cls(
            spatial_dims,
            _integers("features_per_stage", features_per_stage, n),
            kernels,
            _sizes("strides", steps, n, spatial_dims),
            _one_from(blocks, math.ceil(n / 2)),
            _one_from(levels, math.ceil((n - 1) / 2 + 0.5)),
        )

    @property
    def n_stages(self) -> int:
        """Number of resolutions."""
        return len(self.features)

    @property
    def divisor(self) -> Size:
        """What an input size must be divisible by, per axis: the product of the strides."""
        return tuple(math.prod([stride[axis] for stride in self.strides]) for axis in range(self.spatial_dims))

    def check_size(self, size: Sequence[int], what: str) -> Size:
        """`size` as a tuple, if the network can halve and double it without remainder.

        Raises:
            ValueError: wrong number of axes, not divisible, or a bottleneck of one voxel (instance norm needs two).
        """
        size, divisor = tuple(size), self.divisor
        if len(size) != self.spatial_dims:
            raise ValueError(f"{what} needs {self.spatial_dims} spatial axes, got {size}")
        if any(n < d or n % d for n, d in zip(size, divisor, strict=True)):
            fit = tuple(max(1, -(-n // d)) * d for n, d in zip(size, divisor, strict=True))
            raise ValueError(f"{what} {size} must be divisible by the strides' product {divisor}; pad it to {fit}")
        if size == divisor:
            raise ValueError(f"{what} {size} leaves one voxel at the bottleneck, which instance norm cannot normalise")
        return size

    def map_sizes(self, input_size: Sequence[int]) -> tuple[Size, ...]:
        """Size of each stage's feature map for an input size."""
        sizes, size = [], tuple(input_size)
        for stride in self.strides:
            size = tuple(n // k for n, k in zip(size, stride, strict=True))
            sizes.append(size)
        return tuple(sizes)


def _one_from(blocks: Size, first: int) -> Size:
    """U-Mamba's networks keep a single block from this index on, whatever was asked for."""
    return tuple(1 if i >= first else n for i, n in enumerate(blocks))
