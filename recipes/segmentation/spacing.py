"""Tells a network that takes it the voxel spacing of the images that it gets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

__all__ = ["SpacedNetwork", "case_spacing"]

Outputs = Tensor | list[Tensor]
# Millimetres are rounded to micrometres: stored affines differ in digits that mean nothing, and every new spacing costs
# new kernels.
DIGITS = 3


def case_spacing(image: Any, axes: int) -> Tensor:
    """Voxel edges in mm along the first axes of a MetaTensor: (axes,) float32."""
    return torch.tensor([float(edge) for edge in image.pixdim[:axes]])


class SpacedNetwork:
    """A network called with the spacing of each image; one that does not ask for spacings is called as it is.

    Args:
        network: of any kind; `set_spacing(spacing, reference)` is called on those that have a reference, see
            `ssmvision.models.useg_s4nd`.
        architecture: that the network was built from, see `architecture.plan_network`.
    """

    def __init__(self, network: nn.Module, architecture: Mapping[str, Any]) -> None:
        self.network = network
        reference = architecture.get("reference_spacing_mm")
        self.reference_mm: tuple[float, ...] | None = None if reference is None else tuple(map(float, reference))

    def __call__(self, image: Tensor, spacing_mm: Tensor) -> Outputs:
        """Outputs for images of one or several spacings.

        Args:
            image: (B, C, *spatial).
            spacing_mm: (B, axes), voxel edges in mm.

        Returns:
            What the network returns, in the order of the batch.
        """
        if self.reference_mm is None:
            return cast(Outputs, self.network(image))
        groups: dict[tuple[float, ...], list[int]] = {}
        for i, row in enumerate(spacing_mm.tolist()):
            groups.setdefault(tuple(round(edge, DIGITS) for edge in row), []).append(i)
        # Parts of a batch may run apart: the networks normalise every image by itself.
        parts = []
        for spacing, members in groups.items():
            self.set_spacing(spacing)
            parts.append(cast(Outputs, self.network(image if len(groups) == 1 else image[members])))
        if len(parts) == 1:
            return parts[0]
        order = torch.tensor([i for members in groups.values() for i in members], device=image.device).argsort()
        if isinstance(parts[0], Tensor):
            return torch.cat(cast("list[Tensor]", parts))[order]
        return [torch.cat(level)[order] for level in zip(*parts, strict=True)]

    def set_spacing(self, spacing_mm: Sequence[float]) -> None:
        """Say the spacing of all images to come: (axes,) in mm."""
        if self.reference_mm is not None:
            tell = cast(Callable[[Sequence[float], Sequence[float]], None], self.network.set_spacing)
            tell([round(float(edge), DIGITS) for edge in spacing_mm], self.reference_mm)
