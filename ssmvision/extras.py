"""Which optional dependency group (extra) brings which importable module."""

from __future__ import annotations

from importlib.util import find_spec

__all__ = ["EXTRAS", "missing_extra"]

# extra -> modules that it brings, beyond those of the extras before it; the same lists as in pyproject.toml.
EXTRAS: dict[str, tuple[str, ...]] = {
    "recipes": (
        *("monai", "lightning", "nibabel", "scipy", "sklearn", "blosc2", "albumentations", "cv2", "jinja2"),
        "matplotlib",
    ),
    "demo": ("nilearn",),
    "dicom": ("pydicom", "highdicom", "skimage", "pylibjpeg", "openjpeg", "gdcm"),
    "bundle": ("fire", "jsonschema"),
}


def missing_extra(error: ModuleNotFoundError) -> str | None:
    """The extra to install for a failed import, or None where the import failed for another reason.

    A submodule missing from an installed package, or a missing module that no extra brings, is a fault to be shown as
    it is, so only a top-level module that is truly absent counts.
    """
    name = error.name or ""
    if "." in name or name in ("", "ssmvision"):
        return None
    for extra, modules in EXTRAS.items():
        if name in modules and find_spec(name) is None:
            return extra
    return None
