"""`ssmvision models`: the models of this package, what they cost, and whose weights there are."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from fnmatch import fnmatch

from ssmvision.cli.model_counts import COUNTS, NETWORKS, measure

__all__ = ["ModelRow", "ModelsConfig", "networks", "registered_models", "run"]

RULE = """\
GMACs: multiply-accumulates of one input, those of matrix products, convolutions, and two a step, channel and state of a
scan; elementwise work, norms, pooling, resampling and Fourier transforms are not counted, nor are S4ND's kernels, which
an evaluation makes once. Models in capitals are classes of ssmvision.models, the others are for timm.create_model;
U-Mamba's row is a 3D network of default widths. Weights are not part of this package: licences are their owners'."""


@dataclass(frozen=True)
class ModelsConfig:
    """List the models: parameters, multiply-accumulates, input, licence and source of the weights.

    Attributes:
        filter: shell pattern that a model's name must match, such as "vim_*".
        json: print JSON instead of a table.
    """

    filter: str = "*"
    json: bool = False


@dataclass(frozen=True)
class ModelRow:
    """One model.

    Attributes:
        name: for `timm.create_model`, or a class of `ssmvision.models`.
        parameters: number of weights.
        macs: multiply-accumulates of one input by the rule of `ssmvision.flops`.
        input_size: channels, then height and width in pixels or all three sizes in voxels; of a fusion, of each image.
        pretrained: tags of the official weights that `pretrained=True` knows; empty: none.
        licence: of the default weights, or "" where there are none.
        source: where the weights, or else the design, come from.
        notes: what to know before using the weights.
    """

    name: str
    parameters: int
    macs: int
    input_size: tuple[int, ...]
    pretrained: tuple[str, ...]
    licence: str
    source: str
    notes: tuple[str, ...] = ()


def registered_models(pattern: str = "*") -> list[ModelRow]:
    """Rows for the models that this package registers with timm, where the name matches `pattern`, in timm's order."""
    import timm

    import ssmvision.models  # noqa: F401  (registers them)

    ours = [name for name in timm.list_models() if timm.model_entrypoint(name).__module__.startswith("ssmvision.")]
    return [_row(name) for name in ours if fnmatch(name, pattern)]


def networks(pattern: str = "*") -> list[ModelRow]:
    """Rows for the other networks, which are built by their classes."""
    return [
        ModelRow(name, *COUNTS[name], shapes[0], (), "", paper)
        for name, (_, _, shapes, paper) in NETWORKS.items()
        if fnmatch(name, pattern)
    ]


def _row(name: str) -> ModelRow:
    import timm

    config = timm.get_pretrained_cfg(name)
    assert config is not None, f"{name} is registered without a default_cfg"
    tags = timm.list_models(f"{name}.*", pretrained=True)
    parameters, macs = COUNTS.get(name) or measure(name)
    return ModelRow(
        name=name,
        parameters=parameters,
        macs=macs,
        input_size=tuple(config.input_size),
        pretrained=tuple(tag.removeprefix(f"{name}.") for tag in tags),
        licence=config.license or "",
        source=config.hf_hub_id or config.origin_url or "",
        notes=tuple(config.notes or ()),
    )


def run(config: ModelsConfig) -> None:
    """Print the rows."""
    from rich.console import Console
    from rich.table import Table

    rows = [*registered_models(config.filter), *networks(config.filter)]
    if config.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
        return
    console = Console()
    if not rows:
        console.print(f"no model matches {config.filter!r}")
        return
    table = Table("model", "parameters", "GMACs", "input (C, ...)", "official weights", "licence", "source", box=None)
    for row in rows:
        size = " x ".join(map(str, row.input_size))
        weights = ", ".join(row.pretrained) or "-"
        licence = row.licence + "*" * bool(row.notes)
        source = row.source.removeprefix("https://")
        table.add_row(
            row.name, f"{row.parameters / 1e6:.2f} M", f"{row.macs / 1e9:.2f}", size, weights, licence, source
        )
    console.print(table)
    for note in sorted({note for row in rows for note in row.notes}):
        console.print(f"* {note}")
    console.print(RULE, soft_wrap=True, style="dim")
