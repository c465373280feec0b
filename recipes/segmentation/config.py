"""Settings of the segmentation recipe: standard library only, so that a command line can read them at once.

Units are in the names: `_mm` is millimetres, `_minutes` minutes; sizes without a unit are voxels. Axes are those of the
array after reorientation (`DataConfig.orientation`), so "RAS" means x (left to right), y (to front), z (to top).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

__all__ = [
    "AugmentConfig",
    "DataConfig",
    "EvaluateConfig",
    "ModelConfig",
    "PredictConfig",
    "TrainConfig",
    "TrainerConfig",
]


@dataclass(frozen=True)
class DataConfig:
    """Where the images are and how they are brought to the grid and scale that the network sees.

    Args:
        root: an nnU-Net raw dataset folder (holds dataset.json), or a MONAI / Decathlon datalist JSON file.
        validation_cases: case ids held out for validation; empty: `validation_fraction` decides.
        validation_fraction: share of the training cases held out, chosen by the trainer's seed; at least one case
            when above 0; ignored where the datalist itself has a "validation" list.
        fold: cross-validation: train without this one of `folds` and validate on it (numbered from 0, the same cases as
            nnU-Net's folds); "all" trains and validates on every case; "each" makes one training of every fold, in
            folders fold0, fold1, ... of `out`; null: the two settings above decide.
        folds: how many there are.
        orientation: axis codes that every image is turned to (exactly, by flips and transposes); null keeps the
            stored axes. Predictions are always turned back.
        spacing_mm: voxel size to resample to; "median" takes the per-axis median of the training cases; null keeps
            each image's own.
        normalization: "auto" goes by channel name as nnU-Net does ("CT": clip to the training set's 0.5 and 99.5
            foreground percentiles, then its mean and standard deviation; anything else: z-score of each image).
        resampling: "linear", or "nnunet": zeros around the object are cut off, images are resampled by cubic splines
            after their intensities were scaled, thick slices stay whole; "auto" takes nnU-Net's way with a plan.
            Predictions go by the way that a model was trained by.
        cache_dir: folder for the preprocessed cases, compressed, where patches are read without the rest of the case
            (see `ssmvision preprocess`); may be shared by folds and runs. Null: with a plan `preprocessed` in the run
            folder, else none, see `cache`.
        cache: without such a folder, keep the preprocessed cases in memory.
        num_workers: worker processes of the training loader; 0 loads in the main process; null: with a cache folder one
            per CPU core but one, at most 12 (of several GPUs each has its share), else 0.
    """

    root: Path
    validation_cases: tuple[str, ...] = ()
    validation_fraction: float = 0.2
    fold: int | Literal["all", "each"] | None = None
    folds: int = 5
    orientation: str | None = "RAS"
    spacing_mm: tuple[float, ...] | Literal["median"] | None = None
    normalization: Literal["auto", "zscore", "ct", "none"] = "auto"
    resampling: Literal["auto", "linear", "nnunet"] = "auto"
    cache_dir: Path | None = None
    cache: bool = True
    num_workers: int | None = None


@dataclass(frozen=True)
class ModelConfig:
    """The network.

    Args:
        name: "UMambaBot" has one Mamba layer at the bottleneck, "UMambaEnc" one in every encoder stage; the others are
            MONAI's, baselines without state-space layers. "DynUNet" is nnU-Net's plain U-Net, two convolutions per
            stage. "SegResNet" (Auto3DSeg's) and "MedNeXt" (3-voxel kernels) have strides and kernels of their own,
            and double their channels per stage from the first of `features_per_stage`, with as many stages as planned
            or as halve the patch evenly.
        features_per_stage: channels per resolution; null: 32 doubled per stage up to 320 (3D) or 512 (2D).
        strides: per stage and axis; null: from the patch size and voxel size by nnU-Net's rule.
        kernel_sizes: per stage and axis, odd; null: by the same rule as `strides`.
        n_conv_per_stage: residual blocks per encoder stage; one number for all, or one per stage.
        n_conv_per_stage_decoder: residual blocks per decoder level; one number, or one per level, deepest first.
        mixer: "mamba"; "s4nd" for a global S4ND convolution in its place (USegS4NDBot, USegS4NDEnc); "none" for the
            same network without its state-space layers; or any other name of `ssmvision.layers.mixers.mixer_names()`.
        mixer_args: options of the mixer.
        deep_supervision: train every decoder resolution, not only the finest.
        reference_spacing_mm: for the mixer "s4nd" only: voxel size per axis at which its kernels reach as they were
            initialised. A case of another size gets kernels sampled at size / reference along each axis, so that they
            keep their reach in mm. Null: the size that cases are resampled to (`data.spacing_mm`), where each keeps its
            own the median of the training cases.
    """

    name: Literal["UMambaBot", "UMambaEnc", "DynUNet", "SegResNet", "MedNeXt"] = "UMambaBot"
    features_per_stage: tuple[int, ...] | None = None
    strides: tuple[tuple[int, ...], ...] | None = None
    kernel_sizes: tuple[tuple[int, ...], ...] | None = None
    n_conv_per_stage: int | tuple[int, ...] = 2
    n_conv_per_stage_decoder: int | tuple[int, ...] = 2
    mixer: str = "mamba"
    mixer_args: dict[str, Any] = field(default_factory=dict)
    deep_supervision: bool = True
    reference_spacing_mm: tuple[float, ...] | None = None


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of the training patches; every probability is per patch.

    Args:
        preset: "nnunet" is nnU-Net v2's augmentation and choice of patches, as they are: turns, zooms, noise, blur,
            brightness, contrast, low resolution, gamma, mirroring; the last third of every batch is centred on labelled
            voxels. "light" is what the settings below say. "auto" takes nnU-Net's with a plan. Of the settings below
            only `flip_axes` is for both.
        flip_axes: axes mirrored with probability one half; leave the left-right axis (0) out when labels tell left
            from right. Null: all axes.
        rotate_degrees: largest turn in the plane of the two finest axes; 0: none (the default, as it interpolates).
        noise_std: largest standard deviation of the added Gaussian noise, in normalised intensity.
        scale: largest relative change of contrast.
        gamma: range of the gamma exponent.
        probability: of each of noise, scale and gamma (and of the turn).
        foreground_fraction: share of patches centred on a labelled voxel.
    """

    preset: Literal["auto", "nnunet", "light"] = "auto"
    flip_axes: tuple[int, ...] | None = None
    rotate_degrees: float = 0.0
    noise_std: float = 0.1
    scale: float = 0.25
    gamma: tuple[float, float] = (0.7, 1.5)
    probability: float = 0.15
    foreground_fraction: float = 0.5


@dataclass(frozen=True)
class TrainerConfig:
    """Length, optimiser and hardware of a training run.

    Args:
        max_epochs: epochs of `steps_per_epoch` batches each, whatever the number of cases.
        steps_per_epoch: optimiser steps, one batch each.
        max_minutes: stop after the epoch in which this much wall-clock time is spent; null: no limit.
        batch_size: patches per step.
        batch_dice: the Dice loss is taken over the whole batch instead of patch by patch.
        optimizer: "sgd" is Nesterov SGD with `momentum`; "adamw" ignores `momentum`.
        lr: start of the polynomial schedule lr * (1 - step / steps)^0.9, see `poly_per`.
        momentum: of SGD; see `optimizer`.
        weight_decay: not applied to A_log, D, biases and norms.
        gradient_clip: largest gradient norm; 0: no clipping.
        poly_per: whether the schedule falls with every "step", or as nnU-Net's with every "epoch" (a plan sets it).
        precision: "32-true", "bf16-mixed" or "16-mixed" (the scan itself stays in float32). The last one, float16 with
            a loss scale, is known to overflow in state-space networks.
        tf32: with "32-true", let GPUs round the factors of convolutions and matrix products to 10 bits, as PyTorch does
            for convolutions by default; false: full float32, several times slower.
        ema_decay: of the moving average of the weights, taken after every step, which is then what is validated and
            saved; 0: none.
        early_stop_epochs: end after so many epochs without a better validation Dice; null: never.
        save: what model.safetensors holds: the weights after the "last" epoch, or after the one with the "best"
            validation Dice. model.json names the epoch.
        checkpoint_steps: save last.ckpt after every so many steps, besides after every epoch; null: only then.
        max_nonfinite_steps: a step whose loss or gradients are not finite is skipped, and named; so many in a row end
            the run.
        auto_halve: when a GPU's memory runs out, go on with each batch in two, four, ... parts whose gradients are
            added up; else the run ends and says what would fit. For one device.
        validate_every: epochs between validations on whole volumes (the last epoch is always validated).
        seed: of weights, split, patches and augmentation.
        deterministic: ask torch for deterministic algorithms, with a warning where one has none.
        accelerator: "auto", "cpu", "gpu" or "mps", as Lightning takes it.
        devices: GPUs (on the CPU: processes) that share every batch, by Lightning's DDP. `batch_size` is that of all of
            them together and the batches are the same for any number; `batch_dice` spans them, too.
        threads: CPU threads of torch; null: torch's own choice.
    """

    max_epochs: int = 100
    steps_per_epoch: int = 250
    max_minutes: float | None = None
    batch_size: int = 2
    batch_dice: bool = True
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 1e-2
    momentum: float = 0.99
    weight_decay: float = 3e-5
    gradient_clip: float = 12.0
    poly_per: Literal["step", "epoch"] = "step"
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    tf32: bool = True
    ema_decay: float = 0.0
    early_stop_epochs: int | None = None
    save: Literal["last", "best"] = "last"
    checkpoint_steps: int | None = None
    max_nonfinite_steps: int = 10
    auto_halve: bool = False
    validate_every: int = 5
    seed: int = 0
    deterministic: bool = True
    accelerator: str = "auto"
    devices: int = 1
    threads: int | None = None


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Args:
        data: what to train on.
        model: the network.
        augment: random changes of the patches.
        trainer: length, optimiser and hardware.
        out: run folder; receives model.safetensors, model.json, last.ckpt and the one before it, metrics.csv, times.csv
            (wall-clock seconds) and config.json.
        patch_size: of the training patches, one entry per spatial axis: three entries train a 3D network, two a 2D
            network on slices along the last axis.
        plan: plan file of `ssmvision plan`, which decides orientation, voxel size, intensity scales, patch, batch and
            network, and whether the Dice loss is the batch's; a setting that says otherwise is refused.
        configuration: of the plan, "3d_fullres", "3d_lowres" or "2d".
        resume: continue the run in `out` from its last.ckpt: weights and metrics.csv become those of a run that was
            never interrupted, bit for bit on the same device.
        overwrite: replace the run in `out`.
    """

    data: DataConfig
    out: Path
    model: ModelConfig = field(default_factory=ModelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    patch_size: tuple[int, ...] = (96, 96, 96)
    plan: Path | None = None
    configuration: str = "3d_fullres"
    resume: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class PredictConfig:
    """Label maps for images.

    Args:
        model: run folder of a training, or its model.safetensors (model.json beside it).
        input: one NIfTI file, or a folder of them (nnU-Net names CASE_0000.nii.gz, CASE_0001.nii.gz for more than one
            channel; with one channel any *.nii / *.nii.gz); or a folder of a DICOM series, or of several such folders.
        output: file for one input file, else a folder; receives CASE.nii.gz on the input's exact grid, for DICOM
            case_001.dcm and so on in the order of the folders, since their names may be those of patients.
        output_format: for DICOM: "dicom" writes segmentations (DICOM-SEG) that refer to the series and repeat the
            patient and study that they are filed under, "nifti" NIfTI files without either; "auto" goes by the output's
            ending and else writes DICOM-SEG.
        series: SeriesNumber or SeriesInstanceUID of the one to take where a DICOM folder holds several.
        mapping: also write a CSV of the outputs and their DICOM folders there. It may name patients; its file is
            readable by its owner only.
        overwrite: replace existing outputs; the input itself is never written.
        overlap: of neighbouring windows, as a share of the patch, in [0, 1).
        tta: "mirror" averages the predictions of every window mirrored along all axes (4 or 8 times the work).
        mirror_axes: the axes to mirror, where not all; for a network trained without mirroring some of them.
        ensemble: further runs, such as the other folds, whose logits are averaged with those of `model`.
        probabilities: also write CASE_probabilities.npz (float32, classes first).
        uncertainty: also write CASE_uncertainty.nii.gz: entropy of the probabilities, 0 (certain) to 1 (no idea).
        postprocessing: a file of `ssmvision postprocess`, whose rule is applied to the label maps; "auto": that of the
            run folder, if the command was run on it; "none": the networks' labels as they are.
        window_batch: windows per call of the network; halved where memory is short.
        memory_gb: main memory (10^9 bytes) that a case may take by its plan; null: what is free.
        device: "auto" takes the first GPU if there is one.
        threads: CPU threads of torch; null: torch's own choice.
    """

    model: Path
    input: Path
    output: Path
    output_format: Literal["auto", "nifti", "dicom"] = "auto"
    series: str | None = None
    mapping: Path | None = None
    overwrite: bool = False
    overlap: float = 0.5
    tta: Literal["none", "mirror"] = "none"
    mirror_axes: tuple[int, ...] = ()
    ensemble: tuple[Path, ...] = ()
    probabilities: bool = False
    uncertainty: bool = False
    postprocessing: Literal["auto", "none"] | Path = "auto"
    window_batch: int = 1
    memory_gb: float | None = None
    device: str = "auto"
    threads: int | None = None


@dataclass(frozen=True)
class EvaluateConfig:
    """Comparison of label maps with references.

    Args:
        prediction: NIfTI file to score, or a folder of them.
        reference: NIfTI file that counts as right, or a folder with files of the same names as `prediction`.
        labels: name to id of the classes to score; null: from dataset.json in or beside the reference folder, else
            every non-zero id found in the references.
        nsd_tolerance_mm: surfaces closer than this count as equal in the normalised surface Dice.
        nsd_tolerances_mm: the same for single classes, by name, where it differs.
        lesion_iou: 0: a lesion counts as found where any predicted voxel lies in it; above 0: connected components are
            paired one to one where their intersection over union is at least this.
        workers: processes that score a case each.
        output_json: file for the scores of every case and their summary; null: none.
        output_csv: file for a table of the scores, one line per case and class; null: none.
        overwrite: replace existing score files.
    """

    prediction: Path
    reference: Path
    labels: dict[str, int] | None = None
    nsd_tolerance_mm: float = 1.0
    nsd_tolerances_mm: dict[str, float] | None = None
    lesion_iou: float = 0.0
    workers: int = 1
    output_json: Path | None = None
    output_csv: Path | None = None
    overwrite: bool = False
