"""From images to videos and volumes: the weights of a 2D S4ND network as a start for the 3D one.

Source: Nguyen et al., "S4ND" (arXiv 2210.06583), section 4.3: the outer product lets a 2D kernel become a 3D one by one
more factor, along the new first axis. Patches of convolutions are repeated as Carreira and Zisserman do (arXiv
1705.07750, section 3.2.1).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor

from ssmvision.layers.s4nd import KERNELS, S4ND
from ssmvision.layers.s4nd_diagonal import S4DKernel
from ssmvision.models.s4nd_convnext import S4NDConvNeXt

__all__ = ["inflate_state_dict", "reset_time_kernels"]

KERNEL = re.compile(r"^(?P<layer>.+\.kernel)\.(?P<axis>\d)\.(?P<leaf>.+)$")


@torch.no_grad()
def reset_time_kernels(model: S4NDConvNeXt, dt: float = 2.0, init: str = "legs") -> None:
    """Start every kernel along the first axis as a short, fixed memory: step size `dt` everywhere, fixed C.

    Args:
        model: 3D.
        dt: step size. At 2 the bilinear rule leaves S4's "legs" system a single tap, 1, in either direction.
        init: of the systems; see `initial_system`.

    Raises:
        ValueError: the network is 2D, or its kernels are not S4 or S4D.
    """
    if model.spatial_dims != 3:
        raise ValueError(f"only a 3D network has a time axis to reset, this one is {model.spatial_dims}D")
    args = dict(model.s4nd_args) | {"init": init, "dt_min": dt, "dt_max": dt, "deterministic": True}
    build = KERNELS[args.pop("kernel")]
    for layer in (module for module in model.modules() if isinstance(module, S4ND)):
        old = layer.kernel[0]
        if not isinstance(old, S4DKernel):
            raise ValueError(f"{type(old).__name__} has no step size to reset; use kernel='s4' or 's4d'")
        fresh = build(old.d_model, channels=old.channels, l_max=old.l_max, **args)
        layer.kernel[0] = fresh.to(cast(Tensor, old.C))


def inflate_state_dict(
    state_dict: Mapping[str, Tensor], model: S4NDConvNeXt, keep_head: bool = False
) -> dict[str, Tensor]:
    """A 2D network's weights as a state dict of a 3D one of the same shape.

    The kernels of the two axes become those of the last two; those of the first axis and, unless `keep_head`, the
    head stay as `model` has them. Convolutions are repeated along the new axis and divided by its size.

    Args:
        state_dict: of a 2D `S4NDConvNeXt`.
        model: 3D; it is not changed.
        keep_head: take the head's weights too (equal classes).

    Raises:
        ValueError: the network is 2D, or the weights do not fit it.
    """
    if model.spatial_dims != 3:
        raise ValueError(f"weights are inflated into a 3D network, this one is {model.spatial_dims}D")
    out: dict[str, Tensor] = {}
    for key, own in model.state_dict().items():
        match = KERNEL.match(key)
        scratch = (match and match["axis"] == "0") or (key.startswith("head.fc.") and not keep_head)
        if scratch:
            out[key] = own
            continue
        source = f"{match['layer']}.{int(match['axis']) - 1}.{match['leaf']}" if match else key
        if source not in state_dict:
            raise ValueError(f"the 2D weights have no {source}, which {key} is made of; are both networks of one kind?")
        value = state_dict[source]
        if value.dim() == own.dim() - 1 == 4:
            value = value.unsqueeze(2).expand(-1, -1, own.shape[2], -1, -1) / own.shape[2]
        if value.shape != own.shape:
            raise ValueError(f"{source} is {tuple(value.shape)}, but {key} is {tuple(own.shape)}")
        out[key] = value
    return out
