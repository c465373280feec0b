"""Entry point of the command line: picks the sub-command, runs it, and turns expected failures into one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from ssmvision import __version__
from ssmvision.cli.commands import COMMANDS, Command, find_command
from ssmvision.cli.tasks import by_task
from ssmvision.errors import UserError
from ssmvision.extras import missing_extra

__all__ = ["main"]

DEBUG_VARIABLE = "SSMVISION_DEBUG"
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: arguments without the program's name; None takes the process's own.

    Returns:
        0 on success, 2 for an error that the user can mend (one line on standard error), 130 after Ctrl-C, 141 where
        the reader of standard output went away. `--debug` or SSMVISION_DEBUG=1 raises the error instead, with its
        traceback; any error that is not the user's always does so.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words or os.environ.get(DEBUG_VARIABLE, "") not in ("", "0")
    words = [word for word in words if word != "--debug"]
    try:
        _dispatch(words)
        sys.stdout.flush()
    except UserError as error:
        if debug:
            raise
        print(f"ssmvision: error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("ssmvision: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Python would flush standard output once more at exit and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    return 0


def _dispatch(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
    elif words[0] == "--version":
        print(f"ssmvision {__version__}")
    elif (command := find_command(words)) is not None:
        rest = words[len(command.name.split()) :]
        _run(by_task(command, rest), rest)
    elif (group := [c for c in COMMANDS if c.name.split()[0] == words[0]]) and set(words[1:]) <= {"-h", "--help"}:
        print(_overview(group))
    else:
        raise UserError(_unknown(words))


def _run(command: Command, words: list[str]) -> None:
    # jsonargparse takes a good part of the time that `ssmvision --help` may take.
    from ssmvision.cli.arguments import parse

    try:
        config = parse(command, _load(command.config), words)
        if config is not None:
            _load(command.run)(config)
    except ModuleNotFoundError as error:
        extra = missing_extra(error)
        if extra is None:
            raise
        needed = command.extra or extra
        raise UserError(
            f"`ssmvision {command.name}` needs {error.name}, which is not installed: pip install 'ssmvision[{needed}]' "
            f"(in a clone: pip install '.[{needed}]')"
        ) from error


def _load(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(import_module(module), name)


def _overview(commands: Sequence[Command] = COMMANDS) -> str:
    width = max(len(command.name) for command in commands) + 2
    rows = [f"  {command.name:<{width}}{command.help}" for command in commands]
    return "\n".join(
        [
            "usage: ssmvision COMMAND [arguments]",
            "",
            "State-space models for images and medical volumes. Not a medical device.",
            "",
            "commands:",
            *rows,
            "",
            "options:",
            f"  {'-h, --help':<{width}}this text; after a command, its arguments",
            f"  {'--version':<{width}}the version",
            f"  {'--debug':<{width}}show the traceback of an error (also: {DEBUG_VARIABLE}=1)",
        ]
    )


def _unknown(words: list[str]) -> str:
    typed = " ".join(word for word in words[:2] if not word.startswith("-")) or words[0]
    names = [command.name for command in COMMANDS]
    close = get_close_matches(typed, names, n=1) or get_close_matches(words[0], names, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(names)}"
    return f"unknown command {typed!r}; {hint}"
