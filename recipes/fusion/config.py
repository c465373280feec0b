"""Settings of the fusion recipe: standard library only, so that a command line can read them at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

__all__ = [
    "AugmentConfig",
    "DataConfig",
    "FusionTrainConfig",
    "GradientForm",
    "IntensityTarget",
    "LossConfig",
    "ModelConfig",
    "Output",
    "StructureForm",
    "TrainerConfig",
]

IntensityTarget = Literal["max", "mean"]
GradientForm = Literal["magnitude", "vector"]
StructureForm = Literal["ssim", "published"]
Output = Literal["image", "weights"]


@dataclass(frozen=True)
class LossConfig:
    """What the fused image should keep; see `ssmvision.recipes.fusion.losses` for formulas and sources.

    Args:
        structure: weight of the structural term.
        intensity: weight of the intensity term.
        gradient: weight of the gradient term.
        intensity_target: "max", the brighter pixel; or "mean".
        gradient_form: "magnitude", how strong edges are (published); or "vector", also their direction and sign.
        structure_form: "ssim"; or "published", the multi-scale form of FusionMamba's code.
        clamp: cut the fused image to [0, 1] first (published): where it is outside there is then no gradient.
        data_range: distance of white from black in the structural term; null guesses it as the published code does.
    """

    structure: float = 1.0
    intensity: float = 1.0
    gradient: float = 1.0
    intensity_target: IntensityTarget = "mean"
    gradient_form: GradientForm = "vector"
    structure_form: StructureForm = "ssim"
    clamp: bool = False
    data_range: float | None = 1.0

    @classmethod
    def published(cls) -> LossConfig:
        """FusionMamba's training code, weights for CT-MRI; its author took structure=1 for M3FD (infrared-visible)."""
        return cls(10.0, 10.0, 1.0, "max", "magnitude", "published", True, None)


@dataclass(frozen=True)
class DataConfig:
    """Registered images of two kinds.

    Args:
        a: folder of the first images (PNG, TIFF, JPEG, NIfTI, DICOM series), or one of them.
        b: folder of the second images, of the same names, endings aside; or the second image.
        validation_pairs: names of the pairs held out for validation; empty: `validation_fraction` decides.
        validation_fraction: share of the pairs held out, chosen by the trainer's seed: at least one where there are
            two or more and the share is above 0. Of volumes, whole ones are held out, never slices of one.
        axis: direction that volumes are sliced across; "auto" is that of the thickest voxels, else axial.
        window_a: stored values of black and white of the first images; null: the range of a picture's format, or the
            smallest and largest value of the whole volume (never of a slice).
        window_b: the same for the second images.
        num_workers: worker processes of the training loader; 0 loads in the main process.
    """

    a: Path
    b: Path
    validation_pairs: tuple[str, ...] = ()
    validation_fraction: float = 0.2
    axis: Literal["auto", "axial", "coronal", "sagittal"] = "auto"
    window_a: tuple[float, float] | None = None
    window_b: tuple[float, float] | None = None
    num_workers: int = 0


@dataclass(frozen=True)
class ModelConfig:
    """The network; see `ssmvision.models.fusion_mamba.FusionMamba`.

    Args:
        depths: blocks per encoder stage, finest first.
        depths_decoder: blocks per decoder stage, coarsest first.
        dims: channels per stage, each twice the one before.
        d_state: states per channel.
        drop_path_rate: largest stochastic depth.
        fusion_block: "coupled" for states of both images that see each other, in place of the published block. Null:
            that one.
        faithful: the published network tensor for tensor, dead weights included.
        output: "image", what the network computes is added to both images, as published; or "weights", it decides pixel
            by pixel how much of each image is taken. Then every pixel lies between those of the images, so that nothing
            can be in the result that is in neither; and a small network is enough.
        input_scale: what images are multiplied by first. The network adds twice its inputs to its result, so that 0.25
            lets an "image" start from the mean of the two; the published one has 1. Of "weights" nothing depends on it
            but the start of the training.
        smooth_px: standard deviation in pixels of the Gaussian that weights are blurred by, before the sigmoid; without
            it the grid of the network's patches of 4 pixels shows along edges. 0: none.
    """

    depths: tuple[int, ...] = (1, 1)
    depths_decoder: tuple[int, ...] = (1, 1)
    dims: tuple[int, ...] = (32, 64)
    d_state: int = 8
    drop_path_rate: float = 0.0
    fusion_block: Literal["coupled"] | None = None  # null, so that runs from before it was there resume
    faithful: bool = False
    output: Output = "weights"
    input_scale: float = 1.0
    smooth_px: float = 1.5


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of the training crops; both images get the same change of place.

    Args:
        flip_axes: axes (0 rows, 1 columns) mirrored with probability one half.
        rotate90: also turn by a multiple of 90 degrees.
        swap: probability of exchanging the two images.
        invert: probability, for each image by itself, of exchanging black and white.
        gamma: range of the exponents that change each image's tones by themselves; 1 to 1: none.
        gamma_probability: for each image by itself.
    """

    flip_axes: tuple[int, ...] = (0, 1)
    rotate90: bool = True
    swap: float = 0.5
    invert: float = 0.0
    gamma: tuple[float, float] = (0.7, 1.4)
    gamma_probability: float = 0.3


@dataclass(frozen=True)
class TrainerConfig:
    """Length, optimiser (AdamW) and hardware of a training run.

    Args:
        max_epochs: epochs of `steps_per_epoch` batches each, whatever the number of images.
        steps_per_epoch: optimiser steps, one batch each.
        max_minutes: stop after the epoch in which this much wall-clock time is spent; null: no limit.
        batch_size: crops per step.
        lr: largest learning rate; it rises linearly over `warmup_steps` and falls to 0 by half a cosine.
        warmup_steps: see `lr`.
        weight_decay: not applied to A_log, D, biases and norms.
        gradient_clip: largest gradient norm; 0: no clipping.
        ema_decay: of the moving average of the weights that is validated and saved; 0: the last weights are.
        precision: "32-true" or "bf16-mixed" (scans and losses stay in float32).
        validate_every: epochs between validations on whole images (the last epoch is always validated).
        previews: validation pairs that are drawn after every epoch (training pairs where nothing is held out).
        seed: of weights, split, crops and augmentation.
        deterministic: ask torch for deterministic algorithms, with a warning where one has none.
        accelerator: "auto", "cpu", "gpu" or "mps", as Lightning takes it; one device is used.
        threads: CPU threads of torch; null: torch's own choice.
    """

    max_epochs: int = 40
    steps_per_epoch: int = 100
    max_minutes: float | None = None
    batch_size: int = 8
    lr: float = 2e-3
    warmup_steps: int = 50
    weight_decay: float = 1e-4
    gradient_clip: float = 1.0
    ema_decay: float = 0.99
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    validate_every: int = 5
    previews: int = 3
    seed: int = 0
    deterministic: bool = True
    accelerator: str = "auto"
    threads: int | None = None


@dataclass(frozen=True)
class FusionTrainConfig:
    """One training run of an image-fusion network.

    Args:
        data: what to train on.
        out: run folder; receives model.safetensors, model.json, last.ckpt, metrics.csv, config.json and previews/.
        model: the network.
        loss: what the fused image should keep.
        augment: random changes of the crops.
        trainer: length, optimiser and hardware.
        patch_size: height and width of the training crops in pixels; smaller images are continued by reflection.
        resume: continue the run in `out` from its last.ckpt.
        overwrite: replace the run in `out`.
    """

    data: DataConfig
    out: Path
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    patch_size: tuple[int, int] = (96, 96)
    resume: bool = False
    overwrite: bool = False
