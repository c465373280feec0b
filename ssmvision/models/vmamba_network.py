"""The VMamba network, with the methods that timm asks of a model.

Source: Liu et al., "VMamba: Visual State Space Model" (arXiv 2401.10166), section 4 and figure 3. Parameter names are
those of the official code (MzeroMiko/VMamba), the final norm's and the head's excepted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.layers import SelectAdaptivePool2d, trunc_normal_
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ssmvision.layers.norm import LayerNorm
from ssmvision.layers.ss2d import SS2D
from ssmvision.layers.ss2d_blocks import Downsample, SS2DBlock, Stem, make_downsample, make_stem
from ssmvision.models._timm import record_input_size, record_model_args
from ssmvision.models.vmamba_official import from_official_kwargs, official_state

__all__ = ["VMamba", "VMambaStage"]

POOLS = ("avg", "max", "avgmax", "catavgmax", "")
STEM_STRIDE = 4
FORMATS = ("NCHW", "NHWC", "NLC")


class VMambaStage(nn.Module):
    """Blocks of one resolution, then the way to the next.

    Args:
        blocks: applied in order.
        to_next: downsampling, or `nn.Identity` after the last stage.

    Shape:
        (B, H, W, C) -> (B, H', W', C').
    """

    def __init__(self, blocks: Sequence[nn.Module], to_next: nn.Module) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.blocks = nn.Sequential(*blocks)
        self.downsample = to_next

    def mix(self, x: Tensor) -> Tensor:
        """The blocks alone: (B, H, W, C) -> (B, H, W, C)."""
        recompute = self.grad_checkpointing and torch.is_grad_enabled()
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Blocks and downsampling."""
        out: Tensor = self.downsample(self.mix(x))
        return out


class VMamba(nn.Module):
    """VMamba: a convolutional stem and four stages of SS2D blocks, each at half the resolution of the last.

    Maps are channels-last inside and from `forward_features`; no parameter depends on the input size.

    Args:
        img_size: nominal input size (H, W) in pixels, for timm's records.
        in_chans, num_classes: input channels; classes of the head, 0 for none.
        global_pool: "avg", "max", "avgmax", "catavgmax" (both, side by side) or "" (none).
        depths, dims: blocks and channels of each stage.
        d_state, expand: states per channel; inner width of SS2D / channels.
        stem: "overlap" or "patch"; see `ssmvision.layers.ss2d_blocks.make_stem`.
        downsample: "overlap", "patch" or "merge"; see `ssmvision.layers.ss2d_blocks.make_downsample`.
        mlp_ratio: hidden width of the blocks' MLP / channels; 0 for blocks without MLP.
        ss2d_args: further arguments of every `SS2D`.
        drop_rate, mlp_drop_rate, drop_path_rate: dropout before the head; in the MLPs; stochastic depth of the last
            block, growing linearly from 0 at the first.
        dynamic_img_size: for timm's sake: inputs of any size always run.
        ssm_weight_decay: let timm's optimisers decay A_logs and the step-size biases, as the published training did;
            False excludes them, as Mamba's authors intend.
        device, dtype: of the parameters.

    Shape:
        (B, in_chans, H, W) -> (B, num_classes), H and W at least 4 with the "patch" stem.

    Raises:
        ValueError: an option has no such value, or `depths` and `dims` differ in length; from forward, an image
            smaller than the network's smallest.
    """

    output_fmt = "NHWC"  # of forward_features, as timm's models tell it

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        depths: Sequence[int] = (2, 2, 8, 2),
        dims: Sequence[int] = (96, 192, 384, 768),
        d_state: int = 1,
        expand: float = 1.0,
        stem: Stem = "overlap",
        downsample: Downsample = "overlap",
        mlp_ratio: float = 4.0,
        ss2d_args: Mapping[str, Any] | None = None,
        drop_rate: float = 0.0,
        mlp_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        dynamic_img_size: bool = False,
        ssm_weight_decay: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if len(depths) != len(dims) or not dims:
            raise ValueError(f"depths {tuple(depths)} and dims {tuple(dims)} need one entry a stage each")
        # Older timm releases know no device and dtype in their layers.
        self.factory: dict[str, Any] = {k: v for k, v in {"device": device, "dtype": dtype}.items() if v is not None}
        self.img_size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        self.in_chans, self.num_classes = in_chans, num_classes
        self.stem_kind, self.dynamic_img_size, self.ssm_weight_decay = stem, dynamic_img_size, ssm_weight_decay
        self.num_features = dims[-1]
        self.patch_embed = make_stem(stem, in_chans, dims[0], **self.factory)
        block = {"mlp_ratio": mlp_ratio, "mlp_drop_rate": mlp_drop_rate, **self.factory}
        block["ss2d"] = {"d_state": d_state, "expand": expand} | dict(ss2d_args or {})
        self.layers = nn.ModuleList(self._new_stages(depths, dims, downsample, block, drop_path_rate))
        self.feature_info = [
            {"num_chs": dim, "reduction": STEM_STRIDE * 2**i, "module": f"layers.{i}"} for i, dim in enumerate(dims)
        ]
        self.norm: nn.Module = LayerNorm(dims[-1], **self.factory)
        self._set_pool(global_pool)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = self._new_head(num_classes, self.factory)
        self._init_weights()

    @classmethod
    def from_official_kwargs(cls, **kwargs: Any) -> VMamba:
        """The network that the official `VSSM(**kwargs)` is.

        Raises:
            ValueError: an option is unknown, or asks for something that this network does not have.
        """
        return cls(**from_official_kwargs(kwargs))

    # Construction

    def _new_stages(
        self, depths: Sequence[int], dims: Sequence[int], kind: Downsample, block: dict[str, Any], drop_path_rate: float
    ) -> list[VMambaStage]:
        rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist())
        stages = []
        for i, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
            blocks = [SS2DBlock(dim, drop_path=next(rates), **block) for _ in range(depth)]
            last = i == len(dims) - 1
            to_next = nn.Identity() if last else make_downsample(kind, dim, dims[i + 1], **self.factory)
            stages.append(VMambaStage(blocks, to_next))
        return stages

    def _set_pool(self, global_pool: str) -> None:
        if global_pool not in POOLS:
            raise ValueError(f"global_pool={global_pool!r}: choose from {', '.join(map(repr, POOLS))}")
        self.global_pool = global_pool
        self.pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=bool(global_pool), input_fmt="NHWC")
        self.head_hidden_size = self.num_features * self.pool.feat_mult()

    def _new_head(self, num_classes: int, factory: dict[str, Any]) -> nn.Module:
        if num_classes <= 0:
            return nn.Identity()
        head = nn.Linear(self.head_hidden_size, num_classes, **factory)
        trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
        return head

    def _init_weights(self) -> None:
        """Linear layers as Swin's; convolutions and state-space parameters keep their own start, as published."""
        for module in self.layers.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def _stages(self) -> list[VMambaStage]:
        return [stage for stage in self.layers if isinstance(stage, VMambaStage)]

    # Forward passes

    def embed(self, x: Tensor) -> Tensor:
        """The stem: (B, in_chans, H, W) -> (B, h, w, dims[0])."""
        smallest = STEM_STRIDE if self.stem_kind == "patch" else 1
        if x.dim() != 4 or min(x.shape[-2:]) < smallest:
            wanted = f"(B, {self.in_chans}, H, W) with sides of at least {smallest} pixels"
            raise ValueError(f"VMamba takes images {wanted}, got {tuple(x.shape)}")
        # cuDNN would otherwise convolve channels-first, and its result be turned round.
        out: Tensor = self.patch_embed(x.contiguous(memory_format=torch.channels_last) if x.is_cuda else x)
        return out

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> the normed map of the last stage (B, h, w, C)."""
        x = self.embed(x)
        for stage in self.layers:
            x = stage(x)
        out: Tensor = self.norm(x)
        return out

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map (B, h, w, C) -> logits (B, num_classes), or the pooled features for `pre_logits`."""
        x = self.head_drop(self.pool(x))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, num_classes)."""
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
        """Maps after the blocks of chosen stages, before their downsampling.

        Args:
            x: (B, in_chans, H, W).
            indices: last n stages, chosen stages, or all for None.
            norm: apply the final norm to the last stage's map; the others have none.
            stop_early: run no further than the last chosen stage.
            output_fmt: "NCHW", (B, C, h, w); "NHWC", (B, h, w, C); or "NLC", (B, h * w, C).
            intermediates_only: leave out the final features.
            output_dict: return a dict with `image_features` and `image_intermediates`.

        Returns:
            the final features and the intermediates, unless asked otherwise. The former are those of
            `forward_features`, or without norm where `stop_early` ends before the last stage.

        Raises:
            ValueError: unknown `output_fmt`.
        """
        if output_fmt not in FORMATS:
            raise ValueError(f"output_fmt={output_fmt!r}: choose from {', '.join(FORMATS)}")
        taken, last = feature_take_indices(len(self.layers), indices)
        final = len(self.layers) - 1
        maps: list[Tensor] = []
        x = self.embed(x)
        for i, stage in enumerate(self._stages()[: last + 1] if stop_early else self._stages()):
            x = stage.mix(x)
            normed = self.norm(x) if i == final else x
            if i in taken:
                maps.append(_as_format(normed if norm else x, output_fmt))
            x = normed if i == final or (stop_early and i == last) else stage.downsample(x)
        if output_dict:
            parts: dict[str, Tensor | list[Tensor]] = {} if intermediates_only else {"image_features": x}
            return parts | {"image_intermediates": maps}
        return maps if intermediates_only else (x, maps)

    # timm's handles

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages after the last of `indices`, and on request the final norm and the head.

        Where stages go, so do norm and head, which fit the last stage only.
        """
        taken, last = feature_take_indices(len(self.layers), indices)
        shortened = last + 1 < len(self.layers)
        self.layers = self.layers[: last + 1]
        self._stages()[-1].downsample = nn.Identity()
        if shortened:
            self.num_features = self.feature_info[last]["num_chs"]
        if prune_norm or shortened:
            self.norm = nn.Identity()
        if prune_head or shortened:
            self.reset_classifier(0, "")
        return list(taken)

    def get_classifier(self) -> nn.Module:
        """The head: a linear layer, or Identity for num_classes=0."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh head for `num_classes` (0 for none), and another pooling if given."""
        self._set_pool(self.global_pool if global_pool is None else global_pool)
        self.num_classes = num_classes
        weight = next(self.patch_embed.parameters())
        self.head = self._new_head(num_classes, {"device": weight.device, "dtype": weight.dtype})
        self.head.train(self.training)
        record_model_args(self, num_classes=num_classes, global_pool=self.global_pool)

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Change the nominal input size (H, W); no parameter depends on it."""
        self.img_size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        record_input_size(self, (self.img_size[0], self.img_size[1]))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute every block in the backward pass instead of storing its activations."""
        for stage in self._stages():
            stage.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups for layer-wise learning-rate decay: stem, then block by block.

        Downsampling and final norm go with the block before them.
        """
        fine = [
            (r"^layers\.(\d+)\.downsample", (99999,)),
            (r"^layers\.(\d+)\.blocks\.(\d+)", None),
            (r"^norm", (99999,)),
        ]
        return {"stem": r"^patch_embed", "blocks": [(r"^layers\.(\d+)", None), fine[-1]] if coarse else fine}

    def no_weight_decay(self) -> set[str]:
        """Parameters of more than one axis that weight decay leaves alone; see `ssm_weight_decay`."""
        if self.ssm_weight_decay:
            return set()
        layers = ((name, module) for name, module in self.named_modules() if isinstance(module, SS2D))
        return {f"{prefix}.{name}" for prefix, layer in layers for name in layer.no_weight_decay()}

    def convert_official_state_dict(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Official weights, of any release, under our names."""
        return official_state(state_dict)


def _as_format(x: Tensor, output_fmt: str) -> Tensor:
    """A map (B, h, w, C) in another layout."""
    if output_fmt == "NCHW":
        return x.permute(0, 3, 1, 2).contiguous()
    return x.flatten(1, 2) if output_fmt == "NLC" else x
