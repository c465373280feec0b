"""A Vision Transformer with 1D S4ND in place of attention.

Source: Nguyen et al., "S4ND" (arXiv 2210.06583), section 4.1 and appendix D: bidirectional S4 along the sequence of
patches in row-major order, no class token, no position embedding, mean pooling.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from timm.layers import DropPath, LayerNorm, Mlp, to_2tuple
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ssmvision.layers.s4nd import S4ND
from ssmvision.layers.s4nd_optim import param_groups
from ssmvision.models.s4nd_official import vit_state

__all__ = ["S4NDVisionTransformer"]

Size = int | tuple[int, int]
S4ND_ARGS: dict[str, Any] = {
    **{"kernel": "s4", "init": "legs", "n_ssm": 1, "channels": 2, "dt_min": 1e-3, "dt_max": 1e-1},
    **{"lr": 1e-3, "linear": False, "activation": "gelu", "final_act": "glu"},
}


class S4NDTokenBlock(nn.Module):
    """x + S4ND(norm(x)), then x + mlp(norm(x)), on tokens.

    Args:
        dim: width of the tokens.
        s4nd: arguments of the mixer.
        mlp_ratio: width of the hidden layer.
        drop_path, proj_drop: stochastic depth; dropout in mixer and MLP.
        norm_layer: norm over the last axis.
        device, dtype: of the parameters.
        attention: what timm tells every block about attention; there is none.

    Shape:
        (B, L, dim) -> (B, L, dim).
    """

    def __init__(
        self,
        dim: int,
        s4nd: Mapping[str, Any],
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        proj_drop: float = 0.0,
        norm_layer: Callable[..., nn.Module] = LayerNorm,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **attention: Any,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {k: v for k, v in {"device": device, "dtype": dtype}.items() if v is not None}
        self.norm1 = norm_layer(dim, **factory)
        self.mixer = S4ND(dim, dim=1, transposed=False, dropout=proj_drop, **s4nd, **factory)
        self.norm2 = norm_layer(dim, **factory)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=proj_drop, **factory)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = x + self.drop_path(self.mixer(self.norm1(x)))
        out: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return out


class S4NDVisionTransformer(VisionTransformer):
    """timm's Vision Transformer with S4ND blocks: patches, blocks, norm, mean over the tokens, linear head.

    Args:
        img_size, patch_size: nominal input size and patches (H, W) in pixels; the kernels are as long as the sequence.
        in_chans, num_classes, embed_dim, depth, mlp_ratio: of the network.
        global_pool: "avg", "max", "avgmax" or "".
        d_state: states of every 1D system.
        s4nd_args: further arguments of every `S4ND`, over those of the published configuration.
        drop_rate, proj_drop_rate, drop_path_rate: dropout before the head and in the blocks; stochastic depth.
        dynamic_img_size: take any input size, with kernels as long as the sequence at hand.
        device, dtype: of the parameters.

    Shape:
        (B, in_chans, H, W) -> (B, num_classes).
    """

    def __init__(
        self,
        img_size: Size = 224,
        patch_size: Size = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dim: int = 768,
        depth: int = 12,
        mlp_ratio: float = 4.0,
        d_state: int = 64,
        s4nd_args: Mapping[str, Any] | None = None,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        dynamic_img_size: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        mixer = {"d_state": d_state} | S4ND_ARGS | dict(s4nd_args or {})
        rates: dict[str, Any] = {
            "drop_rate": drop_rate,
            "proj_drop_rate": proj_drop_rate,
            "drop_path_rate": drop_path_rate,
        }
        factory: dict[str, Any] = {k: v for k, v in {"device": device, "dtype": dtype}.items() if v is not None}
        network: dict[str, Any] = {
            **{"img_size": img_size, "patch_size": patch_size, "in_chans": in_chans, "num_classes": num_classes},
            **{"global_pool": global_pool, "embed_dim": embed_dim, "depth": depth, "mlp_ratio": mlp_ratio},
            **{"class_token": False, "pos_embed": "none", "fc_norm": False, "dynamic_img_size": dynamic_img_size},
            **{"norm_layer": partial(LayerNorm, eps=1e-5), "block_fn": partial(S4NDTokenBlock, s4nd=mixer)},
        }
        super().__init__(**network, **rates, **factory)
        self._fit_kernels()

    def _fit_kernels(self) -> None:
        tokens = None if self.dynamic_img_size else self.patch_embed.num_patches
        for block in self._blocks():
            block.mixer.set_l_max(tokens)

    def _blocks(self) -> list[S4NDTokenBlock]:
        return [block for block in self.blocks if isinstance(block, S4NDTokenBlock)]

    def set_input_size(self, img_size: Size | None = None, patch_size: Size | None = None) -> None:
        """Change input or patch size; the patch kernel is resampled and the kernels reach over the new sequence."""
        super().set_input_size(
            None if img_size is None else to_2tuple(img_size), None if patch_size is None else to_2tuple(patch_size)
        )
        self._fit_kernels()

    def no_weight_decay(self) -> set[str]:
        """State-space parameters of more than one axis that weight decay leaves alone."""
        return {
            f"blocks.{i}.mixer.{n}" for i, block in enumerate(self._blocks()) for n in block.mixer.no_weight_decay()
        }

    def param_groups(self, lr: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """Optimizer groups with the state-space parameters' own rules; vectors do not decay, as published."""
        return param_groups(self, lr, weight_decay, decay_vectors=False)

    def convert_official_state_dict(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of the authors' network under our names."""
        return vit_state(state_dict)
