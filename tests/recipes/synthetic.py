"""Small synthetic cases: a bright ball in noise, on grids that are anisotropic and oblique."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray

# Voxels of about 1 x 1.5 x 2 mm, axes turned out of the scanner's and the second one reversed.
OBLIQUE = np.array([[0.98, 0.15, 0.2, -12.0], [0.1, -1.48, 0.3, 30.5], [-0.15, 0.2, 1.96, 7.25], [0.0, 0.0, 0.0, 1.0]])


def ball(shape: tuple[int, ...], seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Image and mask; the ball's place depends on the seed."""
    rng = np.random.default_rng(seed)
    centre = np.array([n / 2 + rng.uniform(-2, 2) for n in shape])
    distance = np.linalg.norm(np.moveaxis(np.indices(shape), 0, -1) - centre, axis=-1)
    mask = distance < min(shape) / 3
    return (100 + 200 * mask + rng.normal(0, 20, shape)).astype(np.float32), mask.astype(np.uint8)


def save(path: Path, data: NDArray, affine: NDArray = OBLIQUE) -> Path:
    """Writes NIfTI with both forms set, as scanners' converters do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm", "sec")
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    nibabel.save(image, path)
    return path


def nnunet_folder(root: Path, shapes: list[tuple[int, int, int]], channels: int = 1) -> Path:
    """An nnU-Net raw dataset with one ball per case, named case_0, case_1, ..."""
    for i, shape in enumerate(shapes):
        image, mask = ball(shape, seed=i)
        for c in range(channels):
            save(root / "imagesTr" / f"case_{i}_{c:04d}.nii.gz", image + c)
        save(root / "labelsTr" / f"case_{i}.nii.gz", mask)
    names = {str(c): "MRI" for c in range(channels)}
    write_description(root, channel_names=names, numTraining=len(shapes))
    return root


def write_description(root: Path, **changes: object) -> Path:
    """dataset.json with some entries replaced."""
    content = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "ball": 1},
        "file_ending": ".nii.gz",
    } | changes
    path = root / "dataset.json"
    path.write_text(json.dumps(content))
    return path
