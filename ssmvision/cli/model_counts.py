"""Size and cost of every model, so that listing them need not build them; `measure` is where the numbers come from."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

__all__ = ["COUNTS", "NETWORKS", "full_size", "measure"]

VOLUME_AXES = 3

# Networks that timm does not build: a call of the class, the shapes of the inputs that it is counted with, and its
# paper's code.
NETWORKS: dict[str, tuple[str, dict[str, Any], tuple[tuple[int, ...], ...], str]] = {
    "FusionMamba": ("FusionMamba", {}, ((1, 256, 256),) * 2, "arXiv 2404.09498"),
    "FusionMamba.tiny": ("FusionMamba.tiny", {}, ((1, 256, 256),) * 2, "arXiv 2404.09498"),
    "UMambaBot": (
        "UMambaBot",
        {"spatial_dims": 3, "in_channels": 1, "out_channels": 2},
        ((1, 128, 128, 128),),
        "arXiv 2401.04722",
    ),
    "UMambaEnc": (
        "UMambaEnc",
        {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "input_size": 128},
        ((1, 128, 128, 128),),
        "arXiv 2401.04722",
    ),
}

# Parameters, and multiply-accumulates by the rule of `ssmvision.flops` for one input of the model's own size.
COUNTS: dict[str, tuple[int, int]] = {
    "s4nd_convnext_micro": (10_136_689, 536_530_944),
    "s4nd_convnext_tiny": (29_980_456, 4_497_415_680),
    "s4nd_convnext_tiny_full": (29_409_457, 4_757_054_976),
    "s4nd_convnext_tiny_stem": (30_007_057, 4_799_503_872),
    "s4nd_vit_base": (88_786_408, 17_471_649_792),
    "ssm_hier_small": (64_880_584, 10_778_045_952),
    "ssm_hier_tiny": (36_467_656, 5_537_865_216),
    "ssm_iso_small": (19_623_016, 3_551_640_576),
    "ssm_iso_tiny": (5_389_864, 908_779_008),
    "vim_base": (97_598_440, 19_230_504_960),
    "vim_small": (25_796_584, 5_083_634_688),
    "vim_small_stride8": (26_001_256, 18_837_593_088),
    "vim_tiny": (7_148_008, 1_408_912_896),
    "vim_tiny_stride8": (7_250_344, 5_220_724_224),
    "vmamba_base": (86_614_504, 15_057_135_616),
    "vmamba_base_s2l15": (88_557_800, 15_114_838_016),
    "vmamba_base_vanilla": (76_254_056, 14_324_867_072),
    "vmamba_small": (49_012_840, 8_489_418_240),
    "vmamba_small_s2l15": (50_147_752, 8_532_695_040),
    "vmamba_small_vanilla": (44_417_416, 8_460_441_600),
    "vmamba_tiny": (30_249_064, 4_825_265_664),
    "vmamba_tiny_s2l5": (30_705_832, 4_737_884_160),
    "vmamba_tiny_vanilla": (22_893_448, 4_100_849_664),
    "FusionMamba": (163_819_456, 44_546_084_736),
    "FusionMamba.tiny": (101_567_616, 23_136_035_712),
    "UMambaBot": (42_120_394, 962_902_851_584),
    "UMambaEnc": (42_750_922, 1_000_507_408_384),
}


def measure(name: str) -> tuple[int, int]:
    """Parameters and multiply-accumulates of a model of the table, counted anew on the meta device.

    Args:
        name: registered with timm by this package, or one of `NETWORKS`.
    """
    import torch

    from ssmvision.flops import count

    build, shapes = full_size(name)
    with torch.device("meta"):
        model = build().eval()
        inputs = [torch.empty(1, *shape) for shape in shapes]
    with torch.no_grad():
        model(*inputs)  # S4ND makes its kernels, once for all images of an evaluation
    return sum(parameter.numel() for parameter in model.parameters()), count(model, *inputs).macs


def full_size(name: str, voxels: int | None = None) -> tuple[Callable[[], nn.Module], tuple[tuple[int, ...], ...]]:
    """What builds a model of the table, and the shape of each input without its batch.

    Args:
        name: see `measure`.
        voxels: side of a network's volumes, in place of its own.
    """
    import timm

    from ssmvision import models

    if name in NETWORKS:
        path, arguments, shapes, _ = NETWORKS[name]
        if voxels is not None:
            shapes = tuple((s[0], *(voxels,) * VOLUME_AXES) if len(s) > VOLUME_AXES else s for s in shapes)
            arguments = {key: voxels if key == "input_size" else value for key, value in arguments.items()}
        build: Any = models
        for part in path.split("."):
            build = getattr(build, part)
        return lambda: build(**arguments), shapes
    config = timm.get_pretrained_cfg(name)
    if config is None:
        raise ValueError(f"no model {name!r}; `ssmvision models` lists them")
    return lambda: timm.create_model(name), (tuple(config.input_size),)
