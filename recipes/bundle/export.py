"""Writes a trained network as a MONAI bundle."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from ssmvision.errors import UserError
from ssmvision.recipes.bundle.metadata import bundle_metadata
from ssmvision.recipes.bundle.texts import NO_LICENSE, bundle_readme
from ssmvision.recipes.bundle.workflows import EVALUATE, INFERENCE
from ssmvision.recipes.evaluation.postprocessing import POSTPROCESSING, find_rule
from ssmvision.recipes.export.config import ExportConfig
from ssmvision.recipes.segmentation.weights import CARD, WEIGHTS, ModelCard, open_model
from ssmvision.recipes.segmentation.writing import check_folder

__all__ = ["run"]


def run(config: ExportConfig) -> Path:
    """Writes the bundle whole or not at all; returns its folder.

    Raises:
        UserError: the model cannot be used, a text is missing, or the folder is in use.
    """
    _check(config)
    _, card = open_model(config.model)
    folder = config.model if config.model.is_dir() else config.model.parent
    weights = folder / WEIGHTS if config.model.is_dir() else config.model
    rule = find_rule("auto", (config.model,), card.labels)
    try:
        config.output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{config.output.name}.", dir=config.output.parent) as temporary:
            root = Path(temporary) / "bundle"
            (root / "models").mkdir(parents=True)
            shutil.copyfile(weights, root / "models" / WEIGHTS)
            shutil.copyfile(weights.with_name(CARD), root / "models" / CARD)
            if rule is not None:
                shutil.copyfile(folder / POSTPROCESSING, root / "models" / POSTPROCESSING)
            _write_texts(root, config, card)
            root.replace(config.output)
    except OSError as error:
        raise UserError(f"{config.output}: could not be written ({error}); choose another folder") from error
    text = f"wrote {config.output}; how it is used: {config.output / 'docs' / 'README.md'}"
    Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)
    return config.output


def _check(config: ExportConfig) -> None:
    """Refuses, before the weights are read, what could not be written."""
    if config.output.exists() and not (config.output.is_dir() and not any(config.output.iterdir())):
        raise UserError(f"{config.output}: exists already; choose a folder that does not, or an empty one")
    check_folder(config.output.parent)
    if config.license is not None and not config.license.is_file():
        raise UserError(f"{config.license}: no such file; give a text file with the license, or leave it out")
    if not config.version.strip():
        raise UserError("export: version is empty; give one such as 0.1.0")


def _write_texts(root: Path, config: ExportConfig, card: ModelCard) -> None:
    metadata = bundle_metadata(config, card)
    files: dict[str, Any] = {"metadata": metadata, "inference": INFERENCE, "evaluate": EVALUATE}
    for part in ("configs", "docs"):
        (root / part).mkdir()
    for name, content in files.items():
        (root / "configs" / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    readme = bundle_readme(config, card, metadata["description"])
    (root / "docs" / "README.md").write_text(readme, encoding="utf-8")
    if config.license is None:
        (root / "LICENSE").write_text(NO_LICENSE, encoding="utf-8")
    else:
        shutil.copyfile(config.license, root / "LICENSE")
