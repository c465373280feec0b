"""The parts of timm's model contract that older supported timm releases do not have."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from torch import nn

__all__ = ["record_input_size", "record_model_args"]

_record_args: Callable[..., None] | None = None
_record_size: Callable[..., None] | None = None
with suppress(ImportError):  # timm < 1.0.31 keeps no reconstruction arguments: nothing to record
    from timm.models import _input

    _record_args, _record_size = _input.update_model_args, _input.update_model_input_size


def record_model_args(model: nn.Module, **model_args: Any) -> None:
    """Tell timm how to rebuild a model that was changed after construction."""
    if _record_args is not None:
        _record_args(model, **model_args)


def record_input_size(model: nn.Module, img_size: tuple[int, int], **model_args: Any) -> None:
    """Tell timm the new nominal input size (H, W) in pixels, and arguments that changed with it."""
    if _record_size is not None:
        _record_size(model, img_size, **model_args)
