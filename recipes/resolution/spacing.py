"""`ssmvision resolution spacing`: one S4ND layer on one real head at several slice thicknesses.

A layer whose kernels are samples of continuous functions can be given the voxel spacing: its response to thick slices
then approximates that to thin ones, which a layer that counts voxels cannot do. The T1 head is the MNI152 template out
of nilearn, see `ssmvision.recipes.segmentation.demo_data`.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssmvision.bench.table import markdown
from ssmvision.layers.s4nd import S4ND
from ssmvision.recipes.resolution.config import SpacingConfig
from ssmvision.recipes.resolution.digits import prepare_folder
from ssmvision.recipes.segmentation.demo_data import load_anatomy
from ssmvision.recipes.segmentation.writing import write_bytes

__all__ = ["Difference", "differences", "head", "run", "table"]

SCORES = "spacing.json"


@dataclass(frozen=True)
class Difference:
    """How far the layer's response to thick slices is from its averaged response to thin ones.

    Euclidean norm of the difference over that of the averaged response, a value a seed. Thick slices are fewer, so a
    layer that counts voxels sums over fewer of them: `scaled` forgives it any common factor.

    Attributes:
        thickness: of the slices, in thin ones.
        voxel_mm: spacing of the thick head.
        told: with `rate` set from the spacing.
        untold: with rate 1, as a layer that counts voxels.
        scaled: the same, each feature multiplied by the factor that fits best.
    """

    thickness: int
    voxel_mm: tuple[float, float, float]
    told: list[float]
    untold: list[float]
    scaled: list[float]


def run(config: SpacingConfig) -> list[Difference]:
    """Compute and print the table, and write it as JSON.

    Raises:
        UserError: nilearn is missing, or `out` holds results already.
    """
    out = Path(config.out)
    prepare_folder(out, (SCORES,), config.overwrite)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    found = differences(head(config.voxel_mm), config)
    write_bytes(out / SCORES, json.dumps([asdict(row) for row in found], indent=2) + "\n")
    print(table(found))
    return found


def head(voxel_mm: int) -> Tensor:
    """The T1 head (1, 1, X, Y, Z), float32, of unit variance; air stays 0, as beyond the volume."""
    volume = torch.from_numpy(load_anatomy(voxel_mm).t1)
    return (volume / volume.std())[None, None]


def differences(volume: Tensor, config: SpacingConfig) -> list[Difference]:
    """The comparison on a volume (1, 1, X, Y, Z), thickened along its last axis."""
    reference = (float(config.voxel_mm),) * 3
    rows = [Difference(n, (*reference[:2], n * reference[2]), [], [], []) for n in config.thickness]
    for seed in config.seeds:
        layer = _layer(config, seed)
        for row in rows:
            thin = volume[..., : volume.shape[-1] // row.thickness * row.thickness]
            thick = _thick(thin, row.thickness)
            expected = _thick(_respond(layer, thin, 1.0), row.thickness)
            rates = [now / then for now, then in zip(row.voxel_mm, reference, strict=True)]
            untold = _respond(layer, thick, 1.0)
            row.told.append(_relative(_respond(layer, thick, rates), expected))
            row.untold.append(_relative(untold, expected))
            row.scaled.append(_relative(untold * _best_factor(untold, expected), expected))
    return rows


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def _best_factor(found: Tensor, expected: Tensor) -> Tensor:
    """Of every feature, by least squares."""
    axes = (0, 2, 3, 4)
    return (found * expected).sum(axes, keepdim=True) / found.square().sum(axes, keepdim=True)


def _layer(config: SpacingConfig, seed: int) -> S4ND:
    torch.manual_seed(seed)
    steps: dict[str, Any] = {"dt_min": config.dt_min, "dt_max": config.dt_max}
    layer = S4ND(config.channels, config.d_state, dim=3, kernel="s4d", n_ssm=1, symmetric_center=True, **steps)
    # The skip sees no neighbour, so it is right at every spacing and would only hide differences.
    assert layer.D is not None
    torch.nn.init.zeros_(layer.D)
    return layer.eval()


@torch.no_grad()
def _respond(layer: S4ND, volume: Tensor, rate: float | Sequence[float]) -> Tensor:
    out: Tensor = layer(volume.expand(-1, layer.d_model, -1, -1, -1), rate)
    return out


def _thick(volume: Tensor, thickness: int) -> Tensor:
    return F.avg_pool3d(volume, (1, 1, thickness))


def table(rows: Sequence[Difference]) -> str:
    """Markdown: a row a thickness, mean and range over the seeds."""
    return markdown(
        [
            {
                "voxel mm": " x ".join(f"{edge:g}" for edge in row.voxel_mm),
                "rate from spacing": _range(row.told),
                "rate 1": _range(row.untold),
                "rate 1, best factor": _range(row.scaled),
            }
            for row in rows
        ]
    )


def _range(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"
