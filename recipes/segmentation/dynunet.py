"""nnU-Net's plain U-Net as MONAI has it, the baseline that every other network is measured against."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.nets import DynUNet
from torch import Tensor

__all__ = ["PlainUNet"]


class PlainUNet(DynUNet):
    """MONAI's DynUNet with the arguments of our networks and deep supervision at each level's own size.

    Two convolutions per stage with instance norm and leaky ReLU (Isensee et al., nnU-Net, Nature Methods 2021).

    Args:
        spatial_dims: 2 or 3.
        in_channels: image channels.
        out_channels: classes, background included.
        features_per_stage: channels per resolution, at least three resolutions.
        kernel_sizes: per stage and axis.
        strides: per stage and axis.
        deep_supervision: return every decoder level while training, finest first, but for the deepest one.

    Raises:
        ValueError: fewer than three stages, or settings that contradict each other.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        features_per_stage: Sequence[int],
        kernel_sizes: Sequence[Sequence[int]],
        strides: Sequence[Sequence[int]],
        deep_supervision: bool = True,
    ) -> None:
        stages = len(features_per_stage)
        if stages < 3:
            raise ValueError(f"DynUNet needs 3 stages or more, got {stages}")
        super().__init__(
            spatial_dims,
            in_channels,
            out_channels,
            kernel_size=kernel_sizes,
            strides=strides,
            upsample_kernel_size=strides[1:],
            filters=features_per_stage,
            deep_supervision=deep_supervision,
            deep_supr_num=stages - 2,
        )
        # `skip_layers` holds the same modules; under both names the weights would be saved twice.
        for name in ("input_block", "downsamples", "bottleneck", "upsamples", "deep_supervision_heads"):
            if hasattr(self, name):
                delattr(self, name)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits (B, out_channels, *spatial), or while training a list of them, finest first."""
        outputs = [self.output_block(self.skip_layers(x)), *self.heads]
        # MONAI leaves them behind; they would hold on to the whole graph.
        self.heads[:] = [torch.empty(0)] * len(self.heads)
        return outputs if self.training and self.deep_supervision else outputs[0]
