"""State-space models for images and medical volumes.

Importing this package is cheap: torch and timm are loaded by the first name that needs them. It also makes the models
known to timm: once timm is imported, before or after, `timm.create_model("vim_small")` works.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ssmvision import _timm_hook

if TYPE_CHECKING:
    from ssmvision import convert, export, flops, hub, kernels, layers, metrics, models, ops
    from ssmvision.convert import convert_state_dict

__all__ = [
    "__version__",
    "convert",
    "convert_state_dict",
    "export",
    "flops",
    "hub",
    "kernels",
    "layers",
    "metrics",
    "models",
    "ops",
]
__version__ = "0.1.0"

_SUBMODULES = ("convert", "export", "flops", "hub", "kernels", "layers", "metrics", "models", "ops")
_ATTRIBUTES = {"convert_state_dict": "ssmvision.convert"}


def __getattr__(name: str) -> object:
    if name in _SUBMODULES:
        return import_module(f"{__name__}.{name}")
    if name in _ATTRIBUTES:
        return getattr(import_module(_ATTRIBUTES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


_timm_hook.install()
