"""The shapes that `ssmvision bench scan --device cuda` times: those at which published networks run the scan."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

from ssmvision.bench.floors import ScanWork

__all__ = ["SHAPES", "Shape"]

_BOTH_WAYS = ("forward", "backward")
_CROSS = ("row", "column", "row_reverse", "column_reverse")
_SIX_WAYS = ("dhw", "dhw_reverse", "hwd", "hwd_reverse", "wdh", "wdh_reverse")


@dataclass(frozen=True)
class Shape:
    """A scan of channels-last maps.

    Attributes:
        about: the network and setting that it is taken from.
        batch: images, volumes or sequences.
        grid: positions along each axis.
        channels: E.
        states: N per channel.
        routes: names of the routes; for the two-axis cross they are in VMamba's order.
        peer: whose operators run beside it.
        gate: whether the result is gated.
        shared: one input for all routes, instead of one a route.
        segments: see `ssmvision.bench.floors`.
        rank: of the step sizes; where not 0 the projections that make steps, B and C are timed along with the scan.
    """

    about: str
    batch: int
    grid: tuple[int, ...]
    channels: int
    states: int
    routes: tuple[str, ...]
    peer: Literal["mamba_ssm", "VMamba"]
    gate: bool = False
    shared: bool = True
    segments: bool = False
    rank: int = 0

    @property
    def size(self) -> str:
        """Such as "B64 197 E768 N16 K2"."""
        grid = "x".join(map(str, self.grid))
        size = f"B{self.batch} {grid} E{self.channels} N{self.states} K{len(self.routes)}"
        return f"{size} R{self.rank}" if self.rank else size

    def work(self, element_bytes: int) -> ScanWork:
        """What its floor counts."""
        return ScanWork(
            self.batch,
            prod(self.grid),
            self.channels,
            self.states,
            len(self.routes),
            self.gate,
            self.segments,
            self.rank,
            element_bytes,
        )


def _vim(batch: int, length: int, channels: int, about: str, segments: bool) -> Shape:
    return Shape(about, batch, (length,), channels, 16, _BOTH_WAYS, "mamba_ssm", True, False, segments)


def _vmamba(states: int, about: str, rank: int = 0) -> Shape:
    return Shape(about, 64, (56, 56), 192, states, _CROSS, "VMamba", rank=rank)


def _volume(routes: tuple[str, ...], about: str) -> Shape:
    return Shape(about, 2, (64, 64, 64), 64, 16, routes, "mamba_ssm", segments=True)


SHAPES: dict[str, Shape] = {
    "a": _vim(64, 197, 768, "Vim-S at 224 px", segments=False),
    "b": _vmamba(1, "VMamba's first stage, steps given"),
    "b-core": _vmamba(1, "the same with its projections", rank=6),
    "b16": _vmamba(16, "VMamba's first stage with 16 states"),
    "c2": _volume(_BOTH_WAYS, "a volume, two ways"),
    "c6": _volume(_SIX_WAYS, "a volume, three axes both ways"),
    "d": _vim(1, 6084, 384, "a 1248 px image, Vim-Ti's width", segments=True),
    "d-wide": _vim(1, 6084, 768, "Vim-S at 1248 px", segments=True),
}
