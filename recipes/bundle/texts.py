"""docs/README.md and LICENSE of a bundle."""

from __future__ import annotations

from ssmvision.recipes.bundle.metadata import bundle_name, ordered_labels
from ssmvision.recipes.export.config import ExportConfig
from ssmvision.recipes.segmentation.weights import ModelCard

__all__ = ["NO_LICENSE", "bundle_readme"]

NO_LICENSE = """No license was chosen for the weights in models/ when this bundle was exported. Without one, nobody but
their owner may use, change or pass them on; ask the owner, or export again with --license FILE.

The package that runs them, ssmvision, is under the Apache License, Version 2.0.
"""

README = """# {name}

{description}

A MONAI bundle made by `ssmvision export`. For research; not a medical device.

| | |
|---|---|
| network | {network}, windows of {patch} voxels |
| images | {channels} |
| labels | {labels} |
| orientation, voxel size | {orientation}, {spacing} |

The weights are `models/model.safetensors`; `models/model.json` says how images are prepared. There is no pickle and no
TorchScript: the network is built by ssmvision.

## Use

    pip install 'ssmvision[bundle]'
    python -m monai.bundle run --config_file configs/inference.json --bundle_root . \\
        --dataset_dir IMAGES --output_dir PREDICTIONS

writes one label map for each image, on the image's own grid; they are those of

    ssmvision predict models IMAGES PREDICTIONS

{files} `--overlap 0.75` and `--tta mirror` are slower and often a little better, `--device cpu` needs no GPU,
`--overwrite true` replaces files. With references of the same names, Dice and surface distances:

    python -m monai.bundle run --config_file "['configs/inference.json','configs/evaluate.json']" --bundle_root . \\
        --dataset_dir IMAGES --output_dir PREDICTIONS --label_dir REFERENCES

In a program of your own, `preprocessing`, `inferer` and `postprocessing` of configs/inference.json follow one another;
the inferer turns, resamples and scales an image as it was read, and returns logits on its grid.

## Verify

    python -m monai.bundle verify_net_in_out network_def --meta_file configs/metadata.json \\
        --config_file configs/inference.json
    python -m monai.bundle verify_metadata --meta_file configs/metadata.json --filepath schema.json

The second one downloads MONAI's schema to schema.json; where that file exists already, it needs no network.
"""


def bundle_readme(config: ExportConfig, card: ModelCard, description: str) -> str:
    """The text of docs/README.md."""
    how, several = card.preprocessing, len(card.channels) > 1
    ending = "CASE_0000.nii.gz, CASE_0001.nii.gz, ..." if several else "any *.nii or *.nii.gz"
    kept = "as the image has it"
    return README.format(
        name=bundle_name(config, card),
        description=description,
        network=card.architecture["name"],
        patch=" x ".join(map(str, card.patch_size)),
        channels=", ".join(card.channels),
        labels=", ".join(f"{card.labels[name]} {name}" for name in ordered_labels(card)),
        orientation=how.orientation or kept,
        spacing=kept
        if how.spacing_mm is None
        else " x ".join(f"{e:g}" if e > 0 else "own" for e in how.spacing_mm) + " mm",
        files=f"IMAGES holds {ending}.",
    )
