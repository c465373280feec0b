"""Label maps from trained networks: gaussian sliding windows, on the grid of the input."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ssmvision.recipes.devices import pick_device
from ssmvision.recipes.segmentation.ensemble import Ensemble, mirrored
from ssmvision.recipes.segmentation.maps import Maps, label_dtype
from ssmvision.recipes.segmentation.memory_plan import MemoryPlan, Placement, is_out_of_memory, memory_plan
from ssmvision.recipes.segmentation.preprocessing import Preprocessing
from ssmvision.recipes.segmentation.resampling import Regrid
from ssmvision.recipes.segmentation.streaming import WindowGrid, stream_logits
from ssmvision.recipes.segmentation.weights import ModelCard, open_model

__all__ = ["Predictor", "load_model"]


class Predictor:
    """Trained networks ready for use on arrays.

    Args:
        network: returns one tensor of logits, or a list with full resolution first.
        card: how images must be prepared.
        device: where the network runs.
        overlap: share of the patch by which windows overlap, in [0, 1).
        mirror_axes: axes for test-time mirroring; logits of all combinations are averaged. None: all axes.
        ensemble: further networks with their cards; logits of all are averaged.
        window_batch: windows per call of the network.

    Attributes:
        labels: name to id.
        channels: names of the expected channels.
    """

    def __init__(
        self,
        network: nn.Module,
        card: ModelCard,
        device: str | torch.device = "auto",
        overlap: float = 0.5,
        mirror_axes: Sequence[int] | None = (),
        ensemble: Sequence[tuple[nn.Module, ModelCard]] = (),
        window_batch: int = 1,
    ) -> None:
        if not 0 <= overlap < 1:
            raise ValueError(f"overlap is {overlap}, expected a share in [0, 1)")
        if window_batch < 1:
            raise ValueError(f"window_batch is {window_batch}, expected at least 1")
        dims = len(card.patch_size)
        mirror_axes = range(dims) if mirror_axes is None else mirror_axes
        if any(axis not in range(dims) for axis in mirror_axes) or len(set(mirror_axes)) < len(mirror_axes):
            raise ValueError(f"mirror_axes is {tuple(mirror_axes)}, expected different axes among 0 to {dims - 1}")
        self.device = pick_device(device) if isinstance(device, str) else device
        self.networks = Ensemble([(network, card), *ensemble])
        self.network, self.card = network, card
        self.overlap, self.mirror_axes, self.window_batch = overlap, tuple(mirror_axes), window_batch
        self.labels, self.channels = dict(card.labels), tuple(card.channels)

    def logits(self, image: NDArray[Any] | Tensor, affine: NDArray[np.float64] | None = None) -> Tensor:
        """Logits (K, X, Y, Z) float32 on the CPU, on the grid of `image`.

        Args:
            image: (C, X, Y, Z), or (X, Y, Z) for one channel; raw intensities.
            affine: (4, 4) voxel index to mm (RAS+). None: the array already has the model's orientation and spacing.

        Raises:
            ValueError: the number of axes or channels is wrong, or voxels are not finite.
        """
        result = np.empty((len(self.labels), *image.shape[-3:]), np.float32)
        self.fill(Maps(logits=result), image, affine)
        return torch.from_numpy(result)

    def probabilities(
        self, image: NDArray[Any] | Tensor, affine: NDArray[np.float64] | None = None
    ) -> NDArray[np.float32]:
        """Softmax of `logits`: (K, X, Y, Z) float32."""
        return self.logits(image, affine).softmax(0).numpy()

    def __call__(self, image: NDArray[Any] | Tensor, affine: NDArray[np.float64] | None = None) -> NDArray[np.uint8]:
        """Label ids (X, Y, Z) on the grid of `image`, smallest unsigned type; arguments as `logits`."""
        labels = np.zeros(image.shape[-3:], label_dtype(len(self.labels)))
        self.fill(Maps(labels=labels), image, affine)
        return labels

    def fill(
        self, maps: Maps, image: NDArray[Any] | Tensor, affine: NDArray[np.float64] | None = None, start: int = 0
    ) -> None:
        """Predicts into arrays on the grid of `image`; memory follows the window and the planes that it touches.

        Args:
            maps: what is wanted.
            image, affine: as `logits`.
            start: number of the first of `placements` to try.

        Raises:
            ValueError: as `logits`.
            RuntimeError: the network's output is not finite, or not even one window fits into memory.
        """
        data = self._checked(image)
        regrid = self.regrid(tuple(data.shape[1:]), affine).cut(data.numpy())
        prepared = regrid.forward(data)
        # Large images are held once: callers that let go of theirs free it here.
        del data, image
        spacing = self._planned() if affine is None else regrid.spacing_mm[: len(self.card.patch_size)]
        self.networks.set_spacing(spacing)
        if regrid.box is not None:
            maps.clear()
        with torch.inference_mode():
            scaled = self.networks.scaled(prepared)
            del prepared
            scaled = regrid.finish(scaled)
            self._within_memory(scaled, regrid, maps.through(regrid.turn), self.placements()[start:])

    def _checked(self, image: NDArray[Any] | Tensor) -> Tensor:
        data = torch.as_tensor(np.asarray(image, dtype=np.float32))
        data = data[None] if data.ndim == 3 else data
        if data.ndim != 4 or len(data) != len(self.channels):
            raise ValueError(
                f"image has shape {tuple(data.shape)}, expected ({len(self.channels)}, X, Y, Z): {self.channels}"
            )
        if not bool(torch.isfinite(data).all()):
            raise ValueError("image has voxels that are not finite; replace them first")
        return data

    def regrid(self, shape: Sequence[int], affine: NDArray[np.float64] | None) -> Regrid:
        """The way from the grid of an image (X, Y, Z) to the network's; `affine` as `logits`."""
        how: Preprocessing = self.card.preprocessing
        if affine is None:
            how, affine = replace(how, orientation=None, spacing_mm=None), np.eye(4)
        return Regrid.of(how, shape, affine)

    def _planned(self) -> list[float]:
        """The spacing that cases are resampled to; of an axis that keeps its own, the reference."""
        references = (member.spaced.reference_mm for member in self.networks.members)
        reference = next((found for found in references if found is not None), ())
        target = self.card.preprocessing.spacing_mm or (-1.0,) * len(reference)
        return [edge if edge > 0 else usual for edge, usual in zip(target, reference, strict=False)]

    def placements(self) -> list[Placement]:
        """Ways to run in the order of trying: fewer windows at a time, then sums on the CPU, then all of it there."""
        cpu, batch = torch.device("cpu"), self.window_batch
        batches = [batch >> i for i in range(batch.bit_length())]
        ways = [Placement(self.device, self.device, n) for n in batches]
        return list(dict.fromkeys([*ways, Placement(self.device, cpu), Placement(cpu, cpu)]))

    def memory_plans(
        self, shape: Sequence[int], affine: NDArray[np.float64] | None, map_bytes: int = 0, mapped_bytes: int = 0
    ) -> Iterator[MemoryPlan]:
        """What each of `placements` would need for an image (X, Y, Z); `map_bytes` in memory and in files."""
        regrid = self.regrid(shape, affine)
        for placement in self.placements():
            yield memory_plan(
                placement,
                regrid,
                shape,
                self.card.patch_size,
                self.overlap,
                channels=len(self.channels),
                scales=len(self.networks.scales),
                classes=len(self.labels),
                weight_bytes=self.networks.weight_bytes,
                map_bytes=map_bytes,
                mapped_bytes=mapped_bytes,
            )

    def _within_memory(self, image: Tensor, regrid: Regrid, maps: Maps, ways: Sequence[Placement]) -> None:
        """Runs by the first placement that fits into the device's memory; says so when it is not the first."""
        *placements, last = ways
        for placement in placements:
            try:
                return self._run(image, regrid, maps, placement)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                message = f"out of memory for shape {tuple(image.shape)} with {placement}; using less"
                warnings.warn(message, stacklevel=4)
            if placement.device.type == "cuda":
                torch.cuda.empty_cache()
        return self._run(image, regrid, maps, last)

    def _run(self, image: Tensor, regrid: Regrid, maps: Maps, placement: Placement) -> None:
        self.networks.to(placement.device)
        network = mirrored(self.networks, self.mirror_axes)
        patch = self.card.patch_size
        back = regrid.backward(WindowGrid.over(regrid.shape, patch, self.overlap).order[0])
        for block in stream_logits(
            network,
            image.to(placement.stitch),
            patch,
            self.overlap,
            batch=placement.batch,
            device=placement.device,
            stitch_device=placement.stitch,
        ):
            for finished in back.add(block) if regrid.resamples else [block]:
                maps.put(finished)


def load_model(
    path: Path | str,
    device: str = "auto",
    overlap: float = 0.5,
    mirror_axes: Sequence[int] | None = (),
    ensemble: Sequence[Path | str] = (),
    window_batch: int = 1,
) -> Predictor:
    """Opens a run folder or model.safetensors (with model.json beside it), and those whose logits are averaged in.

    Raises:
        UserError: missing, damaged or refused files, see `weights.open_model`.
    """
    network, card = open_model(path)
    return Predictor(network, card, device, overlap, mirror_axes, [open_model(p) for p in ensemble], window_batch)
