"""Everything that may mix the positions of an image or a volume, by name.

One file a mixer, and for each one line in the table of `ssmvision.layers.mixers.registry`.
"""

from ssmvision.layers.mixers.registry import (
    Mixer,
    MixerLike,
    build_mixer,
    configure_mixer,
    mixer_names,
    register_mixer,
    resolve_mixer,
)

__all__ = [
    "Mixer",
    "MixerLike",
    "build_mixer",
    "configure_mixer",
    "mixer_names",
    "register_mixer",
    "resolve_mixer",
]
