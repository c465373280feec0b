"""Several networks, and mirrored copies of the image, as one network: the mean of all logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ssmvision.recipes.segmentation.preprocessing import ChannelScale
from ssmvision.recipes.segmentation.spacing import SpacedNetwork
from ssmvision.recipes.segmentation.weights import ModelCard

__all__ = ["Ensemble", "mirrored"]


def mirrored(network: Callable[[Tensor], Tensor], axes: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """A network that averages its logits over all combinations of mirrored axes (test-time augmentation).

    Every window is mirrored where it lies, as in nnU-Net, so that the windows' places do not depend on it.

    Args:
        network: (B, C, *spatial) to (B, K, *spatial).
        axes: spatial axes, from 0.
    """
    subsets = [[2 + axis for i, axis in enumerate(axes) if n >> i & 1] for n in range(2 ** len(axes))]

    def forward(window: Tensor) -> Tensor:
        total = network(window)
        for dims in subsets[1:]:
            total = total + network(window.flip(dims)).flip(dims)
        return total / len(subsets)

    return forward if axes else network


@dataclass(frozen=True)
class Member:
    """One network with its place among the prepared images."""

    network: nn.Module
    spaced: SpacedNetwork
    image: int


class Ensemble:
    """Networks that see the same grid; they may differ in architecture and in the scale of intensities.

    Args:
        parts: networks with their cards; the first one's card speaks for all.

    Raises:
        ValueError: labels, channels, patch size, orientation or spacing differ.
    """

    def __init__(self, parts: Sequence[tuple[nn.Module, ModelCard]]) -> None:
        self.card = parts[0][1]
        for i, (_, card) in enumerate(parts[1:], 2):
            self._check(card, i)
        self.scales: list[tuple[ChannelScale, ...]] = list(dict.fromkeys(c.preprocessing.scales for _, c in parts))
        self.members = [
            Member(network.eval(), SpacedNetwork(network, card.architecture), self.scales.index(scales))
            for network, card in parts
            for scales in [card.preprocessing.scales]
        ]
        for member in self.members:
            # A network made by hand need not have the switch; ours then skip the heads that nobody reads.
            if hasattr(member.network, "deep_supervision"):
                setattr(member.network, "deep_supervision", False)  # noqa: B010 - nn.Module types it as a tensor

    def _check(self, card: ModelCard, number: int) -> None:
        for what, found, expected in (
            ("labels", card.labels, self.card.labels),
            ("channels", tuple(card.channels), tuple(self.card.channels)),
            ("patch_size", tuple(card.patch_size), tuple(self.card.patch_size)),
            ("orientation", card.preprocessing.orientation, self.card.preprocessing.orientation),
            ("spacing_mm", card.preprocessing.spacing_mm, self.card.preprocessing.spacing_mm),
            ("preprocessing rules", card.preprocessing.rules, self.card.preprocessing.rules),
        ):
            if found != expected:
                raise ValueError(
                    f"model {number} of the ensemble has {what} {found}, the first one {expected}; "
                    "train the folds from one plan"
                )

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights and buffers."""
        tensors = (t for m in self.members for t in (*m.network.parameters(), *m.network.buffers()))
        return sum(t.numel() * t.element_size() for t in tensors)

    def to(self, device: torch.device) -> None:
        """Moves all networks."""
        for member in self.members:
            member.network.to(device)

    def set_spacing(self, spacing_mm: Sequence[float]) -> None:
        """Says the voxel edges in mm to the networks that ask for them."""
        for member in self.members:
            member.spaced.set_spacing(spacing_mm)

    def scaled(self, image: Tensor) -> Tensor:
        """An image (C, X, Y, Z) on the networks' grid in every scale that a network needs: (S x C, X, Y, Z)."""
        images = [replace(self.card.preprocessing, scales=scales).scale(image) for scales in self.scales]
        return images[0] if len(images) == 1 else torch.cat(images)

    def __call__(self, window: Tensor) -> Tensor:
        """Mean logits (B, K, *spatial) of a window (B, S x C, *spatial) of `scaled`."""
        images = window.chunk(len(self.scales), 1)
        total: Tensor | None = None
        for member in self.members:
            output = member.network(images[member.image])
            logits = output[0] if isinstance(output, list | tuple) else output
            total = logits if total is None else total + logits
        assert total is not None  # there is always the first network
        return total / len(self.members) if len(self.members) > 1 else total
