"""Which mixers the blocks of a network have: the plans of published hybrids, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["BlockPlan", "layout_names", "plan_blocks"]


@dataclass(frozen=True)
class BlockPlan:
    """What one block consists of.

    Attributes:
        mixer: name of its token mixer, None for the network's own.
        channel_mixer: name of its channel mixer, None for the network's own.
    """

    mixer: str | None = None
    channel_mixer: str | None = None


Plan = list[BlockPlan]


def _uniform(depths: Sequence[int]) -> Plan:
    return [BlockPlan()] * sum(depths)


TABLE: dict[str, Callable[[Sequence[int]], Plan]] = {
    "uniform": _uniform,
}


def layout_names() -> tuple[str, ...]:
    """All names that `plan_blocks` takes."""
    return tuple(TABLE)


def plan_blocks(layout: str, depths: Sequence[int]) -> list[Plan]:
    """The blocks of every stage.

    Args:
        layout: one of `layout_names()`.
        depths: blocks of each stage.

    Raises:
        ValueError: no layout has this name.
    """
    if layout not in TABLE:
        raise ValueError(f"layout={layout!r} is unknown; choose from {', '.join(TABLE)}")
    plan = TABLE[layout](depths)
    ends = [sum(depths[: s + 1]) for s in range(len(depths))]
    return [plan[end - depth : end] for end, depth in zip(ends, depths, strict=True)]
