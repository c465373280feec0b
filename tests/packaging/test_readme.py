"""What README tells people to type works."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from ssmvision.cli.commands import find_command
from ssmvision.cli.dispatch import _load
from ssmvision.cli.settings import check_option, settings_of

TEXT = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
COMMANDS = sorted(
    {line.partition(" #")[0].strip() for line in re.findall(r"^(ssmvision .*)$", TEXT, re.MULTILINE)}
    | set(re.findall(r"`(ssmvision [a-z][^`]*)`", TEXT))
)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def test_python_examples_run() -> None:
    names: dict[str, Any] = {}
    for code in blocks("python"):
        exec(compile(code, "README.md", "exec"), names)
    assert names["logits"].shape == (2, 5)
    assert [tuple(m.shape) for m in names["maps"]] == [(1, 192, 6, 6)] * 3
    assert set(names["routes"]) <= set(names["route_names"](2))
    assert names["y"].shape == names["x"].shape


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_exist_with_these_options(line: str) -> None:
    words = shlex.split(line)[1:]
    command = find_command(words)
    assert command is not None
    settings = settings_of(_load(command.config))
    for word in words:
        if word.startswith("--"):
            check_option(word, settings, ("config", "print_config"))


def test_make_targets_exist() -> None:
    makefile = (Path(__file__).resolve().parents[2] / "Makefile").read_text()
    for target in re.findall(r"\bmake ([a-z]+)", "".join(blocks("bash"))):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_table_of_systems_has_every_name_and_no_other() -> None:
    from ssmvision.layers.channel_mixers.registry import TABLE as CHANNEL_MIXERS
    from ssmvision.layers.layouts import layout_names
    from ssmvision.layers.mixers.gates import GATES
    from ssmvision.layers.mixers.registry import TABLE as MIXERS

    table = TEXT.partition("| system | idea |")[2].partition("\n\n")[0]
    options = " ".join(row.split(" | ")[-1] for row in table.splitlines())
    told = set(re.findall(r"`\"?([a-z0-9_]+)\"?`", options))
    told |= set(re.findall(r"(?:mixer|gate|layout)=\"([a-z0-9_]+)\"", options))
    known = {*MIXERS, *GATES, *CHANNEL_MIXERS, *layout_names(), "none"}
    assert told == known - {"uniform"}
