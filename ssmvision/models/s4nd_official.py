"""How the S4ND authors' code names the parameters of its networks, and what ours call them.

Source: the code of Nguyen et al. (arXiv 2210.06583): its ConvNeXt in 2D and 3D, and its ViT.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

__all__ = ["convnext_state", "vit_state"]

Rules = Sequence[tuple[str, str]]
CONVNEXT: Rules = (
    (r"^stem\.stem\.(\d+)\.", r"stem.\1."),
    (r"^stem\.stem\.", r"stem.conv."),
    (r"^stem\.post_stem\.1\.", r"stem.linear."),
    (r"^stem\.post_stem\.3\.", r"stem.norm."),
    (r"^(stages\.\d+)\.norm_layer\.", r"\1.downsample.0."),
    (r"^(stages\.\d+)\.downsample\.conv\.", r"\1.downsample.1."),
    (r"^(stages\.\d+)\.downsample\.s4conv\.", r"\1.downsample.1.conv."),
    (r"^(stages\.\d+)\.downsample\.fc\.", r"\1.downsample.1.linear."),
    (r"^(stages\.\d+\.blocks\.\d+\.conv_dw)\.conv\.", r"\1."),
)
# Mixers and MLPs alternate in one list there.
VIT_BLOCK = re.compile(r"^blocks\.(\d+)\.(layer|norm)\.(.+)$")
VIT_MLP = {"ff.0.0": "mlp.fc1", "ff.2": "mlp.fc2"}
UNUSED_AXIS = re.compile(r"^blocks\.\d+\.layer\.kernel\.1\.")


def convnext_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' ConvNeXt weights under the names of `S4NDConvNeXt`; other names stay."""
    out = {}
    for key, value in state.items():
        for pattern, replacement in CONVNEXT:
            renamed = re.sub(pattern, replacement, key)
            if renamed != key:
                key = renamed
                break
        out[key] = value
    return out


def vit_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' ViT weights under the names of `S4NDVisionTransformer`, without the second kernel, unused there."""
    return {_vit_key(key): value for key, value in state.items() if not UNUSED_AXIS.match(key)}


def _vit_key(key: str) -> str:
    match = VIT_BLOCK.match(key)
    if match is None:
        return key.replace("norm.norm.", "norm.")
    index, part, rest = int(match[1]), match[2], match[3]
    block = f"blocks.{index // 2}"
    if part == "norm":
        return f"{block}.norm{index % 2 + 1}.{rest.removeprefix('norm.')}"
    if index % 2 == 0:
        return f"{block}.mixer.{rest}"
    name, _, leaf = rest.rpartition(".")
    return f"{block}.{VIT_MLP[name]}.{leaf}"
