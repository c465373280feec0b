"""Plans the configurations of a dataset from its fingerprint, by the rules of nnU-Net v2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from ssmvision.errors import UserError
from ssmvision.recipes.planning.budgets import Budget
from ssmvision.recipes.planning.fingerprint import Fingerprint
from ssmvision.recipes.planning.normalization import mask_for_norm, scheme_of
from ssmvision.recipes.planning.patch import plan_patch
from ssmvision.recipes.planning.plan import Cascade, Configuration
from ssmvision.recipes.planning.spacing import coarsest_first, resampled_shape, target_spacing

__all__ = ["Decisions", "decide"]

# A patch that covers less than this share of the median volume sees too little of it, so that a second configuration
# at low resolution is planned.
LOWRES_BELOW = 0.25
LOWRES_STEP = 1.03
LOWRES_MIN_REDUCTION = 2.0


@dataclass(frozen=True)
class Decisions:
    """What the rules decide; see `Plan` for the fields."""

    transpose_forward: tuple[int, ...]
    transpose_backward: tuple[int, ...]
    median_spacing_mm: tuple[float, ...]
    median_shape: tuple[int, ...]
    configurations: dict[str, Configuration]
    cascade: dict[str, Cascade]


@dataclass(frozen=True)
class _Rules:
    """What all configurations of a dataset share."""

    channels: tuple[str, ...]
    classes: int
    cases: int
    cropped_share: float
    budget: Budget

    def configuration(
        self, spacing: NDArray[np.float64], shape: Sequence[float], dataset_voxels: float, batch_dice: bool
    ) -> Configuration:
        patch = plan_patch(spacing.tolist(), shape, dataset_voxels, self.classes, self.budget)
        schemes = tuple(scheme_of(name) for name in self.channels)
        return Configuration(
            spacing_mm=tuple(spacing.tolist()),
            median_shape=tuple(shape),
            patch_size=patch.patch_size,
            batch_size=patch.batch_size,
            batch_dice=batch_dice,
            normalization=schemes,
            use_mask_for_norm=mask_for_norm(schemes, self.cropped_share),
            features_per_stage=patch.features,
            strides=patch.topology.strides,
            kernel_sizes=patch.topology.kernel_sizes,
            n_conv_per_stage=self.budget.blocks(len(patch.features)),
            n_conv_per_stage_decoder=self.budget.decoder_blocks(len(patch.features)),
        )


def decide(
    fingerprint: Fingerprint,
    channels: Sequence[str],
    classes: int,
    cases: int,
    budget: Budget,
    spacing_mm: Sequence[float] | None = None,
) -> Decisions:
    """Target spacing, order of axes, and up to three configurations.

    "2d" is always planned, "3d_fullres" unless the volumes are single slices, "3d_lowres" where it pays.

    Args:
        fingerprint: axes (z, y, x).
        channels: names, which decide the normalisation.
        classes: labels in the dataset's list, background included.
        cases: training cases.
        budget: already scaled to the memory at hand.
        spacing_mm: full-resolution voxel size (z, y, x) to use instead of the rule's.

    Raises:
        UserError: the budget is too small for any patch, or the wanted voxels are larger than the median case.
    """
    spacings, shapes = fingerprint.spacings, fingerprint.shapes_after_crop
    target = target_spacing(spacings, shapes) if spacing_mm is None else np.array(spacing_mm, dtype=np.float64)
    _check_extent(fingerprint, target)
    order = list(coarsest_first(target))
    full, shape = target[order], _median_shape(fingerprint, target)[order]
    voxels = float(np.prod(shape)) * cases
    rules = _Rules(tuple(channels), classes, cases, fingerprint.median_relative_size_after_cropping, budget)
    configurations = {"2d": rules.configuration(full[1:], shape[1:].tolist(), voxels, batch_dice=True)}
    cascade = {}
    if shape[0] != 1:
        lowres = _lowres(rules, full, shape)
        if lowres is not None:
            configurations["3d_lowres"] = lowres
            cascade["3d_cascade_fullres"] = Cascade("3d_fullres", "3d_lowres")
        configurations["3d_fullres"] = rules.configuration(full, shape.tolist(), voxels, lowres is not None)
    return Decisions(
        tuple(order),
        tuple(int(axis) for axis in np.argsort(order)),
        tuple(np.median(spacings, axis=0)[order].tolist()),
        tuple(round(float(n)) for n in np.median(shapes, axis=0)[order]),
        configurations,
        cascade,
    )


def _check_extent(fingerprint: Fingerprint, target: NDArray[np.float64]) -> None:
    extent = np.median(np.multiply(fingerprint.spacings, fingerprint.shapes_after_crop), axis=0)
    if (target > extent).any():
        sizes, room = (" x ".join(f"{edge:g}" for edge in edges[::-1]) for edges in (target, extent))
        raise UserError(
            f"spacing_mm: voxels of {sizes} mm (x, y, z) are larger than the median case, which measures {room} mm; "
            "give smaller sizes"
        )


def _median_shape(fingerprint: Fingerprint, target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Voxels per axis of the median case at the target voxel size."""
    rows = zip(fingerprint.shapes_after_crop, fingerprint.spacings, strict=True)
    median: NDArray[np.float64] = np.median([resampled_shape(shape, edges, target) for shape, edges in rows], axis=0)
    return median


def _lowres(rules: _Rules, full: NDArray[np.float64], shape: NDArray[np.float64]) -> Configuration | None:
    """Coarsens the voxels until a patch covers a quarter of the median volume; None where that is not worth while."""
    full_voxels = float(np.prod(shape))
    planned = rules.configuration(full, shape.tolist(), full_voxels * rules.cases, batch_dice=False)
    spacing, voxels, lowres = full.copy(), full_voxels, None
    while prod(planned.patch_size) / voxels < LOWRES_BELOW:
        # Axes more than twice as fine as the coarsest catch up with it first.
        fine = max(spacing) / spacing > 2
        spacing[fine if fine.any() else slice(None)] *= LOWRES_STEP
        smaller = full / spacing * shape
        voxels = float(np.prod(smaller))
        rounded = [round(float(n)) for n in smaller]
        planned = lowres = rules.configuration(spacing, rounded, voxels * rules.cases, batch_dice=False)
    return lowres if full_voxels / voxels >= LOWRES_MIN_REDUCTION else None
