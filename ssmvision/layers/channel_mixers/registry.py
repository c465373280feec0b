"""The table of channel mixers."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from torch import nn

from ssmvision.layers.mixers.registry import check_options

__all__ = ["build_channel_mixer", "channel_mixer_names", "register_channel_mixer"]

Build = Callable[..., nn.Module]
NONE = "none"

# name -> (module of this package, its builder). Imported when asked for.
TABLE: dict[str, tuple[str, str]] = {
    "mlp": ("mlp", "mlp"),
    "glu": ("mlp", "glu"),
    "einfft": ("einfft", "EinFFT"),
    "moe": ("moe", "MixtureOfExperts"),
}
_REGISTERED: dict[str, Build] = {}


def register_channel_mixer(name: str, build: Build) -> None:
    """Make a channel mixer available to the networks by name.

    Args:
        name: of the option `channel_mixer=`.
        build: `build(dim, **options)` gives a module (B, *grid, dim) -> the same.

    Raises:
        ValueError: the name is taken.
    """
    if name in channel_mixer_names():
        raise ValueError(f"channel mixer name {name!r} is taken; taken are {', '.join(channel_mixer_names())}")
    _REGISTERED[name] = build


def channel_mixer_names() -> tuple[str, ...]:
    """All names that `build_channel_mixer` takes."""
    return (*TABLE, *_REGISTERED, NONE)


def build_channel_mixer(name: str, dim: int, **options: Any) -> nn.Module | None:
    """A channel mixer as a module (B, *grid, dim) -> (B, *grid, dim); None for "none".

    Args:
        name: one of `channel_mixer_names()`.
        dim: channels.
        options: of the mixer.

    Raises:
        ValueError: no mixer has this name, or it does not have an option.
    """
    if name not in channel_mixer_names():
        raise ValueError(f"channel_mixer={name!r} is unknown; choose from {', '.join(channel_mixer_names())}")
    if name == NONE:
        check_options(f"channel mixer {name!r}", lambda: nn.Identity(), options)
        return None
    if name in TABLE:
        module, builder = TABLE[name]
        build: Build = getattr(import_module(f"ssmvision.layers.channel_mixers.{module}"), builder)
    else:
        build = _REGISTERED[name]
    check_options(f"channel mixer {name!r}", build, options)
    return build(dim, **options)
