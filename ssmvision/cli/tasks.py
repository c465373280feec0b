"""`ssmvision train` and `ssmvision study` for every recipe: the `task` of its configuration says which."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ssmvision.cli.commands import Command, find_command
from ssmvision.cli.config_files import locate
from ssmvision.errors import UserError

__all__ = ["by_task"]

# Without a task, each is that of segmentation.
TASKS = {"train": {"classification": "classify train"}, "study": {"classification": "classify study"}}


def by_task(command: Command, words: Sequence[str]) -> Command:
    """The command that a `train` or `study` with these arguments means; any other command as it is.

    Raises:
        UserError: no recipe has that task, or a configuration is not there.
    """
    known = TASKS.get(command.name)
    if known is None:
        return command
    tasks = list(_tasks(words))
    if not tasks:
        return command
    if tasks[-1] not in known:
        named = ", ".join(known)
        raise UserError(f"task: {tasks[-1]!r} is not known; give {named}, or leave it out for segmentation")
    return find_command(known[tasks[-1]].split()) or command


def _tasks(words: Sequence[str]) -> Iterator[str]:
    """What the configurations and options set, in their order."""
    for i, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name not in ("--config", "--task"):
            continue
        value = value if equals else next(iter(words[i + 1 :]), "")
        if name == "--task":
            yield value
        elif value:
            yield from _task_of(value)


def _task_of(config: str) -> Iterator[str]:
    import yaml

    try:
        content = yaml.safe_load(locate(config).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return  # reading the settings, which comes next, says what is wrong with the file
    if isinstance(content, dict) and "task" in content:
        yield str(content["task"])
