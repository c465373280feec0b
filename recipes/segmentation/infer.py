"""Label maps from a trained network: gaussian sliding windows, on the grid of the input."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.inferers import SliceInferer, SlidingWindowInferer
from numpy.typing import NDArray
from torch import Tensor, nn

from ssmvision.recipes.devices import pick_device
from ssmvision.recipes.segmentation.spacing import SpacedNetwork, case_spacing
from ssmvision.recipes.segmentation.weights import ModelCard, open_model

__all__ = ["Predictor", "load_model", "sliding_logits"]


def sliding_logits(
    network: Callable[[Tensor], Tensor],
    image: Tensor,
    patch_size: Sequence[int],
    overlap: float = 0.5,
    mirror_axes: Sequence[int] = (),
    device: torch.device | None = None,
    stitch_device: torch.device | None = None,
) -> Tensor:
    """Logits of a whole volume from overlapping windows with Gaussian weights (sigma = patch / 8).

    Args:
        network: (1, C, *patch) to (1, K, *patch).
        image: (1, C, X, Y, Z); an axis shorter than the patch is padded with zeros and cropped.
        patch_size: three sizes, or two for a network that takes slices along the last axis.
        overlap: share of the patch by which windows overlap, in [0, 1).
        mirror_axes: axes for test-time mirroring; logits of all combinations are averaged.
        device: where windows are computed; None: where `image` is.
        stitch_device: where they are put together; None: where `image` is.

    Returns:
        (1, K, X, Y, Z) on `stitch_device`.
    """
    arguments: dict[str, Any] = {
        "roi_size": tuple(patch_size),
        "overlap": overlap,
        "mode": "gaussian",
        "sigma_scale": 0.125,
        "padding_mode": "constant",
        "sw_device": device,
        "device": stitch_device,
    }
    inferer = SlidingWindowInferer(**arguments) if len(patch_size) == 3 else SliceInferer(spatial_dim=2, **arguments)
    subsets = [[axis for i, axis in enumerate(mirror_axes) if n >> i & 1] for n in range(2 ** len(mirror_axes))]
    total: Tensor | None = None
    for subset in subsets:
        dims = [axis + 2 for axis in subset]
        logits = cast(Tensor, inferer(image.flip(dims), network)).flip(dims)
        total = logits if total is None else total + logits
    assert total is not None  # there is always the empty subset
    return total / len(subsets)


class Predictor:
    """A trained network ready for use on arrays.

    Args:
        network: returns one tensor of logits, or a list with full resolution first.
        card: how images must be prepared.
        device: where the network runs.
        overlap, mirror_axes: see `sliding_logits`.

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
        mirror_axes: Sequence[int] = (),
    ) -> None:
        if not 0 <= overlap < 1:
            raise ValueError(f"overlap is {overlap}, expected a share in [0, 1)")
        dims = len(card.patch_size)
        if any(axis not in range(dims) for axis in mirror_axes) or len(set(mirror_axes)) < len(mirror_axes):
            raise ValueError(f"mirror_axes is {tuple(mirror_axes)}, expected different axes among 0 to {dims - 1}")
        self.device = pick_device(device) if isinstance(device, str) else device
        self.network, self.card = network.to(self.device).eval(), card
        self.spaced = SpacedNetwork(self.network, card.architecture)
        # A network made by hand need not have the switch; ours then skip the heads that nobody reads.
        switchable: Any = self.network
        if hasattr(switchable, "deep_supervision"):
            switchable.deep_supervision = False
        self.overlap, self.mirror_axes = overlap, tuple(mirror_axes)
        self.labels, self.channels = dict(card.labels), tuple(card.channels)

    def logits(self, image: NDArray[Any] | Tensor, affine: NDArray[np.float64] | None = None) -> Tensor:
        """Logits (K, X, Y, Z) float32 on the CPU, on the grid of `image`.

        Args:
            image: (C, X, Y, Z), or (X, Y, Z) for one channel; raw intensities.
            affine: (4, 4) voxel index to mm (RAS+). None: the array already has the model's orientation and spacing.

        Raises:
            ValueError: the number of axes or channels is wrong, or voxels are not finite.
        """
        data = torch.as_tensor(np.asarray(image, dtype=np.float32))
        data = data[None] if data.ndim == 3 else data
        if data.ndim != 4 or len(data) != len(self.channels):
            raise ValueError(
                f"image has shape {tuple(data.shape)}, expected ({len(self.channels)}, X, Y, Z): {self.channels}"
            )
        if not bool(torch.isfinite(data).all()):
            raise ValueError("image has voxels that are not finite; replace them first")
        how = self.card.preprocessing
        stored = affine
        if affine is None:
            how, affine = replace(how, orientation=None, spacing_mm=None), np.eye(4)
        prepared: MetaTensor = how.image(data, affine)
        self.spaced.set_spacing(
            self._planned() if stored is None else case_spacing(prepared, len(self.card.patch_size)).tolist()
        )
        with torch.inference_mode():
            result = self._within_memory(prepared.as_tensor()[None].float())
        return how.restore(result[0].cpu(), prepared)

    def _planned(self) -> list[float]:
        """The spacing that cases are resampled to; of an axis that keeps its own, the reference."""
        reference = self.spaced.reference_mm or ()
        target = self.card.preprocessing.spacing_mm or (-1.0,) * len(reference)
        return [edge if edge > 0 else usual for edge, usual in zip(target, reference, strict=False)]

    def plans(self) -> list[tuple[torch.device, torch.device]]:
        """(device of the windows, device of the whole volume), in the order in which they are tried."""
        cpu = torch.device("cpu")
        return list(dict.fromkeys([(self.device, self.device), (self.device, cpu), (cpu, cpu)]))

    def _within_memory(self, image: Tensor) -> Tensor:
        """Logits by the first plan that fits into the device's memory; says so when it is not the first."""
        *plans, last = self.plans()
        for device, stitch in plans:
            try:
                return self._run_plan(image, device, stitch)
            except torch.OutOfMemoryError:
                message = f"{device} is out of memory for shape {tuple(image.shape)} stitched on {stitch}; using less"
                warnings.warn(message, stacklevel=3)
        return self._run_plan(image, *last)

    def _run_plan(self, image: Tensor, device: torch.device, stitch: torch.device) -> Tensor:
        self.network.to(device)
        arguments = (self.card.patch_size, self.overlap, self.mirror_axes, device, stitch)
        return sliding_logits(self._forward, image.to(stitch), *arguments)

    def _forward(self, window: Tensor) -> Tensor:
        output = self.network(window)
        return cast(Tensor, output[0] if isinstance(output, list | tuple) else output)

    def probabilities(
        self, image: NDArray[Any] | Tensor, affine: NDArray[np.float64] | None = None
    ) -> NDArray[np.float32]:
        """Softmax of `logits`: (K, X, Y, Z) float32."""
        return self.logits(image, affine).softmax(0).numpy()

    def __call__(self, image: NDArray[Any] | Tensor, affine: NDArray[np.float64] | None = None) -> NDArray[np.uint8]:
        """Label ids (X, Y, Z) on the grid of `image`; arguments as `logits`."""
        return self.logits(image, affine).argmax(0).numpy().astype(np.min_scalar_type(len(self.labels) - 1))


def load_model(
    path: Path | str, device: str = "auto", overlap: float = 0.5, mirror_axes: Sequence[int] = ()
) -> Predictor:
    """Opens a run folder or model.safetensors (with model.json beside it).

    Raises:
        UserError: missing, damaged or refused files, see `weights.open_model`.
    """
    network, card = open_model(path)
    return Predictor(network, card, device, overlap, mirror_axes)
