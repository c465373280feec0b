"""The trained network as a method of fusion, and its weights from a file."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ssmvision.convert import convert_state_dict, load_official, unwrap_checkpoint
from ssmvision.errors import UserError
from ssmvision.models.fusion_mamba import FusionMamba
from ssmvision.models.fusion_mamba_official import constructor_arguments
from ssmvision.recipes.fusion.progress import shown
from ssmvision.recipes.fusion.tiling import fused_in_tiles
from ssmvision.recipes.fusion.weights import CARD, WEIGHTS, open_model

__all__ = ["NetworkFusion", "load_checkpoint", "open_network"]

# Slices go through the network together up to so many pixels.
_PIXELS_AT_ONCE = 2**18


class _FusionNetwork(Protocol):
    """Two images (B, 1, H, W) in 0..1 to one."""

    stride: int

    def __call__(self, x1: Tensor, x2: Tensor) -> Tensor: ...


class NetworkFusion:
    """Slices through a network, several at once, large ones in tiles.

    Args:
        network: from two images (B, 1, H, W) in 0..1 of any size to one; `network.stride` is the grid that tiles keep.
        device: where it runs.
        tile: side in pixels beyond which images go through in tiles; 0: never.

    Raises:
        UserError: the tile is too small.
    """

    def __init__(self, network: nn.Module, device: torch.device, tile: int = 1024) -> None:
        self.network = cast(_FusionNetwork, network.to(device).eval())
        self.device, self.tile = device, tile
        least = 4 * self.network.stride
        if tile and tile < least:
            raise UserError(f"--tile is {tile}; this network needs at least {least} pixels, or 0 for no tiles")

    def __call__(self, a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
        """Fuse slices (S, H, W) in 0..1; the result is not cut to that range.

        Raises:
            UserError: the device's memory does not hold a tile.
        """
        fused = np.empty(a.shape, dtype=np.float32)
        step = max(1, _PIXELS_AT_ONCE // (a.shape[1] * a.shape[2]))
        for first in shown(range(0, len(a), step), "fusing slices"):
            part = slice(first, first + step)
            x1, x2 = (torch.from_numpy(np.ascontiguousarray(x[part])).unsqueeze(1).to(self.device) for x in (a, b))
            fused[part] = self._fused(x1, x2).squeeze(1).float().cpu().numpy()
        return fused

    def _fused(self, x1: Tensor, x2: Tensor) -> Tensor:
        tile = self.tile or max(x1.shape[2:])
        try:
            with torch.inference_mode():
                if max(x1.shape[2:]) <= tile:
                    return self.network(x1, x2)
                return fused_in_tiles(self.network, x1, x2, tile, tile // 16, tile // 8, self.network.stride)
        except torch.OutOfMemoryError:
            smaller = max(min(tile, *x1.shape[2:]) // 2, 4 * self.network.stride)
            raise UserError(
                f"{self.device} has too little memory for {x1.shape[2]}x{x1.shape[3]} pixels in tiles of {tile}; pass "
                f"--tile {smaller} or --device cpu"
            ) from None


def open_network(path: Path | None) -> nn.Module:
    """The network of a training, of a published checkpoint, or the one that ships, made ready for inference only.

    Args:
        path: run folder or .safetensors with model.json beside it; any file of `load_checkpoint`; None: what ships.

    Raises:
        UserError: missing, damaged or other files.
    """
    if path is None and not files("ssmvision.recipes.fusion").joinpath("pretrained", WEIGHTS).is_file():
        raise UserError(
            "no weights ship with this installation; pass --weights FILE, or --method average, max, laplacian, wavelet "
            "or guided"
        )
    if path is None or path.is_dir() or (path.suffix.lower() == ".safetensors" and path.with_name(CARD).is_file()):
        trained, _ = open_model(path)
        trained.network = trained.network.for_inference()
        return trained
    return load_checkpoint(path).for_inference()


def load_checkpoint(path: Path) -> FusionMamba:
    """FusionMamba from a file with its state dict alone: depths, widths and gate are read off the tensors.

    Args:
        path: .safetensors of `FusionMamba.state_dict()`, or a published checkpoint, which is read without running any
            code that it may hold. Published weights get the published gate, no dead tensors, and take any size.

    Raises:
        UserError: the file is missing or damaged, or holds other weights.
    """
    try:
        state = unwrap_checkpoint(load_official(path))
        with torch.device("meta"):  # initial values of 160 million parameters would take longer than their use
            network = FusionMamba(**constructor_arguments(state))
        network.load_state_dict(convert_state_dict(network, state), assign=True)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())[:300]
        raise UserError(f"{path}: no weights of FusionMamba for image fusion ({reason}); give another file") from None
    bad = [key for key, value in network.state_dict().items() if not bool(torch.isfinite(value).all())]
    if bad:
        raise UserError(f"{path}: non-finite values in {', '.join(bad[:3])}; get or train the weights again")
    return network.float().eval()
