"""ConvNeXt with S4ND in place of its depthwise convolutions, in 2D and 3D, with the methods that timm asks of a model.

Sources: Nguyen et al., "S4ND: Modeling Images and Videos as Multidimensional Signals Using State Spaces" (arXiv
2210.06583), section 4.2 and appendix D; Liu et al., "A ConvNet for the 2020s" (arXiv 2201.03545).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from timm.layers import trunc_normal_
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ssmvision.layers.s4nd import S4ND, set_rate, shared_kernels
from ssmvision.layers.s4nd_blocks import ChannelNorm, PooledS4ND, S4NDBlock, S4NDStem, patch_conv
from ssmvision.layers.s4nd_head import PooledHead
from ssmvision.layers.s4nd_optim import param_groups
from ssmvision.models._timm import record_input_size, record_model_args
from ssmvision.models.s4nd_official import convnext_state

__all__ = ["S4NDConvNeXt", "S4NDStage"]

Size = tuple[int, ...]
# The authors' settings: HiPPO-FouT, one system for all channels, memories of 1 to 10 pixels.
S4ND_ARGS: dict[str, Any] = {"kernel": "s4", "init": "fourier", "n_ssm": 1, "dt_min": 0.1, "dt_max": 1.0, "lr": 1e-3}


class S4NDStage(nn.Module):
    """Downsampling (norm and a strided or pooled convolution) and blocks.

    Attributes:
        grids: nominal size of the map before the downsampling and after it.
    """

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module], grids: tuple[Size, Size]) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.grids = grids
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *grid) -> (B, C', *grid')."""
        x = self.downsample(x).contiguous()
        blocks = [block for block in self.blocks if isinstance(block, S4NDBlock)]
        recompute = self.grad_checkpointing and torch.is_grad_enabled()
        # One batch makes the kernels of all blocks: alone they would take longer than the convolutions.
        rounded: Tensor | None = None
        made = shared_kernels([block.conv_dw for block in blocks], x.shape[2:])
        for i, (block, kernels) in enumerate(zip(blocks, made, strict=True)):
            given = (x, rounded, kernels, i == len(blocks) - 1)
            x, rounded = checkpoint(block.step, *given, use_reentrant=False) if recompute else block.step(*given)
        return x


class S4NDConvNeXt(nn.Module):
    """A ConvNeXt whose blocks convolve globally.

    Args:
        img_size: nominal input size, one int or one an axis; the kernels of a stage are as long as its map there.
            Other sizes run too, with these kernels.
        in_chans, num_classes: input channels; classes of the head, 0 for none.
        global_pool: "avg", "max", "avgmax" or "" (none).
        spatial_dims: 2 or 3.
        patch_size: of the stem; stage_stride: of each later stage. One int or one an axis; None for 4 and 2 in the
            plane, and in 3D for 2 and 1 along the first axis.
        depths, dims: blocks and channels of each stage.
        stem: "patch" (strided convolution) or "s4nd" (dense S4ND with `stem_channels` features and kernels of
            `stem_l_max`, pooled).
        downsample: "conv" (strided convolution) or "s4nd" (S4ND, pooled).
        d_state: states of every 1D system.
        s4nd_args: further arguments of every `S4ND`, over those of the published ImageNet configuration.
        ls_init_value: initial layer scale; None for none.
        drop_rate, drop_path_rate: dropout before the head; stochastic depth of the last block, growing from 0.
        head_init_scale: factor on the head's initial weights.
        dynamic_img_size: kernels as long as the map at hand, whatever `img_size` is.
        device, dtype: of the parameters.

    Shape:
        (B, in_chans, *img_size) -> (B, num_classes).

    Raises:
        ValueError: settings that contradict each other.
    """

    def __init__(
        self,
        img_size: int | Size = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        spatial_dims: int = 2,
        patch_size: int | Size | None = None,
        stage_stride: int | Size | None = None,
        depths: Sequence[int] = (3, 3, 9, 3),
        dims: Sequence[int] = (96, 192, 384, 768),
        stem: Literal["patch", "s4nd"] = "patch",
        stem_channels: int = 32,
        stem_l_max: int | Size = 16,
        downsample: Literal["conv", "s4nd"] = "conv",
        d_state: int = 64,
        s4nd_args: Mapping[str, Any] | None = None,
        ls_init_value: float | None = 1e-6,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        head_init_scale: float = 1.0,
        dynamic_img_size: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3) or stem not in ("patch", "s4nd") or downsample not in ("conv", "s4nd"):
            raise ValueError(f"spatial_dims={spatial_dims}, stem={stem!r}, downsample={downsample!r}: choose from 2 or "
                             "3, 'patch' or 's4nd', 'conv' or 's4nd'")  # fmt: skip
        if len(depths) != len(dims):
            raise ValueError(f"depths {tuple(depths)} and dims {tuple(dims)} need one entry a stage each")
        self.spatial_dims, self.dynamic_img_size = spatial_dims, dynamic_img_size
        self.num_classes, self.in_chans = num_classes, in_chans
        self.num_features = self.head_hidden_size = dims[-1]
        self.patch_size = self._axes(patch_size or ((2, 4, 4) if spatial_dims == 3 else 4))
        self.stage_stride = self._axes(stage_stride or ((1, 2, 2) if spatial_dims == 3 else 2))
        self.s4nd_args = {"d_state": d_state} | S4ND_ARGS | dict(s4nd_args or {})
        self.factory: dict[str, Any] = {k: v for k, v in {"device": device, "dtype": dtype}.items() if v is not None}
        self.stem = self._stem(stem, in_chans, dims[0], stem_channels, self._axes(stem_l_max))
        self.img_size = self._axes(img_size)
        self.feature_info: list[dict[str, Any]] = []
        self.stages = nn.Sequential(*self._new_stages(depths, dims, downsample, drop_path_rate, ls_init_value))
        self.head = PooledHead(dims[-1], num_classes, global_pool, drop_rate, **self.factory)
        self._init_weights(head_init_scale)

    # Construction

    def _axes(self, size: int | Sequence[int]) -> Size:
        sizes = (size,) * self.spatial_dims if isinstance(size, int) else tuple(int(n) for n in size)
        if len(sizes) != self.spatial_dims or min(sizes) < 1:
            raise ValueError(f"{sizes}: a {self.spatial_dims}D network needs one positive size an axis")
        return sizes

    def _grids(self, img_size: Size, stages: int) -> list[tuple[Size, Size]]:
        """Map size before and after each stage's downsampling."""
        grids = []
        grid = _divided(img_size, self.patch_size)
        for s in range(stages):
            after = _divided(grid, self.stage_stride) if s else grid
            grids.append((grid, after))
            grid = after
        return grids

    def _new_stages(
        self,
        depths: Sequence[int],
        dims: Sequence[int],
        downsample: str,
        drop_path_rate: float,
        init_scale: float | None,
    ) -> list[S4NDStage]:
        """The stages, told to `feature_info` too; drop-path rates grow linearly over all blocks."""
        total, built, reduction = sum(depths), 0, self.patch_size[-1]
        stages = []
        for s, (before, after) in enumerate(self._grids(self.img_size, len(dims))):
            reduction *= self.stage_stride[-1] if s else 1
            down = self._downsample(downsample, dims[s - 1], dims[s], before) if s else nn.Identity()
            rates = [drop_path_rate * (built + i) / max(total - 1, 1) for i in range(depths[s])]
            blocks = [self._block(dims[s], after, rate, init_scale) for rate in rates]
            built += depths[s]
            stages.append(S4NDStage(down, blocks, (before, after)))
            self.feature_info.append({"num_chs": dims[s], "reduction": reduction, "module": f"stages.{s}"})
        return stages

    def _s4nd(self, channels: int, grid: Size, **options: Any) -> S4ND:
        l_max = (None,) * len(grid) if self.dynamic_img_size else grid
        return S4ND(channels, l_max=l_max, dim=None, **self.s4nd_args, **options, **self.factory)

    def _block(self, channels: int, grid: Size, drop_path: float, scale: float | None) -> S4NDBlock:
        l_max: tuple[int | None, ...] = (None,) * len(grid) if self.dynamic_img_size else grid
        options: dict[str, Any] = {"drop_path": drop_path, "init_scale": scale, **self.factory}
        return S4NDBlock(channels, l_max, self.s4nd_args, **options)

    def _stem(self, kind: str, in_chans: int, channels: int, width: int, l_max: Size) -> nn.Module:
        if kind == "patch":
            conv = patch_conv(in_chans, channels, self.patch_size, **self.factory)
            return nn.Sequential(conv, ChannelNorm(channels, **self.factory))
        dense = S4ND(in_chans, l_max=l_max, dim=None, out_channels=width, **self.s4nd_args, **self.factory)
        return S4NDStem(dense, channels, self.patch_size, **self.factory)

    def _downsample(self, kind: str, before: int, after: int, grid: Size) -> nn.Sequential:
        norm = ChannelNorm(before, channels_last=kind == "conv", **self.factory)
        if kind == "conv":
            return nn.Sequential(norm, patch_conv(before, after, self.stage_stride, **self.factory))
        return nn.Sequential(norm, PooledS4ND(self._s4nd(before, grid), after, self.stage_stride, **self.factory))

    @torch.no_grad()
    def _init_weights(self, head_init_scale: float) -> None:
        for module in self.modules():
            if type(module) in (nn.Linear, nn.Conv2d, nn.Conv3d):  # S4ND's own linear maps keep torch's
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.get_parameter("bias"))
        if isinstance(self.head.fc, nn.Linear):
            self.head.fc.weight.mul_(head_init_scale)

    def _stages(self) -> list[S4NDStage]:
        return [stage for stage in self.stages if isinstance(stage, S4NDStage)]

    # Forward passes

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, *img_size) -> the last stage's map (B, C, *grid)."""
        out: Tensor = self.stages(self.stem(x))
        return out

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map (B, C, *grid) -> logits (B, num_classes), or normalized pooled features (B, C) for `pre_logits`."""
        out: Tensor = self.head(x, pre_logits)
        return out

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, *img_size) -> logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]] | dict[str, Tensor | list[Tensor]]:
        """Maps after chosen stages.

        Args:
            x: (B, in_chans, *img_size).
            indices: last n stages, chosen stages, or all for None.
            norm: has no effect: the only norm after the stages belongs to the head.
            stop_early: run no further than the last chosen stage.
            output_fmt: "NCHW", (B, C, *grid); or "NLC", (B, positions, C).
            intermediates_only: leave out the final features.
            output_dict: return a dict with `image_features` and `image_intermediates`.

        Raises:
            ValueError: unknown `output_fmt`.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt={output_fmt!r}: choose from NCHW, NLC")
        taken, last = feature_take_indices(len(self.stages), indices)
        maps: list[Tensor] = []
        x = self.stem(x)
        for i, stage in enumerate(self._stages()[: last + 1] if stop_early else self._stages()):
            x = stage(x)
            if i in taken:
                maps.append(x if output_fmt == "NCHW" else x.flatten(2).transpose(1, 2))
        if output_dict:
            parts: dict[str, Tensor | list[Tensor]] = {} if intermediates_only else {"image_features": x}
            return parts | {"image_intermediates": maps}
        return maps if intermediates_only else (x, maps)

    # timm's handles

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages after the last of `indices`, and on request the head (with its norm)."""
        taken, last = feature_take_indices(len(self.stages), indices)
        self.stages = nn.Sequential(*self._stages()[: last + 1])
        if prune_head:
            self.reset_classifier(0, "")
        return list(taken)

    def get_classifier(self) -> nn.Module:
        """The head's linear layer, or Identity for num_classes=0."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh head for `num_classes` (0 for none), and another pooling if given."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)
        record_model_args(self, num_classes=num_classes, global_pool=self.head.global_pool)

    def set_input_size(self, img_size: int | Size) -> None:
        """Change the nominal input size, and with it the reach of the kernels (the stem's excepted)."""
        self.img_size = self._axes(img_size)
        for stage, grids in zip(self._stages(), self._grids(self.img_size, len(self.stages)), strict=True):
            stage.grids = grids
            if not self.dynamic_img_size:
                for place, grid in zip((stage.downsample, stage.blocks), grids, strict=True):
                    for module in place.modules():
                        if isinstance(module, S4ND):
                            module.set_l_max(grid)
        if self.spatial_dims == 2:
            record_input_size(self, (self.img_size[0], self.img_size[1]))

    def set_rate(self, rate: float | Sequence[float]) -> None:
        """Sampling step of the input as a multiple of that in training, for all axes or one an axis; 1 at first.

        The kernels are resampled and become `img_size` / rate long, so give images of that size.
        """
        set_rate(self, rate)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute every block in the backward pass instead of storing its activations."""
        for stage in self._stages():
            stage.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups for layer-wise learning-rate decay: stem, then block by block."""
        fine = [(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None)]
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else fine}

    def no_weight_decay(self) -> set[str]:
        """State-space parameters of more than one axis that weight decay leaves alone."""
        layers = ((name, module) for name, module in self.named_modules() if isinstance(module, S4ND))
        return {f"{prefix}.{name}" for prefix, layer in layers for name in layer.no_weight_decay()}

    def param_groups(self, lr: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """Optimizer groups with the state-space parameters' own rules; vectors do not decay, as published."""
        return param_groups(self, lr, weight_decay, decay_vectors=False)

    def convert_official_state_dict(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of the authors' ConvNeXt under our (timm's) names."""
        return convnext_state(state_dict)


def _divided(size: Size, divisor: Size) -> Size:
    if any(n < d for n, d in zip(size, divisor, strict=True)):
        raise ValueError(f"the input is too small: a map of {size} cannot be divided by {divisor}")
    return tuple(n // d for n, d in zip(size, divisor, strict=True))
