"""Launch settings of the Triton backend, apart from the code that runs them."""

from __future__ import annotations

from dataclasses import dataclass

from ssmvision.kernels.selective_scan import config

__all__ = ["ELEMENTS", "SCRATCH_BYTES", "TritonConfig", "triton_config"]

# Per program of the element-wise kernels.
ELEMENTS = 1024
# A backward keeps a chunk of states for every program of a launch; with more than this, it takes several launches.
SCRATCH_BYTES = 256 << 20
# Programs below which a route is cut into parts, and how many are then wanted: 8 and 16 on each of 132 multiprocessors.
ENOUGH, WANTED = 1056, 2112


@dataclass(frozen=True)
class TritonConfig:
    """How a scan is cut.

    Attributes:
        block_n: the number of states, rounded up to a power of two.
        block_e: channels of a program.
        warps: of a program; more than one exchange their sums over states through shared memory.
        tiles: programs along the channels.
        parts: programs along a route; more than one cost a pass over the inputs to find what enters each.
        part_steps: steps of a part, a multiple of `chunk`.
        chunk: steps between two saved states.
    """

    block_n: int
    block_e: int
    warps: int
    tiles: int
    parts: int
    part_steps: int
    chunk: int


def triton_config(rows: int, channels: int, n_state: int, steps: int, lanes: int, device_type: str) -> TritonConfig:
    """Settings for a scan.

    Args:
        rows: batch x routes.
        channels: E.
        n_state: N.
        steps: of the longest route.
        lanes: of a warp of the device.
        device_type: "cuda" or "xpu".
    """
    block_n = 1 << max(n_state - 1, 0).bit_length()
    warps = 1 if block_n <= 32 else 4
    # At most 16 states a lane, of which a backward holds about six times as many registers.
    block_e = max(min(lanes, 16 * lanes * warps // block_n, 1 << (channels - 1).bit_length()), 1)
    tiles = -(-channels // block_e)
    chunk = config.CUDA_CHUNK if device_type == "cuda" else config.CHUNK  # as in `config.n_saved`
    chunks = max(config.n_chunks(steps, chunk), 1)
    parts = 1 if rows * tiles >= ENOUGH else min(chunks, -(-WANTED // (rows * tiles)))
    part_steps = -(-chunks // parts) * chunk
    return TritonConfig(block_n, block_e, warps, tiles, max(-(-steps // part_steps), 1), part_steps, chunk)
