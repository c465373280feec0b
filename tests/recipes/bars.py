"""Pictures that are told apart by their bright columns, and files of them."""

from __future__ import annotations

from pathlib import Path

import cv2
import nibabel
import numpy as np


def bars(count: int, seed: int, size: int = 12, kinds: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Gray pictures whose class is the number of bright columns."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % kinds
    images = rng.integers(0, 60, (count, size, size))
    for image, label in zip(images, labels, strict=True):
        image[:, : 3 * (label + 1)] += 150
    return images.astype(np.uint8), labels.astype(np.uint8)


def write_medmnist(path: Path, count: int = 60) -> Path:
    parts = {"train": bars(count, 0), "val": bars(15, 1), "test": bars(24, 2)}
    images = {f"{name}_images": part[0] for name, part in parts.items()}
    np.savez(path, **images, **{f"{name}_labels": part[1][:, None] for name, part in parts.items()})
    return path


def write_folder(root: Path, part: str, count: int, seed: int) -> None:
    for i, (image, label) in enumerate(zip(*bars(count, seed), strict=True)):
        place = root / part / "abc"[label]
        place.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(place / f"{i}.png"), image)


def write_volume(path: Path, seed: int, label: int, slices: int = 3) -> np.ndarray:
    """Slices of one class as NIfTI stored the way they are looked at; returns them."""
    pictures = bars(3 * slices, seed)[0][label::3]
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-1.0, -1.0, 3.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(np.moveaxis(pictures, 0, -1).swapaxes(0, 1).astype(np.int16), affine), path)
    return pictures
