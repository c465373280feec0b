"""`ssmvision train` for every recipe: the `task` of its configuration says which."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ssmvision.cli.commands import Command, find_command
from ssmvision.cli.config_files import locate
from ssmvision.errors import UserError

__all__ = ["by_task"]

# Without a task, `train` is that of segmentation.
TASKS = {"classification": "classify train"}


def by_task(command: Command, words: Sequence[str]) -> Command:
    """The command that a `train` with these arguments means; any other command as it is.

    Raises:
        UserError: no recipe has that task, or a configuration is not there.
    """
    if command.name != "train":
        return command
    tasks = list(_tasks(words))
    if not tasks:
        return command
    if tasks[-1] not in TASKS:
        known = ", ".join(TASKS)
        raise UserError(f"task: {tasks[-1]!r} is not known; give {known}, or leave it out for segmentation")
    return find_command(TASKS[tasks[-1]].split()) or command


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
