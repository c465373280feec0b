"""The Vision Mamba (Vim) network, with the methods that timm asks of a model.

Source: Zhu et al., "Vision Mamba: Efficient Visual Representation Learning with Bidirectional State Space Model"
(arXiv 2401.09417), section 3 and algorithm 1. Parameter names are those of the official code (hustvl/Vim).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
from timm.layers import global_pool_nlc, lecun_normal_, resample_patch_embed, trunc_normal_
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ssmvision.layers.class_token import ClassToken, class_token_rows, insert_class_tokens, split_class_tokens
from ssmvision.layers.norm import LayerNorm, RMSNorm
from ssmvision.layers.patch_embed import Grid, Size, StridedPatchEmbed
from ssmvision.layers.pos_embed import PosEmbedRule, resample_pos_embed
from ssmvision.layers.residual_mamba import ResidualMambaBlock
from ssmvision.models._timm import record_input_size, record_model_args
from ssmvision.models.vim_official import from_official_kwargs

__all__ = ["VisionMamba"]

POOLS = ("token", "avg", "max", "avgmax", "last", "max_logits", "")
NORMS = {"rms": RMSNorm, "layer": LayerNorm}
Intermediates = list[Tensor] | list[tuple[Tensor, Tensor]]


class VisionMamba(nn.Module):
    """Vision Mamba: patches and class token(s) through a stack of bidirectional Mamba mixers, then a linear head.

    Class tokens do not come first in general: `forward_features` returns them where `class_token` puts them, so
    slicing off `num_prefix_tokens` rows does not remove them; `split_tokens` does.

    On CUDA a block is about ten launches, so that small batches wait for the host. Inference and whole training steps
    (with a capturable optimiser) may be captured by `torch.cuda.graph` after a step or two outside of it, and the model
    by `torch.cuda.make_graphed_callables`; autocast then wants `cache_enabled=False`. Where memory is short,
    `mixer_args={"recompute": "all"}` stores little more than the residual stream and makes a training step a fifth
    longer.

    Args:
        img_size: nominal input size (H, W) in pixels.
        patch_size, stride: kernel and step of the patch embedding in pixels; stride None is the patch size.
        in_chans, num_classes: input channels; classes of the head, 0 for none.
        global_pool: "token" (the mean of the class tokens), "avg", "max" or "avgmax" over patch tokens, "last" (last
            token), "max_logits" (head on every token, then the maximum), "" (no pooling).
        embed_dim, depth: width and number of blocks.
        drop_rate, pos_drop_rate, drop_path_rate: dropout before the head; after the position embedding; stochastic
            depth of the last mixer's output, growing linearly from 0 at the first's.
        class_token: "middle" (row N // 2), "first", "double" (both ends) or "none".
        pos_embed: "learn" or "none".
        norm, norm_eps: "rms" or "layer", and its epsilon.
        divide_out: halve the sum of the two directions.
        d_state: states per channel of the scan.
        mixer_args: further arguments of every `MambaMixer`.
        residual_in_fp32: keep the residual stream in at least float32.
        dynamic_img_size: take any input size; the position embedding is resampled to its grid in the forward pass.
        ssm_weight_decay: let timm's optimisers decay A_log, as the published training did; False excludes A_log, D
            and the step-size biases, as Mamba's authors intend.
        device, dtype: of the parameters.

    Shape:
        (B, in_chans, H, W) -> (B, num_classes).

    Raises:
        ValueError: an option has no such value, or token pooling is asked of a model without class token.
    """

    def __init__(
        self,
        img_size: Size = 224,
        patch_size: Size = 16,
        stride: Size | None = None,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        embed_dim: int = 192,
        depth: int = 24,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        class_token: ClassToken = "middle",
        pos_embed: Literal["learn", "none"] = "learn",
        norm: Literal["rms", "layer"] = "rms",
        norm_eps: float = 1e-5,
        divide_out: bool = True,
        d_state: int = 16,
        mixer_args: Mapping[str, Any] | None = None,
        residual_in_fp32: bool = True,
        dynamic_img_size: bool = False,
        ssm_weight_decay: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if norm not in NORMS or pos_embed not in ("learn", "none"):
            raise ValueError(f"norm={norm!r}, pos_embed={pos_embed!r}: choose from {', '.join(NORMS)}; learn, none")
        self.num_classes, self.in_chans = num_classes, in_chans
        self.embed_dim = self.num_features = self.head_hidden_size = embed_dim
        self.class_token, self.global_pool = class_token, global_pool
        self.num_class_tokens = len(class_token_rows(class_token, 0))
        # timm slices this many rows off the front: only those class tokens that are there.
        self.num_prefix_tokens = int(class_token in ("first", "double"))
        self._check_pool(global_pool)
        self.dynamic_img_size, self.ssm_weight_decay = dynamic_img_size, ssm_weight_decay
        self.grad_checkpointing = False
        factory: dict[str, Any] = {"device": device, "dtype": dtype}

        patches = StridedPatchEmbed(img_size, patch_size, stride, in_chans, embed_dim, not dynamic_img_size, **factory)
        self._add_token_parameters(patches.num_patches if pos_embed == "learn" else None, factory)
        self.patch_embed = patches
        self.pos_drop = nn.Dropout(pos_drop_rate)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = self._new_head(num_classes, factory)
        mixer = {"d_state": d_state, "bidirectional": True, "merge": "mean" if divide_out else "sum"}
        mixer |= dict(mixer_args or {}) | factory
        make_norm = partial(NORMS[norm], embed_dim, eps=norm_eps, **factory)
        self.layers = nn.ModuleList(
            ResidualMambaBlock(embed_dim, make_norm(), mixer, drop_path_rate * share, residual_in_fp32)
            for share in _shares(depth)
        )
        self.norm_f: nn.Module = make_norm()
        step = patches.feat_ratio()
        self.feature_info = [{"module": f"layers.{i}", "num_chs": embed_dim, "reduction": step} for i in range(depth)]
        self.init_weights()

    def _add_token_parameters(self, positions: int | None, factory: dict[str, Any]) -> None:
        names = {"middle": ["cls_token"], "first": ["cls_token"], "double": ["cls_token_head", "cls_token_tail"]}
        self.class_token_names = tuple(names.get(self.class_token, ()))
        for name in self.class_token_names:
            self.register_parameter(name, nn.Parameter(torch.empty(1, 1, self.embed_dim, **factory)))
        self.pos_embed: nn.Parameter | None = None
        if positions is not None:
            rows = positions + self.num_class_tokens
            self.pos_embed = nn.Parameter(torch.empty(1, rows, self.embed_dim, **factory))

    @classmethod
    def from_official_kwargs(cls, **kwargs: Any) -> VisionMamba:
        """The model that the official `VisionMamba(**kwargs)` builds; see `vim_official` for what is refused."""
        return cls(**from_official_kwargs(kwargs))

    @torch.no_grad()
    def init_weights(self) -> None:
        """Official initialisation; the mixers have set their scan parameters themselves."""
        for name in (*self.class_token_names, "pos_embed"):
            parameter = getattr(self, name)
            if parameter is not None:
                trunc_normal_(parameter, std=0.02)
        lecun_normal_(self.patch_embed.proj.weight)
        if self.patch_embed.proj.bias is not None:
            self.patch_embed.proj.bias.zero_()
        for block in self._blocks():
            nn.init.kaiming_uniform_(block.mixer.out_proj.weight, a=math.sqrt(5))
            block.mixer.out_proj.weight.div_(math.sqrt(len(self.layers)))
            for linear in (block.mixer.in_proj, block.mixer.out_proj):
                if linear.bias is not None:
                    linear.bias.zero_()

    def _new_head(self, num_classes: int, factory: dict[str, Any]) -> nn.Module:
        if num_classes <= 0:
            return nn.Identity()
        head = nn.Linear(self.embed_dim, num_classes, **factory)
        trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
        return head

    def _check_pool(self, pool: str) -> None:
        if pool not in POOLS:
            raise ValueError(f"global_pool={pool!r}: choose from {', '.join(map(repr, POOLS))}")
        if pool == "token" and not self.num_class_tokens:
            raise ValueError("global_pool='token' needs a class token; use global_pool='avg' with class_token='none'")

    def _blocks(self) -> list[ResidualMambaBlock]:
        return [block for block in self.layers if isinstance(block, ResidualMambaBlock)]

    # Tokens

    def class_token_rows(self, tokens: int) -> tuple[int, ...]:
        """Rows of the class tokens in a sequence of `tokens` rows, them included."""
        return class_token_rows(self.class_token, tokens - self.num_class_tokens)

    def split_tokens(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Patch tokens (B, N, C) in row-major order and class tokens (B, T, C) of a sequence (B, N + T, C)."""
        return split_class_tokens(tokens, self.class_token_rows(tokens.shape[1]))

    def embed(self, x: Tensor) -> Tensor:
        """Patch tokens with class token(s) and position embedding, (B, C, H, W) -> (B, N + T, D)."""
        grid = self.patch_embed.dynamic_feat_size((x.shape[-2], x.shape[-1]))
        tokens: Tensor = self.patch_embed(x)
        rows = class_token_rows(self.class_token, tokens.shape[1])
        tokens = insert_class_tokens(tokens, tuple(getattr(self, name) for name in self.class_token_names), rows)
        if self.pos_embed is not None:
            tokens = tokens + resample_pos_embed(self.pos_embed, self.patch_embed.grid_size, grid, self.class_token)
        out: Tensor = self.pos_drop(tokens)
        return out

    def _run(self, block: nn.Module, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.grad_checkpointing and torch.is_grad_enabled():
            hidden, residual = checkpoint(block, hidden, residual, use_reentrant=False)
        else:
            hidden, residual = block(hidden, residual)
        assert residual is not None
        return hidden, residual

    # Forward passes

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> normalised tokens (B, N + T, D), class tokens in place."""
        hidden, residual = self.embed(x), None
        for block in self.layers:
            hidden, residual = self._run(block, hidden, residual)
        out: Tensor = self.norm_f(hidden if residual is None else residual + hidden)
        return out

    def pool(self, tokens: Tensor, pool_type: str | None = None) -> Tensor:
        """(B, N + T, D) -> (B, D), or the tokens unchanged for "" and "max_logits"."""
        pool_type = self.global_pool if pool_type is None else pool_type
        self._check_pool(pool_type)
        if pool_type in ("", "max_logits"):
            return tokens
        if pool_type == "last":
            return tokens[:, -1]
        patches, classes = self.split_tokens(tokens)
        if pool_type == "token":
            return classes.mean(1)
        pooled: Tensor = global_pool_nlc(patches, pool_type=pool_type, num_prefix_tokens=0)
        return pooled

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens (B, N + T, D) -> logits (B, num_classes), or pooled features (B, D) for `pre_logits`."""
        pooled: Tensor = self.head_drop(self.pool(x))
        if pre_logits:
            return pooled
        logits: Tensor = self.head(pooled)
        return logits.amax(1) if self.global_pool == "max_logits" else logits

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
    ) -> Intermediates | tuple[Tensor, Intermediates] | dict[str, Tensor | Intermediates]:
        """Features after chosen blocks: the residual stream with that block's output added, class tokens removed.

        Args:
            x: (B, in_chans, H, W).
            indices: last n blocks, chosen blocks, or all for None.
            return_prefix_tokens: pair every intermediate with its class tokens (B, T, D), wherever they sit.
            norm: apply the final norm to the intermediates.
            stop_early: run no further than the last chosen block.
            output_fmt: "NCHW", (B, D, h, w); or "NLC", (B, h * w, D).
            intermediates_only: leave out the final features.
            output_dict: return a dict with `image_features`, `image_intermediates`, `image_intermediates_prefix`.

        Returns:
            the final features as `forward_features` gives them and the intermediates, unless asked otherwise.

        Raises:
            ValueError: unknown `output_fmt`.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt={output_fmt!r}: choose from NCHW, NLC")
        taken, last = feature_take_indices(len(self.layers), indices)
        grid = self.patch_embed.dynamic_feat_size((x.shape[-2], x.shape[-1]))
        hidden, residual = self.embed(x), None
        patches, classes = [], []
        for i, block in enumerate(self.layers[: last + 1] if stop_early else self.layers):
            hidden, residual = self._run(block, hidden, residual)
            if i in taken:
                stream = residual + hidden
                spatial, tokens = self.split_tokens(self.norm_f(stream) if norm else stream)
                patches.append(spatial.transpose(1, 2).unflatten(2, grid) if output_fmt == "NCHW" else spatial)
                classes.append(tokens)
        final = None if intermediates_only else self.norm_f(hidden if residual is None else residual + hidden)
        with_classes = return_prefix_tokens and self.num_class_tokens > 0
        if output_dict:
            parts = {"image_features": final, "image_intermediates": patches, "image_intermediates_prefix": classes}
            dropped = {"image_features": final is None, "image_intermediates_prefix": not with_classes}
            return {key: part for key, part in parts.items() if part is not None and not dropped.get(key, False)}
        features: Intermediates = list(zip(patches, classes, strict=True)) if with_classes else patches
        return features if final is None else (final, features)

    # timm's handles

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the blocks after the last of `indices`, and on request the final norm and the head."""
        taken, last = feature_take_indices(len(self.layers), indices)
        self.layers = self.layers[: last + 1]
        if prune_norm:
            self.norm_f = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return list(taken)

    def get_classifier(self) -> nn.Module:
        """The head: a linear layer, or Identity for num_classes=0."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh head for `num_classes` (0 for none), and another pooling if given."""
        if global_pool is not None:
            self._check_pool(global_pool)
            self.global_pool = global_pool
        self.num_classes = num_classes
        weight = self.patch_embed.proj.weight
        self.head = self._new_head(num_classes, {"device": weight.device, "dtype": weight.dtype})
        self.head.train(self.training)
        record_model_args(self, num_classes=num_classes, global_pool=self.global_pool)

    def set_input_size(
        self, img_size: Size | None = None, patch_size: Size | None = None, stride: Size | None = None
    ) -> None:
        """Change input size, patch size or stride; the kernel and the position embedding are resampled."""
        old_grid = self.patch_embed.grid_size
        self.patch_embed.set_input_size(img_size, patch_size, stride)
        if self.pos_embed is not None and self.patch_embed.grid_size != old_grid:
            moved = resample_pos_embed(self.pos_embed.detach(), old_grid, self.patch_embed.grid_size, self.class_token)
            self.pos_embed = nn.Parameter(moved, requires_grad=self.pos_embed.requires_grad)
        for info in self.feature_info:
            info["reduction"] = self.patch_embed.feat_ratio()
        patch = self.patch_embed
        record_input_size(self, patch.img_size, patch_size=patch.patch_size, stride=patch.stride)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute every block in the backward pass instead of storing its activations."""
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups for layer-wise learning-rate decay: stem, then block by block, the final norm last."""
        stem = r"^cls_token|^pos_embed|^patch_embed"
        return {"stem": stem, "blocks": r"^layers" if coarse else [(r"^layers\.(\d+)", None), (r"^norm_f", (99999,))]}

    def no_weight_decay(self) -> set[str]:
        """Parameters of more than one axis that weight decay leaves alone; see `ssm_weight_decay`."""
        names = {"pos_embed", *self.class_token_names}
        if not self.ssm_weight_decay:
            for i, block in enumerate(self._blocks()):
                names |= {f"layers.{i}.mixer.{name}" for name in block.mixer.no_weight_decay()}
        return names

    # Weights

    def convert_official_state_dict(
        self,
        state_dict: Mapping[str, Tensor],
        pos_embed_rule: PosEmbedRule = "class_aware",
        source_grid: Grid | None = None,
    ) -> dict[str, Tensor]:
        """Official weights fitted to this model: patch kernel and position embedding are resampled where they differ.

        Args:
            state_dict: official keys, without wrapper.
            pos_embed_rule: see `resample_pos_embed`.
            source_grid: patch grid (h, w) of the weights, where they come from a non-square image.

        Raises:
            ValueError: the position embedding fits no grid, so `source_grid` is needed.
        """
        out = dict(state_dict)
        kernel = out.get("patch_embed.proj.weight")
        if kernel is not None and kernel.dim() == 4 and tuple(kernel.shape[-2:]) != self.patch_embed.patch_size:
            out["patch_embed.proj.weight"] = resample_patch_embed(kernel, list(self.patch_embed.patch_size))
        rows = out.get("pos_embed")
        if rows is not None and self.pos_embed is not None:
            old = source_grid or self._source_grid(rows.shape[1] - self.num_class_tokens)
            out["pos_embed"] = resample_pos_embed(
                rows, old, self.patch_embed.grid_size, self.class_token, pos_embed_rule
            )
        return out

    def _source_grid(self, patches: int) -> Grid:
        """Grid of weights with `patches` position rows: the pretrained size's, else square, else this model's."""
        size = getattr(self, "pretrained_cfg", {}).get("input_size", (3, 224, 224))[-2:]
        candidates = [self.patch_embed.dynamic_feat_size(size)] if min(size) >= max(self.patch_embed.patch_size) else []
        root = math.isqrt(max(patches, 0))
        for grid in (*candidates, (root, root), self.patch_embed.grid_size):
            if grid[0] * grid[1] == patches:
                return grid
        raise ValueError(
            f"the weights' position embedding has {patches} patch rows, no square grid; pass source_grid=(h, w)"
        )


def _shares(depth: int) -> list[float]:
    """Share of drop_path_rate at every block's output; the last one always has all of it."""
    return [i / (depth - 1) if depth > 1 else 1.0 for i in range(depth)]
