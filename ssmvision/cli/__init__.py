"""The `ssmvision` command: one table of sub-commands, each a settings dataclass and a function that takes it.

Nothing here imports torch, timm or a recipe before the sub-command that needs it runs.
"""

from __future__ import annotations

from ssmvision.cli.dispatch import main

__all__ = ["main"]
