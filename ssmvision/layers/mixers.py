"""What may mix the positions of a feature map: a table of names, and the form every mixer is brought into."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import nn

from ssmvision.layers.mamba import MambaMixer

__all__ = ["Mixer", "mixer_names", "register_mixer", "resolve_mixer"]

Layout = Literal["tokens", "grid"]
NONE = "none"


@dataclass(frozen=True)
class Mixer:
    """How to build a mixer, and the tensor it works on.

    Attributes:
        build: for "tokens" called as `build(dim)`, the module maps (B, L, dim) -> (B, L, dim); for "grid" called as
            `build(dim, spatial_dims)`, the module maps (B, dim, *spatial) -> (B, dim, *spatial).
        layout: "tokens" (Mamba and other sequence layers) or "grid" (S4ND and other layers that see the axes).
    """

    build: Callable[..., nn.Module]
    layout: Layout = "tokens"


_MIXERS: dict[str, Mixer] = {}


def register_mixer(name: str, build: Callable[..., nn.Module], layout: Layout = "tokens") -> None:
    """Make a mixer available to the networks by name; see `Mixer` for `build` and `layout`.

    Raises:
        ValueError: the name is taken.
    """
    if name == NONE or name in _MIXERS:
        raise ValueError(f"mixer name {name!r} is taken; taken are {', '.join(mixer_names())}")
    _MIXERS[name] = Mixer(build, layout)


def mixer_names() -> tuple[str, ...]:
    """All names that `resolve_mixer` takes."""
    return (*_MIXERS, NONE)


def resolve_mixer(mixer: str | Mixer | Callable[[int], nn.Module]) -> Mixer | None:
    """The mixer behind a name, a `Mixer`, or a callable `(dim) -> nn.Module` on tokens; None for "none".

    Raises:
        ValueError: no mixer has this name.
        TypeError: neither a name, a `Mixer` nor a callable.
    """
    if isinstance(mixer, Mixer):
        return mixer
    if isinstance(mixer, str):
        if mixer != NONE and mixer not in _MIXERS:
            raise ValueError(f"mixer={mixer!r} is unknown; choose from {', '.join(mixer_names())}")
        return _MIXERS.get(mixer)
    if not callable(mixer):
        raise TypeError(f"mixer must be a name, a Mixer or a callable (dim) -> nn.Module, got {type(mixer).__name__}")
    return Mixer(mixer)


def _mamba(**options: Any) -> Callable[[int], nn.Module]:
    return partial(MambaMixer, **options)


register_mixer("mamba", _mamba())
register_mixer("mamba_bidirectional", _mamba(bidirectional=True, backward_dt_init="mamba"))
