"""The plan of a segmentation: everything that the data decide, in one file that people can read and edit."""

from __future__ import annotations

from dataclasses import dataclass, field

from ssmvision.recipes.planning.config import NetworkName
from ssmvision.recipes.planning.fingerprint import Intensities
from ssmvision.recipes.planning.normalization import Scheme

__all__ = ["Cascade", "Configuration", "Plan"]


@dataclass(frozen=True)
class Configuration:
    """One way to train: on slices, on whole volumes at full resolution, or on volumes at low resolution.

    Axes are in the plan's order, see `Plan.axes`; a 2D configuration has the last two.

    Args:
        spacing_mm: voxel edges to resample to.
        median_shape: voxels of the median case at that spacing; may end in .5.
        patch_size: voxels per axis of the training patches.
        batch_size: patches per step.
        batch_dice: the Dice loss is taken over the whole batch instead of patch by patch.
        normalization: intensity scale per channel.
        use_mask_for_norm: per channel, whether its mean and deviation leave out the zeros around the object.
        features_per_stage: channels per resolution.
        strides: per stage and axis, on entering the stage.
        kernel_sizes: per stage and axis.
        n_conv_per_stage: blocks per encoder stage.
        n_conv_per_stage_decoder: blocks per decoder level, deepest first.
    """

    spacing_mm: tuple[float, ...]
    median_shape: tuple[float, ...]
    patch_size: tuple[int, ...]
    batch_size: int
    batch_dice: bool
    normalization: tuple[Scheme, ...]
    use_mask_for_norm: tuple[bool, ...]
    features_per_stage: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernel_sizes: tuple[tuple[int, ...], ...]
    n_conv_per_stage: tuple[int, ...]
    n_conv_per_stage_decoder: tuple[int, ...]


@dataclass(frozen=True)
class Cascade:
    """A configuration that refines another's result: it is `inherits_from`, fed with the labels of `previous_stage`."""

    inherits_from: str
    previous_stage: str


@dataclass(frozen=True)
class Plan:
    """All configurations of a dataset; the fields of the plan file.

    Args:
        dataset: name of its folder.
        channels: names of the image channels.
        labels: name to id.
        training_cases: how many the plan was made from.
        orientation: axis codes that cases are turned to before anything else; null: the axes as stored.
        axes: names of the axes of everything below, slowest first; x, y and z are the first, second and third axis of
            the turned NIfTI file. 2D slices have the last two.
        transpose_forward: the same order as numbers, 0 for z, 1 for y, 2 for x (nnU-Net's convention).
        transpose_backward: the inverse order.
        median_spacing_mm: of the cases as they are.
        median_shape: of the cases as they are, after cropping to what is not zero, rounded.
        budget: name of the preset.
        vram_gb: memory target.
        counted_network: the network of nnU-Net whose activations stand for the memory.
        network: to train, see `ModelConfig.name`.
        mixer: see `ModelConfig.mixer`.
        configurations: by name, "2d", "3d_lowres", "3d_fullres".
        cascade: by name; present with "3d_lowres".
        foreground_intensities: per channel; empty without labelled voxels.
    """

    dataset: str
    channels: tuple[str, ...]
    labels: dict[str, int]
    training_cases: int
    orientation: str | None
    axes: tuple[str, ...]
    transpose_forward: tuple[int, ...]
    transpose_backward: tuple[int, ...]
    median_spacing_mm: tuple[float, ...]
    median_shape: tuple[int, ...]
    budget: str
    vram_gb: float
    counted_network: str
    network: NetworkName
    mixer: str
    configurations: dict[str, Configuration]
    cascade: dict[str, Cascade] = field(default_factory=dict)
    foreground_intensities: tuple[Intensities, ...] = ()
