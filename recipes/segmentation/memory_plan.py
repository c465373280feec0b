"""Bytes that a prediction will need, known from the file's header before any voxel is read."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ssmvision.recipes.segmentation.resampling import CHUNK_BYTES, Regrid
from ssmvision.recipes.segmentation.streaming import WindowGrid

__all__ = ["MemoryPlan", "Placement", "free_bytes", "is_out_of_memory", "memory_plan"]

FLOAT32_BYTES = 4
# Stored image, its turned copy, the scaled one and an intermediate, as long as it is prepared.
COPIES_WHILE_PREPARED = 4
# What libraries take that are loaded, and set up their buffers, only on the way.
LIBRARY_BYTES = 2**27


@dataclass(frozen=True)
class Placement:
    """Where a prediction runs.

    Args:
        device: of the networks and the windows.
        stitch: of the image and the sums.
        batch: windows per call.
    """

    device: torch.device
    stitch: torch.device
    batch: int = 1

    def __str__(self) -> str:
        return f"{self.batch} window(s) at a time on {self.device}, sums on {self.stitch}"


@dataclass(frozen=True)
class MemoryPlan:
    """What is needed where, in bytes; a network's own activations come on top.

    Args:
        placement: where the prediction runs.
        host: by name, what is held in main memory together while windows run.
        preparing: main memory as long as the image is prepared, before that.
        device: by name, what is held on the accelerator; empty on a CPU.
        disk: of temporary arrays.
        windows: their number.
    """

    placement: Placement
    host: dict[str, int]
    preparing: int
    device: dict[str, int]
    disk: int
    windows: int

    @property
    def host_bytes(self) -> int:
        """Largest need of main memory."""
        return max(sum(self.host.values()), self.preparing)

    @property
    def device_bytes(self) -> int:
        """Need of the accelerator's memory."""
        return sum(self.device.values())

    def lacks(self, host_free: int | None, device_free: int | None) -> str | None:
        """Why this plan cannot run, or None; free bytes that are unknown (None) refuse nothing."""
        if device_free is not None and self.device_bytes > device_free:
            needed, free = megabytes(self.device_bytes), megabytes(device_free)
            return f"{self.placement.device} would need {needed} and has {free} free"
        if host_free is not None and self.host_bytes > host_free:
            return f"{megabytes(self.host_bytes)} of main memory would be needed, {megabytes(host_free)} may be used"
        return None

    def lines(self) -> list[str]:
        """The plan for people."""
        parts = [("main memory", self.host, self.host_bytes)]
        if self.device:
            parts.append((str(self.placement.device), self.device, self.device_bytes))
        told = [f"{self.windows} windows, {self.placement}; temporary files {megabytes(self.disk)}"]
        for name, items, total in parts:
            listed = ", ".join(f"{what} {megabytes(size)}" for what, size in items.items())
            told.append(f"{name}: {megabytes(total)} and the network's activations ({listed})")
        told[1] += f"; while the image is prepared {megabytes(self.preparing)}"
        return told


def megabytes(size: int) -> str:
    """Bytes as megabytes, 10^6, rounded up."""
    return f"{math.ceil(size / 1e6)} MB"


def memory_plan(
    placement: Placement,
    regrid: Regrid,
    stored_shape: Sequence[int],
    patch_size: Sequence[int],
    overlap: float,
    *,
    channels: int,
    scales: int,
    classes: int,
    weight_bytes: int,
    map_bytes: int,
    mapped_bytes: int = 0,
) -> MemoryPlan:
    """Adds up what is held at a time.

    Args:
        placement: where it would run.
        regrid: from the stored grid to the network's.
        stored_shape: (X, Y, Z) of the file.
        patch_size, overlap: of the windows, see `stream_logits`.
        channels, scales, classes: of the image, its copies in other scales, the output.
        weight_bytes: of all networks.
        map_bytes: of the results that are kept in memory.
        mapped_bytes: of those that are kept in temporary files.
    """
    grid = WindowGrid.over(regrid.shape, patch_size, overlap)
    voxels, stored = math.prod(regrid.shape), math.prod(stored_shape)
    window = placement.batch * (channels * scales + classes) * math.prod(grid.window) * FLOAT32_BYTES
    image = scales * channels * voxels * FLOAT32_BYTES
    sums = grid.kept_bytes(classes)
    stitching = {"image": image, "sums": sums}
    if regrid.resamples:
        axis = grid.order[0]
        planes = grid.window[axis] * math.prod(n for i, n in enumerate(regrid.shape) if i != axis)
        stitching["planes to resample"] = classes * planes * FLOAT32_BYTES + 2 * CHUNK_BYTES
    running = {"weights": weight_bytes, "windows": window}
    host = {"in use": used_bytes(), "libraries": LIBRARY_BYTES, "results": map_bytes}
    device: dict[str, int] = {}
    for where, items in ((placement.stitch, stitching), (placement.device, running)):
        (host if where.type == "cpu" else device).update(items)
    host.setdefault("image", image)
    preparing = (
        host["in use"]
        + LIBRARY_BYTES
        + map_bytes
        + COPIES_WHILE_PREPARED * FLOAT32_BYTES * channels * max(voxels, stored)
    )
    return MemoryPlan(placement, host, preparing, device, mapped_bytes, grid.count)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an accelerator or main memory was short; torch has no exception of its own for the latter."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in str(error)


def used_bytes() -> int:
    """Main memory of this process; 0 where the system does not tell."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if status.exists() else 0


def free_bytes(device: torch.device) -> int | None:
    """Memory that this process may fill, with what it holds already; None: unknown."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    memory = Path("/proc/meminfo")
    if device.type != "cpu" or not memory.exists():
        return None
    entries = dict(line.split(":", 1) for line in memory.read_text().splitlines())
    available = int(entries["MemAvailable"].split()[0]) * 1024
    return used_bytes() + min(available, container_bytes(Path("/sys/fs/cgroup"), available))


def container_bytes(group: Path, otherwise: int) -> int:
    """What a container's limit (cgroup 2) leaves; `otherwise` where there is no limit."""
    limit, held, stat = (group / name for name in ("memory.max", "memory.current", "memory.stat"))
    if not limit.exists() or limit.read_text().strip() == "max":
        return otherwise
    entries = dict(line.split() for line in stat.read_text().splitlines())
    # Cached file pages count against the limit but are given up on demand.
    return int(limit.read_text()) - int(held.read_text()) + int(entries["inactive_file"])
