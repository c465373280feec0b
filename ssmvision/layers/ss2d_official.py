"""Constructor arguments of the official SS2D (MzeroMiko/VMamba) in terms of ours."""

from __future__ import annotations

from typing import Any

__all__ = ["from_official_kwargs"]

# The official constructor's defaults, except `forward_type`, whose default ("v2") cannot run there.
_DEFAULTS: dict[str, Any] = {
    "d_state": 16,
    "ssm_ratio": 2.0,
    "dt_rank": "auto",
    "d_conv": 3,
    "conv_bias": True,
    "dropout": 0.0,
    "bias": False,
    "initialize": "v0",
    "channel_first": False,
}
_INITS = {"v0": "mamba", "v1": "normal", "v2": "uniform"}
# The backends and precisions that tell many of these apart give the same numbers here.
_CROSS = {"v0", "v0seq", "v01", "v02", "v03", "v04", "v05", "v2", "v3", "v4"}
_SCANS = dict.fromkeys(_CROSS, "cross")
_SCANS |= {"v051d": "one_way", "v052d": "two_way", "v052dc": "cascade"}
_SCANS |= {"v31d": "one_way", "v32d": "two_way", "v32dc": "cascade"}
# Read from the end, in this order.
_POSTFIXES = ("_no32", "_oact", "_noz", "_nozact")


def from_official_kwargs(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `SS2D` that build what the official constructor builds from `kwargs`.

    Raises:
        ValueError: an option is unknown, or asks for something that our layer does not have.
    """
    given = _DEFAULTS | kwargs
    if "d_model" not in given or "forward_type" not in given:
        raise ValueError("the official SS2D is told d_model and forward_type; give both")
    dim, forward_type = given.pop("d_model"), given.pop("forward_type")
    unknown = set(given) - set(_DEFAULTS)
    if unknown:
        raise ValueError(f"SS2D has no option {', '.join(sorted(unknown))}; leave it at the official default")
    if given["initialize"] not in _INITS:
        raise ValueError(f"initialize={given['initialize']!r}: choose from {', '.join(_INITS)}")
    form = _parse(forward_type)
    if forward_type in ("v0", "v0seq"):
        if given["channel_first"]:
            raise ValueError(f"forward_type={forward_type!r} is channel-last in the official code")
        given |= {"d_conv": 3, "conv_bias": True, "bias": False, "initialize": "v0"}  # not read there
    return form | {
        "dim": dim,
        "expand": given["ssm_ratio"],
        "init": _INITS[given["initialize"]],
        "channels_first": given["channel_first"],
        **{name: given[name] for name in ("d_state", "dt_rank", "d_conv", "conv_bias", "dropout", "bias")},
    }


def _parse(forward_type: str) -> dict[str, Any]:
    """`scan`, `gate` and `out_act` of a `forward_type`."""
    rest, found = forward_type, set()
    for postfix in _POSTFIXES:
        if rest.endswith(postfix):
            rest = rest.removesuffix(postfix)
            found.add(postfix)
    if rest not in _SCANS:
        raise ValueError(
            f"forward_type={forward_type!r} is not supported: choose from {', '.join(_SCANS)}, with the postfixes "
            "_nozact, _noz, _oact and _no32 in this order"
        )
    gate = "none" if "_noz" in found else "linear" if "_nozact" in found else "silu"
    return {"scan": _SCANS[rest], "gate": gate, "out_act": "_oact" in found}
