"""How the PyTorch backend cuts a multi-route scan into tiles, and moves tiles between grid order and scan order.

A tile holds T consecutive steps of G chunks, for a group of b batch entries and all K routes. In scan order its tensors
are laid out (T, G, b, K, ...): one step of everything is contiguous, so the recurrence is one operator call a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ssmvision.kernels.routes import Grid, route_index
from ssmvision.kernels.selective_scan.config import chunked_config

__all__ = ["Plan", "Tile", "make_plan"]


@dataclass(frozen=True)
class Tile:
    """Chunks [chunk, chunk + chunks) of batch entries [start, stop)."""

    start: int
    stop: int
    chunk: int
    chunks: int


@dataclass(frozen=True)
class Plan:
    """The cut of one scan.

    Attributes:
        index: (K, chunks * steps) flat grid positions in scan order; a route's tail is filled with position 0.
        lengths: steps each route really has.
        steps: T, steps per chunk.
        chunks: chunks per route.
        chunk_group: G, chunks scanned side by side.
        batch_group: b, batch entries per tile.
        ragged: whether any tail is filled, so that step sizes must be masked.
        covers: whether every route visits every position.
        forward: whether each route visits the positions in their own order, so that it can be read without a gather.
    """

    index: Tensor
    lengths: tuple[int, ...]
    steps: int
    chunks: int
    chunk_group: int
    batch_group: int
    ragged: bool
    covers: bool
    forward: tuple[bool, ...]

    def tiles(self, batch: int, reverse: bool = False) -> Iterator[list[Tile]]:
        """For each batch group, its tiles in scan order (or in reverse)."""
        for start in range(0, batch, self.batch_group):
            stop = min(start + self.batch_group, batch)
            firsts = range(0, self.chunks, self.chunk_group)
            tiles = [Tile(start, stop, c, min(self.chunk_group, self.chunks - c)) for c in firsts]
            yield tiles[::-1] if reverse else tiles

    def gather(self, source: Tensor, tile: Tile, dtype: torch.dtype) -> Tensor:
        """Grid order -> scan order: (B, L, F), shared, or (B, K, L, F) -> (T, G, b, K, F), perhaps a view."""
        walks = []
        for k in range(len(self.lengths)):
            rows = source[tile.start : tile.stop] if source.dim() == 3 else source[tile.start : tile.stop, k]
            walked = self._walk(rows, k, tile)
            walks.append(walked.unflatten(1, (tile.chunks, self.steps)).permute(2, 1, 0, 3))
        return (walks[0].unsqueeze(3) if len(walks) == 1 else torch.stack(walks, 3)).to(dtype)

    def scatter_add(self, values: Tensor, target: Tensor, tile: Tile) -> None:
        """Scan order -> grid order: adds (T, G, b, K, F) to (B, L, F), shared, or (B, K, L, F); tails are dropped."""
        for k, length in enumerate(self.lengths):
            valid = min(max(length - tile.chunk * self.steps, 0), tile.chunks * self.steps)
            rows = target[tile.start : tile.stop] if target.dim() == 3 else target[tile.start : tile.stop, k]
            walked = values[:, :, :, k].permute(2, 1, 0, 3).flatten(1, 2)[:, :valid]
            if self.forward[k]:
                part = rows.narrow(1, tile.chunk * self.steps, valid)
                part.copy_(walked) if self.writes_once(target) else part.add_(walked)
            else:
                rows.index_add_(1, self._positions(k, tile)[:valid], walked.to(target.dtype))

    def writes_once(self, target: Tensor) -> bool:
        """Whether `scatter_add` reaches every element of `target` once and in order, so that it need not start at 0."""
        apart = target.dim() == 4 or len(self.lengths) == 1
        return apart and self.covers and all(self.forward)

    def mask(self, tile: Tile, like: Tensor) -> Tensor | None:
        """1 for real steps and 0 for filled tails, (T, G, 1, K, 1), or None where the tile has no tail."""
        if not self.ragged:
            return None
        step = torch.arange(tile.chunks * self.steps, device=like.device) + tile.chunk * self.steps
        lengths = torch.tensor(self.lengths, device=like.device)
        real = (step.unsqueeze(1) < lengths).unflatten(0, (tile.chunks, self.steps)).transpose(0, 1)
        mask: Tensor = real[:, :, None, :, None].to(like.dtype)
        return mask

    def _walk(self, rows: Tensor, route: int, tile: Tile) -> Tensor:
        first, count = tile.chunk * self.steps, tile.chunks * self.steps
        if self.forward[route] and first + count <= self.lengths[route]:
            return rows.narrow(1, first, count)
        return rows.index_select(1, self._positions(route, tile))

    def _positions(self, route: int, tile: Tile) -> Tensor:
        first = tile.chunk * self.steps
        return self.index[route, first : first + tile.chunks * self.steps]


def make_plan(routes: tuple[str, ...], grid: Grid, batch: int, state_elements: int, device: torch.device) -> Plan:
    """Choose the cut.

    Args:
        routes: route names.
        grid: spatial size.
        batch: batch entries.
        state_elements: N x E.
        device: where the tensors live.
    """
    walks = [torch.from_numpy(route_index(name, grid).copy()) for name in routes]
    lengths = tuple(len(walk) for walk in walks)
    positions = 1
    for size in grid:
        positions *= size
    config = chunked_config(device.type)
    chunks = -(-positions // config.steps)
    steps = max(-(-max(lengths) // max(chunks, 1)), 1)  # skip routes of a single row may all be empty
    index = torch.zeros(len(routes), chunks * steps, dtype=torch.long)
    for k, walk in enumerate(walks):
        index[k, : len(walk)] = walk
    row = max(len(routes) * state_elements, 1)
    batch_group = min(max(config.max_elements // row, 1), max(batch, 1))
    elements = row * batch_group
    side_by_side = 1 if elements >= config.serial_elements else config.parallel_elements // elements
    chunk_group = max(min(side_by_side, chunks), 1)
    ragged = any(length != chunks * steps for length in lengths)
    forward = tuple(bool((walk == torch.arange(len(walk))).all()) for walk in walks)
    covers = all(length == positions for length in lengths)
    return Plan(index.to(device), lengths, steps, chunks, chunk_group, batch_group, ragged, covers, forward)
