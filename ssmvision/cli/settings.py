"""Names of the settings in a (nested) dataclass, and the check that a file or command line uses no other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from typing import Any, get_args, get_type_hints

import yaml

from ssmvision.errors import UserError

__all__ = ["Setting", "check_option", "read_keys", "settings_of"]


@dataclass(frozen=True)
class Setting:
    """One field: its type, and whether it is itself a dataclass (a group of settings)."""

    hint: Any
    group: bool


def settings_of(config: type, prefix: str = "") -> dict[str, Setting]:
    """Every setting of a dataclass by dotted name ("trainer.lr"), groups included, in order of definition."""
    settings: dict[str, Setting] = {}
    hints = get_type_hints(config)
    for item in fields(config):
        name = f"{prefix}{item.name}"
        nested = [hint for hint in (hints[item.name], *get_args(hints[item.name])) if is_dataclass(hint)]
        settings[name] = Setting(hints[item.name], bool(nested))
        for hint in nested:
            settings |= settings_of(hint, f"{name}.")  # type: ignore[arg-type]
    return settings


def read_keys(text: str, label: str, settings: Mapping[str, Setting]) -> list[str]:
    """Dotted names that a YAML file sets.

    Args:
        text: the file's content.
        label: what to call the file in errors.
        settings: see `settings_of`.

    Raises:
        UserError: not YAML, not a mapping, or a key that is no setting (with the closest that is).
    """
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{label} is not valid YAML: {error}") from error
    if content is None:
        return []
    if not isinstance(content, dict):
        raise UserError(f"{label} holds a {type(content).__name__}; it must hold `key: value` lines")
    keys = list(_flatten(content, "", settings))
    for key in keys:
        if key not in settings:
            raise UserError(f"{label}: unknown key {key!r}{_closest(key, settings, '')}")
    return keys


def _flatten(content: Mapping[Any, Any], prefix: str, settings: Mapping[str, Setting]) -> Iterator[str]:
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and name in settings and settings[name].group:
            yield from _flatten(value, f"{name}.", settings)
        else:
            yield name


def check_option(word: str, settings: Mapping[str, Setting], extra: tuple[str, ...]) -> None:
    """Refuse an option that is neither a setting, an item of one, nor one of `extra`.

    Raises:
        UserError: names the option and the closest valid one.
    """
    name = word.removeprefix("--").partition("=")[0].removesuffix("+")
    parents = [name.rsplit(".", depth)[0] for depth in range(1, name.count(".") + 1)]
    item_of_a_mapping = any(parent in settings and not settings[parent].group for parent in parents)
    if name not in settings and name not in extra and not item_of_a_mapping:
        raise UserError(f"unknown option --{name}{_closest(name, settings, '--')}")


def _closest(name: str, settings: Mapping[str, Setting], dashes: str) -> str:
    by_last = {known.rpartition(".")[2]: known for known in settings}
    close = get_close_matches(name, settings, n=1)
    if not close:
        close = [by_last[last] for last in get_close_matches(name.rpartition(".")[2], by_last, n=1)]
    if close:
        return f"; did you mean {dashes + close[0]!r}?"
    leaves = [known for known, setting in settings.items() if not setting.group]
    return f"; valid: {', '.join(leaves)}" if leaves else "; none is allowed"
