"""Mamba's mixer on the positions in C order, as U-Mamba's networks use it."""

from __future__ import annotations

from functools import partial

from ssmvision.layers.mamba import MambaMixer

__all__ = ["mamba", "mamba_bidirectional"]

mamba = MambaMixer
mamba_bidirectional = partial(MambaMixer, bidirectional=True, backward_dt_init="mamba")
