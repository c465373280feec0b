"""Settings of `ssmvision export`; light to import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["ExportConfig"]


@dataclass(frozen=True)
class ExportConfig:
    """A trained network in a form that other programs take.

    Args:
        model: run folder of a training, or its model.safetensors (model.json beside it).
        output: folder that becomes the bundle; must not exist, or be empty.
        format: "monai-bundle" (https://docs.monai.io/en/stable/mb_specification.html) is the only one.
        name: of the bundle, for people; null: made of the network's name and the labels.
        version: of the bundle, such as "0.1.0".
        description: what the network is for and what it was trained on; null: made of the model's card.
        authors: who trained it.
        copyright: of the weights.
        license: text file to include as LICENSE; null: a LICENSE that says that none was chosen for the weights.
    """

    model: Path
    output: Path
    format: Literal["monai-bundle"] = "monai-bundle"
    name: str | None = None
    version: str = "0.1.0"
    description: str | None = None
    authors: str = "not stated"
    copyright: str = "not stated"
    license: Path | None = None
