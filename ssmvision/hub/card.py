"""The README.md of a saved model: what it is, whose weights these are, and how to load them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Card", "text"]


@dataclass(frozen=True)
class Card:
    """What people should know of the weights; every part may stay empty.

    Args:
        title: of the page; by default the architecture's name.
        description: what the model does, what it was trained on, how well it does, and what it is not for.
        licence: of the weights, an identifier of SPDX in lower case such as "apache-2.0".
        source: where the weights come from.
        notes: what to know before using them, one remark each.
        facts: further rows of the table, by name.
    """

    title: str = ""
    description: str = ""
    licence: str = ""
    source: str = ""
    notes: tuple[str, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)


def text(card: Card, architecture: str, parameters: int, sha256: str, timm: bool) -> str:
    """The page.

    Args:
        card: what to say.
        architecture: timm's name of the model, or its class.
        parameters: number of weights.
        sha256: of model.safetensors.
        timm: whether timm builds the model.
    """
    rows = {
        "architecture": f"`{architecture}`",
        "parameters": f"{parameters:,}",
        "licence of the weights": card.licence or "not stated",
        "source": card.source or "not stated",
        **card.facts,
        "sha256 of model.safetensors": f"`{sha256}`",
    }
    parts = [
        _front_matter(card, timm),
        f"# {card.title or architecture}",
        card.description,
        "\n".join(("| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in rows.items()))),
        "\n".join(f"- {note}" for note in card.notes),
        _usage(timm),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _cell(value: str) -> str:
    return " ".join(value.split()).replace("|", "\\|")


def _front_matter(card: Card, timm: bool) -> str:
    """What a hub reads; JSON strings are YAML strings too, whatever is in them."""
    lines = [f"license: {json.dumps(card.licence)}"] if card.licence else []
    lines += [f"library_name: {'timm' if timm else 'ssmvision'}", "tags:", "- ssmvision"]
    lines += ["- timm", "- image-classification"] if timm else []
    return "\n".join(("---", *lines, "---"))


def _usage(timm: bool) -> str:
    load = 'ssmvision.hub.load_pretrained("FOLDER")'
    if not timm:
        return f"```python\nimport ssmvision\n\nmodel = {load}\n```"
    return (
        "```python\nimport ssmvision, timm\n\n"
        'model = timm.create_model("local-dir:FOLDER", pretrained=True)  # or "hf-hub:NAME/OF-THE-REPOSITORY"\n'
        f"model = {load}  # the same, with the checksum checked\n```"
    )
