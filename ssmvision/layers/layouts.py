"""Which mixers the blocks of a network have: the plans of published hybrids, by name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

__all__ = ["BlockPlan", "check_layout_args", "layout_names", "plan_blocks"]

ATTENTION, WINDOWS, EXPERTS = "attention", "window_attention", "moe"


@dataclass(frozen=True)
class BlockPlan:
    """What one block consists of.

    Attributes:
        mixer: name of its token mixer, None for the network's own.
        channel_mixer: name of its channel mixer, None for the network's own.
        beside: name of a second token mixer, whose normed output is added to that of the first.
        shared: whether it takes the output of its stage's shared attention block.
    """

    mixer: str | None = None
    channel_mixer: str | None = None
    beside: str | None = None
    shared: bool = False

    def added(self) -> set[str]:
        """Names of the mixers that the network itself does not have."""
        names = {self.mixer, self.channel_mixer, self.beside, ATTENTION if self.shared else None}
        return {name for name in names if name is not None}


Plan = list[BlockPlan]


def _uniform(depths: Sequence[int]) -> list[Plan]:
    """The network's own mixers throughout."""
    return [[BlockPlan()] * depth for depth in depths]


def _jamba(depths: Sequence[int]) -> list[Plan]:
    """Attention in the fifth of every eight blocks, experts in every second (Lieber et al., arXiv 2403.19887, 3.1).

    The published networks' attn_layer_offset, expert_layer_offset and periods (4, 1, 8 and 2). A network of fewer than
    eight blocks has attention in its middle.
    """
    total = sum(depths)
    attention = range(4, total, 8) if total >= 8 else [total // 2]
    plan = [BlockPlan(ATTENTION if i in attention else None, EXPERTS if i % 2 else None) for i in range(total)]
    return _split(plan, depths)


def _zamba(depths: Sequence[int]) -> list[Plan]:
    """One attention block of shared weights before every sixth block (Glorioso et al., arXiv 2405.16712, section 2).

    In stages of fewer than six blocks it comes once, in the middle; of several stages only the later half have one. The
    published network has it before its third and eighth block and before every sixth after these (transformers,
    `ZambaConfig`), here before the fifth and every sixth after it.
    """
    plan = []
    for stage, depth in enumerate(depths):
        places = range(4, depth, 6) if depth >= 6 else [depth // 2]
        late = stage >= len(depths) // 2
        plan.append([BlockPlan(shared=late and i in places) for i in range(depth)])
    return plan


def _samba(depths: Sequence[int]) -> list[Plan]:
    """Attention in windows in every second block (Ren et al., arXiv 2406.07522, section 2.1).

    Published windows slide along a sequence (microsoft/Samba, 2db1dba, mb_per_layer 2); these lie side by side.
    """
    return _split([BlockPlan(WINDOWS if i % 2 else None) for i in range(sum(depths))], depths)


def _hymba(depths: Sequence[int]) -> list[Plan]:
    """Attention beside every mixer, in windows but for first, middle and last block (Dong et al., 2411.13676, 2.1-2.2).

    The published networks' meta tokens have no place on a map and are left out; so are the keys and values that
    neighbouring blocks share, and the input projection that attention and mixer share.
    """
    total = sum(depths)
    whole = (0, total // 2, total - 1)
    return _split([BlockPlan(beside=ATTENTION if i in whole else WINDOWS) for i in range(total)], depths)


def _mambavision(depths: Sequence[int]) -> list[Plan]:
    """Attention in the second half of the blocks of the later stages (Hatamizadeh, Kautz, arXiv 2407.08083, 3.1).

    Of an odd number the smaller half, as published. The network's own mixer is in the other blocks, also in the earlier
    stages, where the published one has convolutions alone.
    """
    return [
        [BlockPlan(ATTENTION if stage >= len(depths) // 2 and i >= (depth + 1) // 2 else None) for i in range(depth)]
        for stage, depth in enumerate(depths)
    ]


TABLE: dict[str, Callable[[Sequence[int]], list[Plan]]] = {
    "uniform": _uniform,
    "jamba": _jamba,
    "zamba": _zamba,
    "samba": _samba,
    "hymba": _hymba,
    "mambavision": _mambavision,
}


def _split(plan: Plan, depths: Sequence[int]) -> list[Plan]:
    ends = [sum(depths[: s + 1]) for s in range(len(depths))]
    return [plan[end - depth : end] for end, depth in zip(ends, depths, strict=True)]


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
    return TABLE[layout](depths)


def check_layout_args(layout: str, plan: Sequence[Plan], names: Collection[str]) -> None:
    """Refuse options for mixers that a layout does not add.

    Raises:
        ValueError: names the first of `names` that is none of them.
    """
    added = sorted({name for stage in plan for block in stage for name in block.added()})
    for name in names:
        if name not in added:
            has = f"adds {', '.join(added)}" if added else "adds no mixers"
            raise ValueError(f"layout_args has options for {name!r}, but layout {layout!r} {has}")
