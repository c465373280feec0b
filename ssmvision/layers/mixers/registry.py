"""The table of mixers, and the form that every one of them is brought into."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, Literal

from torch import Tensor, nn

__all__ = [
    "Mixer",
    "MixerLike",
    "build_mixer",
    "check_options",
    "configure_mixer",
    "mixer_names",
    "register_mixer",
    "resolve_mixer",
]

Layout = Literal["tokens", "grid", "map"]
Build = Callable[..., nn.Module]
NONE = "none"

# name -> (module of this package, its builder, layout). Imported when asked for.
TABLE: dict[str, tuple[str, str, Layout]] = {
    "mamba": ("mamba", "mamba", "tokens"),
    "mamba_bidirectional": ("mamba", "mamba_bidirectional", "tokens"),
    "s4nd": ("s4nd", "s4nd_mixer", "map"),
    "s4d": ("s4d", "s4d_mixer", "map"),
    "dss": ("dss", "dss_mixer", "map"),
    "ema": ("ema", "ema_mixer", "map"),
    "lru": ("lru", "lru_mixer", "map"),
    "s5": ("s5", "s5_mixer", "map"),
    "tnn": ("tnn", "tnn_mixer", "map"),
    "hyena": ("hyena", "hyena_mixer", "map"),
    "liquid_s4": ("liquid_s4", "liquid_s4_mixer", "map"),
    "s6": ("s6", "S6", "map"),
    "ssd": ("ssd", "SSD", "map"),
    "vssd": ("vssd", "VSSD", "map"),
    "hgrn": ("hgrn", "HGRN", "map"),
    "biwkv": ("biwkv", "BiWKV", "map"),
    "attention": ("attention", "GlobalAttention", "map"),
    "window_attention": ("window_attention", "WindowAttention", "map"),
    "dwconv": ("dwconv", "DepthwiseMixer", "map"),
}


@dataclass(frozen=True)
class Mixer:
    """How to build a mixer, and the tensor it works on.

    Attributes:
        build: for "tokens" called as `build(dim, **options)`, else as `build(dim, spatial_dims, **options)`.
        layout: of the module's input and output: "map", (B, *grid, dim), what new mixers have; "grid",
            (B, dim, *grid); or "tokens", (B, L, dim) in C order.
    """

    build: Build
    layout: Layout = "tokens"


MixerLike = str | Mixer | Build
_REGISTERED: dict[str, Mixer] = {}


def register_mixer(name: str, build: Build, layout: Layout = "tokens") -> None:
    """Make a mixer available to the networks by name; see `Mixer` for `build` and `layout`.

    Raises:
        ValueError: the name is taken.
    """
    if name in mixer_names():
        raise ValueError(f"mixer name {name!r} is taken; taken are {', '.join(mixer_names())}")
    _REGISTERED[name] = Mixer(build, layout)


def mixer_names() -> tuple[str, ...]:
    """All names that `resolve_mixer` takes."""
    return (*TABLE, *_REGISTERED, NONE)


def resolve_mixer(mixer: MixerLike) -> Mixer | None:
    """The mixer behind a name, a `Mixer`, or a callable `(dim) -> nn.Module` on tokens; None for "none".

    Raises:
        ValueError: no mixer has this name.
        TypeError: neither a name, a `Mixer` nor a callable.
    """
    if isinstance(mixer, Mixer):
        return mixer
    if isinstance(mixer, str):
        if mixer not in mixer_names():
            raise ValueError(f"mixer={mixer!r} is unknown; choose from {', '.join(mixer_names())}")
        if mixer in TABLE:
            module, builder, layout = TABLE[mixer]
            return Mixer(getattr(import_module(f"ssmvision.layers.mixers.{module}"), builder), layout)
        return _REGISTERED.get(mixer)
    if not callable(mixer):
        raise TypeError(f"mixer must be a name, a Mixer or a callable (dim) -> nn.Module, got {type(mixer).__name__}")
    return Mixer(mixer)


def configure_mixer(mixer: MixerLike, options: Mapping[str, Any]) -> Mixer | None:
    """The mixer of `resolve_mixer` with options of its builder fixed.

    Raises:
        ValueError: an unknown mixer, or an option that it does not have.
        TypeError: see `resolve_mixer`.
    """
    resolved = resolve_mixer(mixer)
    name = mixer if isinstance(mixer, str) else type(mixer).__name__
    check_options(f"mixer {name!r}", (lambda: nn.Identity()) if resolved is None else resolved.build, options)
    return resolved if resolved is None or not options else Mixer(partial(resolved.build, **options), resolved.layout)


def build_mixer(mixer: MixerLike, dim: int, spatial_dims: int, **options: Any) -> nn.Module:
    """A mixer as a module on channels-last maps, whatever the layout it works on.

    Args:
        mixer: see `resolve_mixer`.
        dim: channels.
        spatial_dims: axes of the map, 1 to 3.
        options: of the mixer.

    Returns:
        Module (B, *grid, dim) -> (B, *grid, dim); Identity for "none".

    Raises:
        ValueError: an unknown mixer, or an option that it does not have.
    """
    resolved = configure_mixer(mixer, options)
    if resolved is None:
        return nn.Identity()
    if resolved.layout == "tokens":
        return _OnTokens(resolved.build(dim))
    module = resolved.build(dim, spatial_dims)
    return _OnGrid(module) if resolved.layout == "grid" else module


def check_options(what: str, build: Build, options: Mapping[str, Any]) -> None:
    """Refuse options that a builder does not take; `what` says whose they are."""
    parameters = inspect.signature(build).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    unknown = sorted(set(options) - set(parameters))
    if unknown:
        known = [option for option in parameters if option not in ("dim", "spatial_dims", "d_model")]
        raise ValueError(f"{what} has no option {unknown[0]!r}; it has {', '.join(known) or 'none'}")


class _OnTokens(nn.Module):
    """A mixer of (B, L, C) on (B, *grid, C)."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, x: Tensor) -> Tensor:
        """(B, *grid, C) -> the same."""
        y: Tensor = self.mixer(x.flatten(1, -2))
        return y.view(x.shape)


class _OnGrid(nn.Module):
    """A mixer of (B, C, *grid) on (B, *grid, C)."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, x: Tensor) -> Tensor:
        """(B, *grid, C) -> the same."""
        y: Tensor = self.mixer(x.movedim(-1, 1))
        return y.movedim(1, -1)
