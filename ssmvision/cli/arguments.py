"""Parses a command line (YAML files, then dotted overrides, the last one winning) into a settings dataclass."""

from __future__ import annotations

import json
from argparse import ArgumentError
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import MISSING, fields
from importlib.resources import as_file
from typing import TypeVar, get_origin, get_type_hints

from jsonargparse import ArgumentParser

from ssmvision.cli.commands import Command
from ssmvision.cli.config_files import locate
from ssmvision.cli.settings import Setting, check_option, read_keys, settings_of
from ssmvision.errors import UserError

__all__ = ["parse"]

T = TypeVar("T")
_OPTIONS = ("config", "help", "print_config")
_REQUIRED = "the following arguments are required: "


def parse(command: Command, config: type[T], words: list[str]) -> T | None:
    """Build a command's settings.

    Args:
        command: the command, for its name and whether required settings are positional.
        config: its dataclass.
        words: the arguments after the command's name.

    Returns:
        The settings, or None where the line asked to print something (`--help`, `--print_config`).

    Raises:
        UserError: an unknown key or option, a wrong value, or a missing setting, with the file it stands in.
    """
    settings = settings_of(config)
    parser = _parser(command, config)
    options = list(_options(words))
    for word in options:
        check_option(word, settings, _OPTIONS)
    with ExitStack() as stack:
        words, sources = _open_configs(_gather(_spell_out_flags(words, settings), command, config), settings, stack)
        try:
            parsed = parser.instantiate(parser.parse_args(words))
            return config(**{item.name: parsed[item.name] for item in fields(config)})  # type: ignore[arg-type]
        except SystemExit as stop:  # --help and --print_config end so
            if stop.code not in (0, None):
                raise
            return None
        except (ArgumentError, ValueError, TypeError) as error:
            raise UserError(_explain(str(error), command, sources, options)) from error


def _parser(command: Command, config: type) -> ArgumentParser:
    parser = ArgumentParser(
        prog=f"ssmvision {command.name}",
        description=(config.__doc__ or command.help).partition("\n")[0],
        exit_on_error=False,
        allow_abbrev=False,
    )
    if fields(config):
        parser.add_argument(
            "--config", action="config", help="YAML file, or a name from `ssmvision configs list`; may be repeated"
        )
        parser.add_class_arguments(config, as_group=False, as_positional=command.positional)
    return parser


def _options(words: Iterable[str]) -> Iterator[str]:
    for word in words:
        if word == "--":
            return
        if word.startswith("--"):
            yield word


def _spell_out_flags(words: list[str], settings: Mapping[str, Setting]) -> list[str]:
    """`--overwrite` means `--overwrite=true`; jsonargparse wants the value."""
    flags = {f"--{name}" for name, setting in settings.items() if setting.hint is bool}
    followed_by_value = {i for i, after in enumerate(words[1:]) if after.lower() in ("true", "false")}
    return [f"{word}=true" if word in flags and i not in followed_by_value else word for i, word in enumerate(words)]


def _gather(words: list[str], command: Command, config: type) -> list[str]:
    """`runs/fold0 runs/fold1` means `[runs/fold0, runs/fold1]` where a list is the only positional argument."""
    required = [item.name for item in fields(config) if item.default is MISSING and item.default_factory is MISSING]
    if not command.positional or len(required) != 1 or get_origin(get_type_hints(config)[required[0]]) is not tuple:
        return words
    values = {i + 1 for i, word in enumerate(words) if word.startswith("--") and "=" not in word and word != "--"}
    own = [word for i, word in enumerate(words) if i not in values and not word.startswith("-")]
    if not own or own[0].startswith("["):
        return words
    options = [word for i, word in enumerate(words) if i in values or word.startswith("-")]
    return [json.dumps(own), *(word for word in options if word != "--")]


def _open_configs(
    words: list[str], settings: Mapping[str, Setting], stack: ExitStack
) -> tuple[list[str], dict[str, str]]:
    """Replace each `--config NAME` by a checked file; also tells which file sets which key (the last one)."""
    opened: list[str] = []
    sources: dict[str, str] = {}
    for position, word in enumerate(words):
        if word.startswith("--config="):
            name, form = word.removeprefix("--config="), "--config={}"
        elif position and words[position - 1] == "--config":
            name, form = word, "{}"
        else:
            opened.append(word)
            continue
        path = stack.enter_context(as_file(locate(name)))
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{name} is not UTF-8 text ({error.reason}); --config takes a YAML file") from error
        sources |= dict.fromkeys(read_keys(text, name, settings), name)
        opened.append(form.format(path))
    return opened, sources


def _explain(message: str, command: Command, sources: Mapping[str, str], options: list[str]) -> str:
    help_line = f"see `ssmvision {command.name} --help`"
    if message.startswith(_REQUIRED):
        names = message.removeprefix(_REQUIRED).split(", ")
        if command.positional:
            return f"missing {' '.join(name.upper() for name in names)}; {help_line}"
        return f"missing {', '.join(f'--{name}' for name in names)} (or set it in a --config file); {help_line}"
    on_the_line = {option.removeprefix("--").partition("=")[0] for option in options}
    for key, source in sources.items():
        if f'"{key}"' in message and key not in on_the_line:
            return f"{source}: {message}"
    return f"{message}; {help_line}"
