"""`ssmvision models`: the models of this package that timm can create."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from typing import Any, cast

__all__ = ["ModelRow", "ModelsConfig", "registered_models", "run"]


@dataclass(frozen=True)
class ModelsConfig:
    """List the models registered with timm.

    Attributes:
        filter: shell pattern that a model's name must match, such as "vim_*".
        json: print JSON instead of a table.
    """

    filter: str = "*"
    json: bool = False


@dataclass(frozen=True)
class ModelRow:
    """One registered model.

    Attributes:
        name: for `timm.create_model`.
        parameters: number of weights.
        input_size: channels, height, width in pixels.
        pretrained: tags of the official weights that `pretrained=True` knows; empty: none.
        licence: of the default weights, or "" where there are none.
    """

    name: str
    parameters: int
    input_size: tuple[int, ...]
    pretrained: tuple[str, ...]
    licence: str


def registered_models(pattern: str = "*") -> list[ModelRow]:
    """Rows for the models of this package whose name matches `pattern`, in timm's order."""
    import timm

    import ssmvision.models  # noqa: F401  (registers them)

    ours = [name for name in timm.list_models() if timm.model_entrypoint(name).__module__.startswith("ssmvision.")]
    return [_row(name) for name in ours if fnmatch(name, pattern)]


def _row(name: str) -> ModelRow:
    import timm
    import torch

    with torch.device("meta"):  # counts without allocating or filling weights
        model = timm.create_model(name)
    config = cast(dict[str, Any], model.pretrained_cfg)
    tags = timm.list_models(f"{name}.*", pretrained=True)
    return ModelRow(
        name=name,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        input_size=tuple(config["input_size"]),
        pretrained=tuple(tag.removeprefix(f"{name}.") for tag in tags),
        licence=config.get("license") or "",
    )


def run(config: ModelsConfig) -> None:
    """Print the rows."""
    from rich.console import Console
    from rich.table import Table

    rows = registered_models(config.filter)
    if config.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
        return
    table = Table("model", "parameters", "input (C, H, W)", "official weights", "licence", box=None)
    for row in rows:
        size = " x ".join(map(str, row.input_size))
        table.add_row(row.name, f"{row.parameters / 1e6:.2f} M", size, ", ".join(row.pretrained) or "-", row.licence)
    Console().print(table if rows else f"no model matches {config.filter!r}")
