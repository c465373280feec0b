"""Names, constructor arguments and checkpoint keys of the official VMamba code (MzeroMiko/VMamba) in terms of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ssmvision.layers.ss2d_official import from_official_kwargs as ss2d_kwargs

__all__ = ["from_official_kwargs", "official_state"]

# The first release named blocks and stem otherwise, and had no `classifier`.
_RENAMES: Sequence[tuple[str, str]] = (
    (r"^patch_embed\.proj\.", "patch_embed.0."),
    (r"^patch_embed\.norm\.", "patch_embed.2."),
    (r"^(layers\.\d+\.blocks\.\d+)\.ln_1\.", r"\1.norm."),
    (r"^(layers\.\d+\.blocks\.\d+)\.self_attention\.", r"\1.op."),
    (r"^classifier\.", ""),
)
# Linear layers on channel-first maps, which some releases stored as 1 x 1 convolutions.
_LINEAR = re.compile(r"\.(op\.in_proj|op\.out_proj|mlp\.fc1|mlp\.fc2|downsample\.reduction)\.weight$")

# The official constructor's defaults, except `forward_type`, whose default ("v2") cannot run there.
_DEFAULTS: dict[str, Any] = {
    "in_chans": 3,
    "num_classes": 1000,
    "depths": (2, 2, 9, 2),
    "dims": (96, 192, 384, 768),
    "ssm_d_state": 16,
    "ssm_ratio": 2.0,
    "ssm_dt_rank": "auto",
    "ssm_conv": 3,
    "ssm_conv_bias": True,
    "ssm_drop_rate": 0.0,
    "ssm_init": "v0",
    "mlp_ratio": 4.0,
    "mlp_drop_rate": 0.0,
    "drop_path_rate": 0.1,
    "norm_layer": "LN",
    "downsample_version": "v2",
    "patchembed_version": "v1",
}
# Options of which only these values have a counterpart here.
_FIXED: dict[str, tuple[Any, ...]] = {
    "patch_size": (4,),
    "ssm_act_layer": ("silu",),
    "mlp_act_layer": ("gelu",),
    "gmlp": (False,),
    "patch_norm": (True,),
    "posembed": (False,),
}
# Options that change no result: ours are `set_grad_checkpointing` and any input size.
_WITHOUT_EFFECT = {"use_checkpoint", "imgsize"}
_STEMS = {"v1": "patch", "v2": "overlap"}
_DOWNSAMPLES = {"v1": "merge", "v2": "patch", "v3": "overlap"}
_NORMS = ("ln", "ln2d")


def official_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of any official release under the names of `VMamba`; other names stay."""
    out = {}
    for key, value in state.items():
        for pattern, replacement in _RENAMES:
            key = re.sub(pattern, replacement, key)
        one_by_one = value.dim() == 4 and tuple(value.shape[2:]) == (1, 1)
        out[key] = value.flatten(1) if one_by_one and _LINEAR.search(key) else value
    return out


def from_official_kwargs(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `VMamba` that build what the official `VSSM` builds from `kwargs`.

    Raises:
        ValueError: an option is unknown, or asks for something that our network does not have.
    """
    _check(kwargs)
    given = _DEFAULTS | kwargs
    dims, depths = given["dims"], given["depths"]
    ss2d = ss2d_kwargs(
        {
            "d_model": 1,  # told to each block by the network
            "forward_type": given["forward_type"],
            "d_state": given["ssm_d_state"],
            "ssm_ratio": given["ssm_ratio"],
            "dt_rank": given["ssm_dt_rank"],
            "d_conv": given["ssm_conv"],
            "conv_bias": given["ssm_conv_bias"],
            "dropout": given["ssm_drop_rate"],
            "initialize": given["ssm_init"],
        }
    )
    own = {"d_state": ss2d.pop("d_state"), "expand": ss2d.pop("expand")}
    shared = ("in_chans", "num_classes", "mlp_ratio", "mlp_drop_rate", "drop_path_rate")
    return own | {
        **{name: given[name] for name in shared},
        "depths": tuple(depths),
        "dims": tuple(dims * 2**i for i in range(len(depths))) if isinstance(dims, int) else tuple(dims),
        "stem": _STEMS[given["patchembed_version"]],
        "downsample": _DOWNSAMPLES[given["downsample_version"]],
        "ss2d_args": {k: v for k, v in ss2d.items() if k not in ("dim", "channels_first")},
    }


def _check(kwargs: dict[str, Any]) -> None:
    unknown = set(kwargs) - set(_DEFAULTS) - set(_FIXED) - _WITHOUT_EFFECT - {"forward_type"}
    if unknown:
        raise ValueError(f"the official VSSM has no option {', '.join(sorted(unknown))}")
    for name, allowed in _FIXED.items():
        if name in kwargs and kwargs[name] not in allowed:
            raise ValueError(f"{name}={kwargs[name]!r} is not supported; leave it at {allowed[0]!r}")
    choices = {"patchembed_version": _STEMS, "downsample_version": _DOWNSAMPLES}
    for name, known in choices.items():
        if name in kwargs and kwargs[name] not in known:
            raise ValueError(f"{name}={kwargs[name]!r}: choose from {', '.join(known)}")
    norm = kwargs.get("norm_layer", "LN")
    if norm.lower() not in _NORMS:
        raise ValueError(f"norm_layer={norm!r}: choose from {', '.join(_NORMS)}")
    if "forward_type" not in kwargs:
        raise ValueError("give forward_type: the official default, 'v2', does not run there")
