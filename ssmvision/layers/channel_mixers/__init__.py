"""Everything that may mix the channels of a map between two token mixers, by name.

One file a mixer, and for each one line in the table of `ssmvision.layers.channel_mixers.registry`.
"""

from ssmvision.layers.channel_mixers.registry import (
    build_channel_mixer,
    channel_mixer_names,
    register_channel_mixer,
)

__all__ = ["build_channel_mixer", "channel_mixer_names", "register_channel_mixer"]
