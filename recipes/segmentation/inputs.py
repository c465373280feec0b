"""Checks of the files that a prediction is asked for: their kind, and that they are the model's channels in order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ssmvision.errors import UserError
from ssmvision.recipes.segmentation.datalist import channels_in, read_json, strip_ending

__all__ = ["NIFTI", "check_channel_files", "check_channel_names", "image_files"]

NIFTI = (".nii", ".nii.gz")
# Volumes of other formats: a case each that fails by name, since leaving them out would look as if they were done.
OTHER_VOLUMES = (".nrrd", ".nhdr", ".mha", ".mhd", ".mgz", ".mgh", ".mnc")


def image_files(folder: Path) -> list[Path]:
    """Volumes directly in a folder, sorted; hidden files left out."""
    files = (path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return sorted(path for path in files if path.name.lower().endswith(NIFTI + OTHER_VOLUMES))


def check_channel_files(case: str, images: Sequence[Path], channels: Sequence[str]) -> None:
    """Refuses a case unless it is one file, or has one file per channel, numbered as nnU-Net does.

    Args:
        case: its name.
        images: sorted by name.
        channels: names that the model expects.

    Raises:
        UserError: files are missing or too many; lists those that are expected.
    """
    expected = [f"{case}_{i:04d}" for i in range(len(channels))]
    found = [strip_ending(path) for path in images]
    if len(images) > 1 and found != expected:
        wanted = ", ".join(f"{name}.nii.gz ({channel})" for name, channel in zip(expected, channels, strict=True))
        raise UserError(
            f"{images[0].parent}: case {case!r} has {len(images)} file(s), {[path.name for path in images]}; the model "
            f"expects {len(channels)}; name them {wanted}"
        )


def check_channel_names(source: Path, channels: Sequence[str]) -> None:
    """Refuses images whose dataset.json, in their folder or the one above, names other channels or another order.

    Raises:
        UserError: the channels are not the model's.
    """
    folder = source if source.is_dir() else source.parent
    path = next((p for p in (folder / "dataset.json", folder.parent / "dataset.json") if p.is_file()), None)
    if path is None:
        return
    named = channels_in(path, read_json(path, "restore it"))
    if [name.casefold() for name in named] != [name.casefold() for name in channels]:
        raise UserError(
            f"{path}: the images have the channels {list(named)}, the model expects {list(channels)} in this order; "
            "give images of those channels, or correct channel_names if only the names differ"
        )
