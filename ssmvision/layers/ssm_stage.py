"""Stages of blocks with any mixer, and the convolutions between them, on channels-last maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ssmvision.layers.layouts import BlockPlan
from ssmvision.layers.mixer_block import MixerBlock, SharedAttention
from ssmvision.layers.mixers.registry import MixerLike
from ssmvision.layers.norm import LayerNorm
from ssmvision.layers.s4nd_blocks import patch_conv

__all__ = ["BlockSettings", "PatchConv", "SSMStage"]


@dataclass(frozen=True)
class BlockSettings:
    """What the blocks of a network have where their layout does not say otherwise.

    Attributes:
        mixer, mixer_args: token mixer and its options.
        channel_mixer, channel_mixer_args: channel mixer and its options.
        layout_args: options of the mixers that the layout adds, by their names.
    """

    mixer: MixerLike
    mixer_args: dict[str, Any] = field(default_factory=dict)
    channel_mixer: str = "mlp"
    channel_mixer_args: dict[str, Any] = field(default_factory=dict)
    layout_args: dict[str, Any] = field(default_factory=dict)

    def block(self, dim: int, spatial_dims: int, plan: BlockPlan, drop_path: float) -> MixerBlock:
        """A block as its plan says."""
        mixer, options = self.mixer, self.mixer_args
        if plan.mixer is not None:
            mixer, options = plan.mixer, self.layout_args.get(plan.mixer, {})
        channel_mixer, channel_options = self.channel_mixer, self.channel_mixer_args
        if plan.channel_mixer is not None:
            channel_mixer, channel_options = plan.channel_mixer, self.layout_args.get(plan.channel_mixer, {})
        return MixerBlock(
            dim,
            spatial_dims,
            mixer,
            channel_mixer,
            options,
            channel_options,
            beside=plan.beside,
            beside_args=self.layout_args.get(plan.beside or "", {}),
            takes_shared=plan.shared,
            drop_path=drop_path,
        )


class PatchConv(nn.Module):
    """A convolution of patches without overlap, with a norm before or after it.

    Args:
        before, after: channels.
        size: of the patches, one an axis.
        norm, norm_first: a norm after the convolution, or before it.

    Shape:
        (B, *grid, before) -> (B, *(grid // size), after), contiguous.
    """

    def __init__(
        self, before: int, after: int, size: Sequence[int], norm: bool = False, norm_first: bool = False
    ) -> None:
        super().__init__()
        self.norm_before: nn.Module = LayerNorm(before) if norm_first else nn.Identity()
        self.proj = patch_conv(before, after, tuple(size))
        self.norm: nn.Module = LayerNorm(after) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = self.proj(self.norm_before(x).movedim(-1, 1)).movedim(1, -1).contiguous()
        out: Tensor = self.norm(x)
        return out


class SSMStage(nn.Module):
    """Downsampling and blocks.

    Args:
        dim: channels.
        spatial_dims: axes of the map.
        downsample: the way from the last stage, `nn.Identity` for the first.
        settings: of all blocks.
        plan: of each block, with its drop-path rate.

    Shape:
        (B, *grid, C) -> (B, *grid', dim).
    """

    def __init__(
        self,
        dim: int,
        spatial_dims: int,
        downsample: nn.Module,
        settings: BlockSettings,
        plan: Sequence[tuple[BlockPlan, float]],
    ) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = downsample
        self.blocks = nn.ModuleList(settings.block(dim, spatial_dims, step, rate) for step, rate in plan)
        self.shared: SharedAttention | None = None
        if any(step.shared for step, _ in plan):
            self.shared = SharedAttention(dim, spatial_dims, settings.layout_args.get("attention", {}))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = start = self.downsample(x)
        for block in self.blocks:
            x = self._run(block, x, start)
        return x

    def outputs(self, x: Tensor, blocks: int) -> list[Tensor]:
        """The maps after each of the first `blocks` blocks."""
        x = start = self.downsample(x)
        outputs = []
        for block in self.blocks[:blocks]:
            x = self._run(block, x, start)
            outputs.append(x)
        return outputs

    def _run(self, block: nn.Module, x: Tensor, start: Tensor) -> Tensor:
        recompute = self.grad_checkpointing and torch.is_grad_enabled()
        given = (block, x, start)
        out: Tensor = checkpoint(self._step, *given, use_reentrant=False) if recompute else self._step(*given)
        return out

    def _step(self, block: nn.Module, x: Tensor, start: Tensor) -> Tensor:
        takes = isinstance(block, MixerBlock) and block.from_shared is not None
        out: Tensor = block(x, self.shared(x, start)) if self.shared is not None and takes else block(x)
        return out

    def shorten(self, blocks: int) -> None:
        """Keep the first `blocks` blocks, and the shared attention if one of them takes it."""
        self.blocks = self.blocks[:blocks]
        if not any(isinstance(block, MixerBlock) and block.from_shared is not None for block in self.blocks):
            self.shared = None

    def channel_mixers(self) -> list[nn.Module]:
        """Those of all blocks that have one."""
        mixers = [block.channel_mixer for block in self.blocks if isinstance(block, MixerBlock)]
        mixers.append(None if self.shared is None else self.shared.mlp)
        return [mixer for mixer in mixers if mixer is not None]
