"""Which device a recipe computes on."""

from __future__ import annotations

import torch

__all__ = ["pick_device"]


def pick_device(name: str) -> torch.device:
    """The named device; "auto" is the first GPU if there is one, else the CPU.

    Raises:
        ValueError: torch knows no such device, or sees none of that kind.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # which of them depends on how torch was built
        reason = next(iter(str(error).splitlines()), "")
        raise ValueError(f"device {name!r} cannot be used ({reason}); give another, such as 'cpu' or 'auto'") from error
    return torch.device(name)
