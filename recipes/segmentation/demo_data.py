"""The demo's data: the MNI152 head that ships inside nilearn, cut into coronal slabs and corrupted.

Anatomy: ICBM 152 nonlinear symmetric template 2009a (Fonov et al., NeuroImage 2011), T1 and grey and white matter
probabilities, 1 mm. The files are read from the installed nilearn; nothing is downloaded or copied.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from ssmvision.errors import UserError
from ssmvision.recipes.segmentation.demo_config import CorruptionConfig, SlabConfig
from ssmvision.recipes.segmentation.volumes import read_image

__all__ = ["LABELS", "Anatomy", "DemoDataset", "bias_field", "corrupt", "load_anatomy", "split_slabs", "write_dataset"]

Volume = NDArray[np.float32]
LABELS = {"background": 0, "grey matter": 1, "white matter": 2}
SHA256 = {
    "t1": "421a10e872fd6cadae7f61d358dffbcc1795a497d61ee76c5dda2503e1a1e9e6",
    "gm": "97a5ca69bd24db37a9cb7b32525e1733a209af904129bf1cd36da06d24243bed",
    "wm": "382d92812de4744f9c86c7a0e4f680dc317a0a50e4da1f0153618a6798c7b7db",
}
FWHM_PER_SIGMA = 2.0 * float(np.sqrt(2.0 * np.log(2.0)))
# Separate random streams, so that adding a training copy never changes the test image.
STREAMS = {"train": 0, "validation": 1, "test": 2}


@dataclass(frozen=True)
class Anatomy:
    """A head or a slab of one.

    Attributes:
        t1: intensities (X, Y, Z), 0 to 255, before any artefact.
        labels: uint8 (X, Y, Z): 0 background (air, skull-stripped tissue, CSF), 1 grey matter, 2 white matter.
        affine: (4, 4), voxel index to MNI mm (RAS+).
    """

    t1: Volume
    labels: NDArray[np.uint8]
    affine: NDArray[np.float64]

    def crop(self, x: slice, y: slice, z: slice) -> Anatomy:
        """The box of voxels given by three slices with explicit starts; the affine's origin moves with it."""
        affine = self.affine.copy()
        affine[:3, 3] = (self.affine @ [x.start, y.start, z.start, 1])[:3]
        return Anatomy(self.t1[x, y, z], self.labels[x, y, z], affine)


@dataclass(frozen=True)
class DemoDataset:
    """An nnU-Net raw folder and the ids of its cases.

    Attributes:
        root: folder with dataset.json, imagesTr, labelsTr, imagesTs, labelsTs.
        train: ids of the corrupted copies of the front slab that are trained on.
        validation: id of a further corrupted copy of the front slab, for the training curve only.
        test: id of the corrupted back slab.
    """

    root: Path
    train: tuple[str, ...]
    validation: str
    test: str


def _template_file(kind: str) -> Path:
    spec = importlib.util.find_spec("nilearn")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("the demo reads its head from nilearn, which is not installed: pip install 'ssmvision[demo]'")
    name = f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz"
    path = Path(spec.submodule_search_locations[0]) / "datasets" / "data" / name
    if not path.is_file():
        raise UserError(
            f"{path}: not in the installed nilearn; install a version that has it: pip install nilearn==0.14.1"
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != SHA256[kind]:
        raise UserError(
            f"{path}: SHA-256 is {digest}, expected {SHA256[kind]}; the file was changed, "
            "reinstall it: pip install --force-reinstall --no-deps nilearn==0.14.1"
        )
    return path


def _block_mean(volume: NDArray[np.float32], edge: int) -> Volume:
    size = [n // edge for n in volume.shape]
    whole = volume[tuple(slice(n * edge) for n in size)]
    blocks = whole.reshape(size[0], edge, size[1], edge, size[2], edge)
    return np.asarray(blocks.mean(axis=(1, 3, 5)), dtype=np.float32)


def load_anatomy(voxel_mm: int = 2) -> Anatomy:
    """The whole MNI152 head at `voxel_mm` (1 to 4), cropped to the brain with a margin of two voxels.

    Down-sampling averages blocks of voxel_mm cubed template voxels, for the T1 and for both probability maps, so a
    voxel's centre is the centre of its block. A voxel's label is the likeliest of background (1 - grey - white), grey
    and white matter.

    Raises:
        UserError: nilearn is missing, or a file's SHA-256 differs from the one this demo was made with.
    """
    files = {kind: read_image([_template_file(kind)]) for kind in SHA256}
    t1, grey, white = (_block_mean(files[kind].data[0], voxel_mm) for kind in ("t1", "gm", "wm"))
    labels = np.argmax(np.stack([255.0 - grey - white, grey, white]), axis=0).astype(np.uint8)
    to_block = np.diag([voxel_mm, voxel_mm, voxel_mm, 1.0])
    to_block[:3, 3] = (voxel_mm - 1) / 2
    head = Anatomy(t1, labels, files["t1"].grid.affine @ to_block)

    inside = np.argwhere(labels > 0)
    low = np.maximum(inside.min(axis=0) - 2, 0)
    high = np.minimum(inside.max(axis=0) + 3, labels.shape)
    x, y, z = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return head.crop(x, y, z)


def split_slabs(head: Anatomy, slabs: SlabConfig) -> tuple[Anatomy, Anatomy]:
    """Front (training) and back (test) coronal slab of a head, with the voxels between them in neither.

    Both keep the full width from left to right: cutting there would put mirror images of the same voxels in both.

    Raises:
        ValueError: a slab would be empty.
    """
    n_x, n_y, n_z = head.labels.shape
    y_mm = head.affine[1, 3] + head.affine[1, 1] * np.arange(n_y)
    front, back = np.flatnonzero(y_mm >= slabs.train_from_mm), np.flatnonzero(y_mm <= slabs.test_to_mm)
    if not len(front) or not len(back):
        raise ValueError(
            f"the cuts {slabs.test_to_mm} and {slabs.train_from_mm} mm leave a slab empty; "
            f"the head spans y = {y_mm[0]:.0f} to {y_mm[-1]:.0f} mm"
        )
    x, z = slice(0, n_x), slice(0, n_z)
    return (
        head.crop(x, slice(int(front[0]), int(front[-1]) + 1), z),
        head.crop(x, slice(int(back[0]), int(back[-1]) + 1), z),
    )


def bias_field(shape: tuple[int, ...], voxel_mm: float, config: CorruptionConfig, rng: np.random.Generator) -> Volume:
    """Smooth multiplicative field (X, Y, Z): exp of Gaussian-filtered noise scaled to a peak of bias_strength."""
    sigma = config.bias_fwhm_mm / FWHM_PER_SIGMA / voxel_mm
    # Filtered on a wider grid, so that the field is as lively at the border as in the middle.
    pad = int(np.ceil(sigma))
    noise = rng.standard_normal([n + 2 * pad for n in shape], dtype=np.float32)
    smooth = gaussian_filter(noise, sigma, mode="wrap")[tuple(slice(pad, pad + n) for n in shape)]
    smooth = smooth - smooth.mean()
    return np.asarray(np.exp(config.bias_strength * smooth / np.abs(smooth).max()), dtype=np.float32)


def corrupt(slab: Anatomy, config: CorruptionConfig, rng: np.random.Generator) -> Volume:
    """T1 of a slab with a bias field and Rician noise, float32 (X, Y, Z), >= 0.

    Noise is that of a magnitude image: Gaussian in the real and the imaginary channel (Gudbjartsson and Patz, 1995).
    """
    voxel_mm = float(abs(slab.affine[0, 0]))
    clean = slab.t1 * bias_field(slab.t1.shape, voxel_mm, config, rng)
    real, imaginary = config.noise_sd * rng.standard_normal((2, *clean.shape), dtype=np.float32)
    return np.asarray(np.hypot(clean + real, imaginary), dtype=np.float32)


def _save(path: Path, data: NDArray[np.float32] | NDArray[np.uint8], affine: NDArray[np.float64]) -> None:
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code="mni")
    image.set_qform(affine, code="mni")
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)


def write_dataset(
    root: Path, slabs: SlabConfig, corruption: CorruptionConfig, train_copies: int, seed: int
) -> DemoDataset:
    """Writes the corrupted slabs as an nnU-Net raw folder.

    The training copies are differently seeded corruptions of one and the same slab: augmentation, not subjects.

    Raises:
        UserError: `root` already holds a dataset, or nilearn's files are missing or changed.
        ValueError: a slab would be empty.
    """
    if (root / "dataset.json").exists():
        raise UserError(f"{root / 'dataset.json'}: exists already; choose another folder or pass --overwrite")
    front, back = split_slabs(load_anatomy(slabs.voxel_mm), slabs)
    dataset = DemoDataset(root, tuple(f"front_{i:02d}" for i in range(train_copies)), "front_validation", "back")
    jobs = [("train", case, i, front, "Tr") for i, case in enumerate(dataset.train)]
    jobs += [("validation", dataset.validation, 0, front, "Tr"), ("test", dataset.test, 0, back, "Ts")]
    for stream, case, index, slab, suffix in jobs:
        rng = np.random.default_rng([seed, STREAMS[stream], index])
        _save(root / f"images{suffix}" / f"{case}_0000.nii.gz", corrupt(slab, corruption, rng), slab.affine)
        _save(root / f"labels{suffix}" / f"{case}.nii.gz", slab.labels, slab.affine)
    _write_json(root, train_copies + 1)
    return dataset


def _write_json(root: Path, n_training: int) -> None:
    description = {
        "name": "MNI152 tissue, real anatomy, simulated artefacts",
        "channel_names": {"0": "T1"},
        "labels": LABELS,
        "numTraining": n_training,
        "file_ending": ".nii.gz",
        "reference": "ICBM 152 nonlinear symmetric 2009a (Fonov et al. 2011), from the nilearn package",
    }
    (root / "dataset.json").write_text(json.dumps(description, indent=2) + "\n")
