"""Settings of `ssmvision export`; light to import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["ExportConfig", "Format"]

Format = Literal["bundle", "onnx", "torch"]


@dataclass(frozen=True)
class ExportConfig:
    """A trained network in a form that other programs take.

    Args:
        model: run folder of a training (segmentation, classification or fusion), a folder of `ssmvision convert` or
            `ssmvision.hub.save_pretrained`, or with `pretrained` the name of a model of timm.
        output: a file ending in .onnx or .pt2, or the folder that becomes the bundle, which must not exist or be empty.
        format: "onnx", of standard operators alone; "torch", a program of torch.export, which needs this package where
            it runs; "bundle", a MONAI bundle (https://docs.monai.io/en/stable/mb_specification.html) of a segmentation
            run; "auto": by the ending of `output`.
        size: height and width in pixels, or all three sizes in voxels, to export for; null: the network's own. Of ONNX
            files and programs, as are the next five.
        any_size: leave these sizes open too, where the network takes any.
        tolerance: greatest allowed difference from PyTorch, as a share of the greatest value; null: 1e-5 for a program,
            1e-4 for ONNX, and more for a model that magnifies rounding (see `ssmvision.export.to_onnx`).
        pictures: folder of pictures to compare on, of a classifier; null: those that a run was tested on, else random
            values.
        pretrained: fetch the official weights of a timm model.
        overwrite: replace `output` if it exists.
        name: of the bundle, for people; null: made of the network's name and the labels. Of bundles, as are the rest.
        version: of the bundle, such as "0.1.0".
        description: what the network is for and what it was trained on; null: made of the model's card.
        authors: who trained it.
        copyright: of the weights.
        license: text file to include as LICENSE; null: a LICENSE that says that none was chosen for the weights.
    """

    model: Path
    output: Path
    format: Literal["auto", "bundle", "onnx", "torch"] = "auto"
    size: tuple[int, ...] | None = None
    any_size: bool = False
    tolerance: float | None = None
    pictures: Path | None = None
    pretrained: bool = False
    overwrite: bool = False
    name: str | None = None
    version: str = "0.1.0"
    description: str | None = None
    authors: str = "not stated"
    copyright: str = "not stated"
    license: Path | None = None
