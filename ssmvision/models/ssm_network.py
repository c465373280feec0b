"""A backbone of stages of blocks with any token mixer, and the methods that timm asks of a model.

Pre-norm residual blocks as in Dosovitskiy et al., "An image is worth 16x16 words" (arXiv 2010.11929), stages as in Liu
et al., "A ConvNet for the 2020s" (arXiv 2201.03545); the mixers are those of `ssmvision.layers.mixers`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
from timm.layers import trunc_normal_
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from ssmvision.layers.channel_mixers.moe import auxiliary_loss
from ssmvision.layers.layouts import check_layout_args, plan_blocks
from ssmvision.layers.mixers.registry import MixerLike
from ssmvision.layers.norm import LayerNorm
from ssmvision.layers.s4nd import set_rate
from ssmvision.layers.s4nd_head import POOLS
from ssmvision.layers.s4nd_optim import param_groups
from ssmvision.layers.sincos import SinCosPosition
from ssmvision.layers.ssm_stage import BlockSettings, PatchConv, SSMStage
from ssmvision.models._timm import record_input_size, record_model_args

__all__ = ["SSMNetwork"]

Size = tuple[int, ...]
FORMATS = ("NCHW", "NHWC", "NLC")


class SSMNetwork(nn.Module):
    """Patches, stages of `MixerBlock`s each at half the resolution of the last, norm, mean, linear head.

    Maps are channels-last inside and from `forward_features`; no parameter depends on the input size, and any size
    runs that leaves one position in the last stage.

    Args:
        img_size: nominal input size in pixels, one int or one an axis, for timm's records.
        in_chans, num_classes: input channels; classes of the head, 0 for none.
        global_pool: "avg", "max", "avgmax" or "" (none).
        spatial_dims: 2 or 3.
        patch_size: pixels from one patch to the next, one int or one an axis.
        depths, dims: blocks and channels of each stage.
        mixer: token mixer: a name of `ssmvision.layers.mixers.mixer_names()`, a `Mixer`, or a callable.
        mixer_args: its options.
        gate: its option of this name, for the mixers that have one.
        layout: a name of `ssmvision.layers.layouts.layout_names()`: which blocks have other mixers.
        channel_mixer: a name of `ssmvision.layers.channel_mixers.channel_mixer_names()`.
        channel_mixer_args: its options.
        layout_args: options of the mixers that the layout adds, by their names.
        pos_embed: "sincos", a fixed code at the patches, or "none".
        patch_norm: norm after the patches.
        drop_rate, drop_path_rate: dropout before the head; stochastic depth of the last block, growing linearly from 0
            at the first.
        dynamic_img_size: for timm's sake: inputs of any size always run.
        device, dtype: of the parameters.

    Shape:
        (B, in_chans, *img_size) -> (B, num_classes).

    Raises:
        ValueError: an unknown name or option, or settings that contradict each other; from forward, an image smaller
            than the network's smallest.
    """

    output_fmt = "NHWC"  # of forward_features, as timm's models tell it

    def __init__(
        self,
        img_size: int | Sequence[int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        spatial_dims: int = 2,
        patch_size: int | Sequence[int] = 4,
        depths: Sequence[int] = (3, 3, 9, 3),
        dims: Sequence[int] = (96, 192, 384, 768),
        mixer: MixerLike = "s4nd",
        mixer_args: Mapping[str, Any] | None = None,
        gate: str | None = None,
        layout: str = "uniform",
        channel_mixer: str = "mlp",
        channel_mixer_args: Mapping[str, Any] | None = None,
        layout_args: Mapping[str, Mapping[str, Any]] | None = None,
        pos_embed: Literal["sincos", "none"] = "sincos",
        patch_norm: bool = True,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        dynamic_img_size: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check(spatial_dims, depths, dims, pos_embed)
        self.spatial_dims, self.in_chans, self.num_classes = spatial_dims, in_chans, num_classes
        self.patch_size, self.dynamic_img_size = self._axes(patch_size), dynamic_img_size
        self.img_size = self._axes(img_size)
        self.num_features = self.head_hidden_size = dims[-1]
        self.grad_checkpointing = False
        options = dict(mixer_args or {}) | ({} if gate is None else {"gate": gate})
        blocks = BlockSettings(mixer, options, channel_mixer, dict(channel_mixer_args or {}), dict(layout_args or {}))
        # Mixers of other people's making need not know device and dtype.
        with nullcontext() if device is None else torch.device(device):
            self.patch_embed = PatchConv(in_chans, dims[0], self.patch_size, norm=patch_norm)
            self.pos_embed: nn.Module = SinCosPosition() if pos_embed == "sincos" else nn.Identity()
            self.stages = nn.ModuleList(self._new_stages(depths, dims, layout, blocks, drop_path_rate))
            self.norm: nn.Module = LayerNorm(dims[-1])
        self.feature_info = self._feature_info(dims)
        self._set_pool(global_pool)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = self._new_head(num_classes, {"device": device})
        self._init_weights()
        self.to(dtype=dtype)

    # Construction

    def _axes(self, size: int | Sequence[int]) -> Size:
        sizes = (size,) * self.spatial_dims if isinstance(size, int) else tuple(int(n) for n in size)
        if len(sizes) != self.spatial_dims or min(sizes) < 1:
            raise ValueError(f"{sizes}: a {self.spatial_dims}D network needs one positive size an axis")
        return sizes

    def _new_stages(
        self, depths: Sequence[int], dims: Sequence[int], layout: str, blocks: BlockSettings, drop_path_rate: float
    ) -> list[SSMStage]:
        rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist())
        stages, plans = [], plan_blocks(layout, depths)
        check_layout_args(layout, plans, blocks.layout_args)
        for s, plan in enumerate(plans):
            down = PatchConv(dims[s - 1], dims[s], (2,) * self.spatial_dims, norm_first=True) if s else nn.Identity()
            settings = [(step, next(rates)) for step in plan]
            stages.append(SSMStage(dims[s], self.spatial_dims, down, blocks, settings))
        return stages

    def _feature_info(self, dims: Sequence[int]) -> list[dict[str, Any]]:
        """One entry a stage, or, where there is only one stage, one a block."""
        reduction = max(self.patch_size)
        if len(dims) == 1:
            places = [f"stages.0.blocks.{b}" for b in range(len(self._stages()[0].blocks))]
            return [{"num_chs": dims[0], "reduction": reduction, "module": place} for place in places]
        return [{"num_chs": dim, "reduction": reduction * 2**s, "module": f"stages.{s}"} for s, dim in enumerate(dims)]

    def _set_pool(self, global_pool: str) -> None:
        if global_pool not in POOLS:
            raise ValueError(f"global_pool={global_pool!r}: choose from {', '.join(map(repr, POOLS))}")
        self.global_pool = global_pool

    def _new_head(self, num_classes: int, factory: dict[str, Any]) -> nn.Module:
        if num_classes <= 0:
            return nn.Identity()
        head = nn.Linear(self.num_features, num_classes, **factory)
        trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
        return head

    def _init_weights(self) -> None:
        """Patches and channel mixers as in vision transformers; token mixers keep their own start."""
        convs = [module.proj for module in self.modules() if isinstance(module, PatchConv)]
        mixers = [mixer for stage in self._stages() for mixer in stage.channel_mixers()]
        linear = [module for mixer in mixers for module in mixer.modules() if isinstance(module, nn.Linear)]
        for layer in (*convs, *linear):
            trunc_normal_(layer.weight, std=0.02)
            if isinstance(layer.bias, Tensor):
                nn.init.zeros_(layer.bias)

    def _stages(self) -> list[SSMStage]:
        return [stage for stage in self.stages if isinstance(stage, SSMStage)]

    # Forward passes

    def embed(self, x: Tensor) -> Tensor:
        """Patches with their positions: (B, in_chans, *img_size) -> (B, *grid, dims[0])."""
        smallest = tuple(p * 2 ** (len(self.stages) - 1) for p in self.patch_size)
        fits = x.dim() == self.spatial_dims + 2 and x.shape[1] == self.in_chans
        if not fits or any(size < least for size, least in zip(x.shape[2:], smallest, strict=True)):
            wanted = f"(B, {self.in_chans}, *size) with a size of at least {smallest}"
            raise ValueError(f"{type(self).__name__} takes images {wanted}, got {tuple(x.shape)}")
        if x.is_cuda and self.spatial_dims == 2:
            x = x.contiguous(memory_format=torch.channels_last)  # else the result would have to be turned round
        out: Tensor = self.pos_embed(self.patch_embed(x.movedim(1, -1)))
        return out

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, *img_size) -> the normed map of the last stage (B, *grid, C)."""
        x = self.embed(x)
        for stage in self.stages:
            x = stage(x)
        out: Tensor = self.norm(x)
        return out

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map (B, *grid, C) -> logits (B, num_classes), or the pooled features for `pre_logits`."""
        x = self.head_drop(POOLS[self.global_pool](x.movedim(-1, 1)))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, *img_size) -> (B, num_classes)."""
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
        """Maps after chosen stages, or blocks where there is only one stage.

        Args:
            x: (B, in_chans, *img_size).
            indices: last n, chosen, or all for None.
            norm: apply the final norm to the maps of the last stage; the others have none.
            stop_early: run no further than the last chosen place.
            output_fmt: "NCHW", (B, C, *grid); "NHWC", (B, *grid, C); or "NLC", (B, positions, C).
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
        taken, last = feature_take_indices(len(self.feature_info), indices)
        outputs, final = self._outputs(self.embed(x), last + 1 if stop_early else len(self.feature_info))
        maps = [
            _as_format(self.norm(out) if norm and self._is_final(place) else out, output_fmt)
            for place, out in enumerate(outputs)
            if place in taken
        ]
        if output_dict:
            parts: dict[str, Tensor | list[Tensor]] = {} if intermediates_only else {"image_features": final}
            return parts | {"image_intermediates": maps}
        return maps if intermediates_only else (final, maps)

    def _outputs(self, x: Tensor, places: int) -> tuple[list[Tensor], Tensor]:
        """The maps of the first places of `feature_info`, and the last of them normed if it is of the last stage."""
        if len(self.stages) == 1:
            outputs = self._stages()[0].outputs(x, places)
        else:
            outputs = []
            for stage in self._stages()[:places]:
                outputs.append(stage(outputs[-1] if outputs else x))
        return outputs, self.norm(outputs[-1]) if self._is_final(places - 1) else outputs[-1]

    def _is_final(self, place: int) -> bool:
        return len(self.stages) == 1 or place == len(self.stages) - 1

    # timm's handles

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what comes after the last of `indices`, and on request the final norm and the head.

        Where stages go, so do norm and head, which fit the last stage only.
        """
        taken, last = feature_take_indices(len(self.feature_info), indices)
        shortened = len(self.stages) > 1 and last + 1 < len(self.stages)
        if len(self.stages) == 1:
            self._stages()[0].shorten(last + 1)
        else:
            self.stages = self.stages[: last + 1]
        self.feature_info = self.feature_info[: last + 1]
        self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
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
        weight = self.patch_embed.proj.weight
        self.head = self._new_head(num_classes, {"device": weight.device, "dtype": weight.dtype})
        self.head.train(self.training)
        record_model_args(self, num_classes=num_classes, global_pool=self.global_pool)

    def set_input_size(self, img_size: int | Sequence[int]) -> None:
        """Change the nominal input size; no parameter depends on it."""
        self.img_size = self._axes(img_size)
        if self.spatial_dims == 2:
            record_input_size(self, (self.img_size[0], self.img_size[1]))

    def set_rate(self, rate: float | Sequence[float]) -> None:
        """Sampling step of the input as a multiple of that in training, for mixers with kernels in continuous time."""
        set_rate(self, rate)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute every block in the backward pass instead of storing its activations."""
        for stage in self._stages():
            stage.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups for layer-wise learning-rate decay: patches, then block by block, norm with the last."""
        fine = [
            (r"^stages\.(\d+)\.downsample", (0,)),
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            (r"^stages\.(\d+)\.shared", (99999,)),
            (r"^norm", (99999,)),
        ]
        stages = [(r"^stages\.(\d+)", None), fine[-1]]
        return {"stem": r"^patch_embed", "blocks": stages if coarse and len(self.stages) > 1 else fine}

    def no_weight_decay(self) -> set[str]:
        """Parameters of more than one axis that weight decay leaves alone: what the mixers say of theirs."""
        said = [(name, getattr(module, "no_weight_decay", None)) for name, module in self.named_modules() if name]
        return {f"{prefix}.{name}" for prefix, names in said if names is not None for name in names()}

    def auxiliary_loss(self) -> Tensor | None:
        """What a mixture of experts adds to the loss of the last training step; None without one, and once taken."""
        return auxiliary_loss(self)

    def param_groups(self, lr: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """Optimizer groups with the state-space parameters' own rules; vectors do not decay."""
        return param_groups(self, lr, weight_decay, decay_vectors=False, spared=self.no_weight_decay())


def _check(spatial_dims: int, depths: Sequence[int], dims: Sequence[int], pos_embed: str) -> None:
    if spatial_dims not in (2, 3) or pos_embed not in ("sincos", "none"):
        raise ValueError(
            f"spatial_dims={spatial_dims}, pos_embed={pos_embed!r}: choose from 2 or 3, 'sincos' or 'none'"
        )
    if len(depths) != len(dims) or not dims or min(depths) < 1:
        raise ValueError(f"depths {tuple(depths)} and dims {tuple(dims)} need one entry a stage each, of at least 1")


def _as_format(x: Tensor, output_fmt: str) -> Tensor:
    """A map (B, *grid, C) in another order."""
    if output_fmt == "NCHW":
        return x.movedim(-1, 1).contiguous()
    return x.flatten(1, -2) if output_fmt == "NLC" else x
