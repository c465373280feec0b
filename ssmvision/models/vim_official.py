"""Names and constructor arguments of the official Vision Mamba code (hustvl/Vim) in terms of `VisionMamba`'s."""

from __future__ import annotations

from typing import Any

__all__ = ["OFFICIAL_MODELS", "from_official_kwargs"]

# Registered names of the official code -> what they change from its constructor's defaults.
OFFICIAL_MODELS: dict[str, dict[str, Any]] = {
    "vim_tiny_patch16_224_bimambav2_final_pool_mean_abs_pos_embed_with_midclstok_div2": {"embed_dim": 192},
    "vim_tiny_patch16_stride8_224_bimambav2_final_pool_mean_abs_pos_embed_with_midclstok_div2": {
        "embed_dim": 192,
        "stride": 8,
    },
    "vim_small_patch16_224_bimambav2_final_pool_mean_abs_pos_embed_with_midclstok_div2": {"embed_dim": 384},
    "vim_small_patch16_stride8_224_bimambav2_final_pool_mean_abs_pos_embed_with_midclstok_div2": {
        "embed_dim": 384,
        "stride": 8,
    },
    "vim_base_patch16_224_bimambav2_final_pool_mean_abs_pos_embed_with_middle_cls_token_div2": {"embed_dim": 768},
}

# The official constructor's defaults.
_DEFAULTS: dict[str, Any] = {
    "img_size": 224,
    "patch_size": 16,
    "stride": 16,
    "depth": 24,
    "embed_dim": 192,
    "d_state": 16,
    "channels": 3,
    "num_classes": 1000,
    "ssm_cfg": None,
    "drop_rate": 0.0,
    "drop_path_rate": 0.1,
    "norm_epsilon": 1e-5,
    "rms_norm": True,
    "residual_in_fp32": True,
    "final_pool_type": "none",
    "if_abs_pos_embed": True,
    "if_bimamba": False,
    "bimamba_type": "v2",
    "if_cls_token": True,
    "if_divide_out": True,
    "init_layer_scale": None,
    "use_double_cls_token": False,
    "use_middle_cls_token": True,
    "device": None,
    "dtype": None,
}
# Options of which only these values have a counterpart here.
_FIXED: dict[str, tuple[Any, ...]] = {
    "if_rope": (False,),
    "if_rope_residual": (False,),
    "if_bidirectional": (False,),
    "initializer_cfg": (None, {}),
}
# Options that choose an implementation, not a result, or that only the unsupported rope reads.
_WITHOUT_EFFECT = {"fused_add_norm", "ft_seq_len", "pt_hw_seq_len"}
_SSM_OPTIONS = {"d_conv", "expand", "dt_rank", "conv_bias", "bias", "use_fast_path"}
_POOLS = {"none": "last", "mean": "avg", "max": "max_logits", "all": ""}
_DIRECTIONS: dict[str, dict[str, bool]] = {
    "none": {"bidirectional": False},
    "v1": {"bidirectional": True, "shared_directions": True},
    "v2": {"bidirectional": True},
}


def from_official_kwargs(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `VisionMamba` that build what the official constructor builds from `kwargs`.

    Raises:
        ValueError: an option is unknown, or asks for something that this model does not have.
    """
    _check(kwargs)
    given = _DEFAULTS | {k: v for k, v in kwargs.items() if k in _DEFAULTS}
    bimamba = "v1" if given["if_bimamba"] else given["bimamba_type"]
    if bimamba not in _DIRECTIONS:
        raise ValueError(f"bimamba_type={bimamba!r}: choose from {', '.join(_DIRECTIONS)}")
    if given["final_pool_type"] not in _POOLS:
        raise ValueError(f"final_pool_type={given['final_pool_type']!r}: choose from {', '.join(_POOLS)}")
    ours = {k: given[k] for k in ("img_size", "patch_size", "stride", "depth", "embed_dim", "d_state", "num_classes")}
    ours |= {k: given[k] for k in ("drop_path_rate", "residual_in_fp32", "device", "dtype")}
    return ours | {
        "in_chans": given["channels"],
        "pos_drop_rate": given["drop_rate"],
        "norm": "rms" if given["rms_norm"] else "layer",
        "norm_eps": given["norm_epsilon"],
        "pos_embed": "learn" if given["if_abs_pos_embed"] else "none",
        "class_token": _class_token(given),
        "global_pool": "token" if given["if_cls_token"] else _POOLS[given["final_pool_type"]],
        "divide_out": bimamba == "v2" and given["if_divide_out"],
        "mixer_args": _mixer_args(given) | _DIRECTIONS[bimamba],
    }


def _check(kwargs: dict[str, Any]) -> None:
    flip = kwargs.get("flip_img_sequences_ratio", -1.0)
    if flip > 0:
        raise ValueError(f"flip_img_sequences_ratio={flip}: random sequence flips are not supported; leave it at -1")
    for name, allowed in _FIXED.items():
        if name in kwargs and kwargs[name] not in allowed:
            raise ValueError(f"{name}={kwargs[name]!r} is not supported; leave it at {allowed[0]!r}")
    unknown = set(kwargs) - set(_DEFAULTS) - set(_FIXED) - _WITHOUT_EFFECT - {"flip_img_sequences_ratio"}
    if unknown:
        raise ValueError(f"the official VisionMamba has no option {', '.join(sorted(unknown))}")


def _class_token(given: dict[str, Any]) -> str:
    if not given["if_cls_token"]:
        return "none"
    if given["use_double_cls_token"]:
        return "double"
    return "middle" if given["use_middle_cls_token"] else "first"


def _mixer_args(given: dict[str, Any]) -> dict[str, Any]:
    ssm = dict(given["ssm_cfg"] or {})
    unknown = set(ssm) - _SSM_OPTIONS
    if unknown:
        raise ValueError(f"ssm_cfg: {', '.join(sorted(unknown))} not supported; choose from {', '.join(_SSM_OPTIONS)}")
    if not ssm.pop("use_fast_path", True):
        raise ValueError("ssm_cfg: use_fast_path=False drops the backward direction in the official code; leave it out")
    return ssm | {"layer_scale": given["init_layer_scale"]}
