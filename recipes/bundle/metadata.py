"""configs/metadata.json of a bundle: what goes in, what comes out, which versions made it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from ssmvision.recipes.export.config import ExportConfig
from ssmvision.recipes.segmentation.weights import ModelCard

__all__ = ["bundle_metadata", "bundle_name", "ordered_labels"]

RELEASE = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1"
SCHEMA = f"{RELEASE}/meta_schema_20240725.json"
REQUIRED = ("ssmvision", "nibabel", "scipy", "safetensors")
NNUNET = "Isensee et al.: nnU-Net, Nature Methods 18, 2021, arXiv 1904.08128"
UMAMBA = "Ma, Li, Wang: U-Mamba, 2024, arXiv 2401.04722"
S4ND = "Nguyen et al.: S4ND, NeurIPS 2022, arXiv 2210.06583"


def bundle_name(config: ExportConfig, card: ModelCard) -> str:
    """The name asked for, or one made of the network and its labels."""
    return config.name or f"{card.architecture['name']} for {', '.join(ordered_labels(card)[1:]) or 'background'}"


def ordered_labels(card: ModelCard) -> list[str]:
    """Names of the labels in the order of the network's outputs."""
    return sorted(card.labels, key=lambda name: card.labels[name])


def bundle_metadata(config: ExportConfig, card: ModelCard) -> dict[str, Any]:
    """The content of metadata.json, by MONAI's schema of 2024-07-25."""
    channels, labels = list(card.channels), ordered_labels(card)
    return {
        "schema": SCHEMA,
        "version": config.version,
        "changelog": {config.version: f"exported by ssmvision {version('ssmvision')}"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch"),
        "numpy_version": version("numpy"),
        "required_packages_version": {name: version(name) for name in REQUIRED},
        "supported_apps": {},
        "name": bundle_name(config, card),
        "task": f"Segmentation of {', '.join(labels[1:])} in {', '.join(channels)} volumes",
        "description": config.description or _description(card),
        "authors": config.authors,
        "copyright": config.copyright,
        "data_type": "nibabel",
        "image_classes": f"{len(channels)} channel(s) in this order: {', '.join(channels)}; raw intensities",
        "label_classes": "label map of ids: " + ", ".join(f"{card.labels[name]} {name}" for name in labels),
        "pred_classes": "label map of the same ids on the image's own grid",
        "eval_metrics": _metrics(card.training),
        "intended_use": "Research. Not a medical device.",
        "references": _references(card.architecture),
        "network_data_format": _data_format(card, labels),
    }


def _description(card: ModelCard) -> str:
    training = card.training
    cases = f" on {training['training_cases']} case(s)" if "training_cases" in training else ""
    steps = f" for {training['steps']} steps" if "steps" in training else ""
    return (
        f"{card.architecture['name']} trained with ssmvision{cases}{steps}; windows of {list(card.patch_size)} voxels"
    )


def _metrics(training: Mapping[str, Any]) -> dict[str, float]:
    dice = training.get("validation_dice")
    found = dice if isinstance(dice, Mapping) else {}
    return {f"validation_dice_{name}": float(value) for name, value in found.items() if value is not None}


def _references(architecture: Mapping[str, Any]) -> list[str]:
    if not str(architecture["name"]).startswith("UMamba"):
        return [NNUNET]
    mixer = architecture["arguments"].get("mixer")
    return [UMAMBA, NNUNET, *([S4ND] if mixer == "s4nd" else [])]


def _data_format(card: ModelCard, labels: list[str]) -> dict[str, Any]:
    """Of the network alone, which sees windows of prepared images."""
    modality = ", ".join(card.channels)
    common = {"spatial_shape": list(card.patch_size), "dtype": "float32", "value_range": [], "is_patch_data": True}
    image = {
        "type": "image",
        "format": "hounsfield" if "ct" in modality.casefold().split(", ") else "magnitude",
        "modality": modality,
        "num_channels": len(card.channels),
        "channel_def": {str(i): name for i, name in enumerate(card.channels)},
    }
    prediction = {
        "type": "image",
        "format": "segmentation",
        "num_channels": len(labels),
        "channel_def": {str(i): name for i, name in enumerate(labels)},
    }
    return {"inputs": {"image": image | common}, "outputs": {"pred": prediction | common}}
