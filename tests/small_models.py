"""Small forms of all networks, for what each of them must pass. A new class of networks needs a row in `FORMS`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn

from ssmvision import models

CLASSES = 5


@dataclass(frozen=True)
class Form:
    """A network of few layers.

    Args:
        name: registered with timm, or a class of `ssmvision.models`.
        settings: its arguments.
        sizes: of one input, channels first; that of the first call, and others where the network takes any.
        inputs: of `forward`.
        graph_per_size: a compiled graph serves one size only.
    """

    name: str
    settings: Mapping[str, Any]
    sizes: tuple[tuple[int, ...], ...]
    inputs: int = 1
    graph_per_size: bool = False

    def build(self) -> nn.Module:
        """The network with the weights of seed 0."""
        torch.manual_seed(0)
        if self.name in models.__all__:
            network: nn.Module = getattr(models, self.name)(**self.settings)
            return network
        return timm.create_model(self.name, num_classes=CLASSES, **self.settings)

    def images(self, batch: int, size: tuple[int, ...] | None = None) -> tuple[Tensor, ...]:
        """Random inputs, of the first size by default."""
        generator = torch.Generator().manual_seed(batch)
        return tuple(torch.randn(batch, *(size or self.sizes[0]), generator=generator) for _ in range(self.inputs))


# Sizes of the first call differ from axis to axis: a compiler takes equal ones for one.
PICTURES = ((3, 32, 48), (3, 48, 40), (3, 64, 64))
VOLUMES = ((1, 8, 12, 6), (1, 6, 8, 8))
NET_3D = {"spatial_dims": 3, "in_channels": 1, "out_channels": CLASSES, "features_per_stage": (4, 8)}

FORMS = {
    "vim": Form(
        "vim_tiny",
        {"depth": 1, "embed_dim": 16, "img_size": (32, 48), "dynamic_img_size": True},
        ((3, 32, 48), (3, 48, 32), (3, 64, 64)),
    ),
    "vmamba": Form("vmamba_tiny", {"depths": (1, 1), "dims": (8, 12)}, PICTURES),
    "vmamba_vanilla": Form("vmamba_tiny_vanilla", {"depths": (1,), "dims": (8,)}, PICTURES),
    "s4nd_convnext": Form("s4nd_convnext_tiny", {"depths": (1, 1), "dims": (8, 12), "d_state": 4}, PICTURES),
    "s4nd_vit": Form(
        "s4nd_vit_base",
        {"depth": 1, "embed_dim": 16, "d_state": 4, "img_size": (32, 48)},
        ((3, 32, 48),),
        graph_per_size=True,
    ),
    "ssm_iso": Form("ssm_iso_tiny", {"depth": 1, "embed_dim": 8, "patch_size": 8}, PICTURES),
    "ssm_hier": Form("ssm_hier_tiny", {"depths": (1, 1), "dims": (8, 12)}, PICTURES),
    "fusion": Form(
        "FusionMamba",
        {"depths": (1,), "depths_decoder": (1,), "dims": (8,)},
        ((1, 16, 24), (1, 28, 16)),
        inputs=2,
    ),
    "umamba_bot": Form("UMambaBot", NET_3D, VOLUMES),
    "umamba_enc": Form("UMambaEnc", {**NET_3D, "input_size": VOLUMES[0][1:]}, VOLUMES[:1]),
    "useg_s4nd_bot": Form("USegS4NDBot", NET_3D, VOLUMES),
    "useg_s4nd_enc": Form("USegS4NDEnc", {**NET_3D, "input_size": VOLUMES[0][1:]}, VOLUMES),
}
