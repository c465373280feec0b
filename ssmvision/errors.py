"""The one error type that a command line shows to a person as a single line."""

from __future__ import annotations

__all__ = ["UserError"]


class UserError(Exception):
    """Something the user can mend: the message names the file or option, the value found, and the fix."""
