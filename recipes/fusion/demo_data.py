"""The demo's pictures: real pairs that ship inside installed packages, cut so that nothing tested was trained on.

Files are read from the installed packages and checked by their SHA-256; nothing is downloaded or copied.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ssmvision.errors import UserError
from ssmvision.recipes.fusion.colour import luminance
from ssmvision.recipes.fusion.demo_config import Task
from ssmvision.recipes.fusion.images import read_picture
from ssmvision.recipes.fusion.pairs import ImagePair
from ssmvision.recipes.fusion.volumes import as_slices, read_nifti
from ssmvision.recipes.fusion.windows import Window

__all__ = ["TaskData", "load_task", "simulated_focus"]

Gray = NDArray[np.float32]

_CITI168 = "pip install --no-deps hippunfold==0.5.11"
_SENTINEL = "pip install --no-deps spyndex==0.12.0"
_PHOTOGRAPHS = "pip install scikit-learn"
# By path inside the package.
_SHA256 = {
    "T1w_300umCoronalOblique_hemi-L.nii.gz": "0cd5cb0ef6e591c74f654c27396a50f9dc2f2ed2649e8be2907c84afbec59426",
    "T2w_300umCoronalOblique_hemi-L.nii.gz": "2e9e1267769b00f1bf07212a7f78bfb3984c0cfec1f4818e183564b26a1a8bcc",
    "T1w_300umCoronalOblique_hemi-R.nii.gz": "028af78d34d9efb79363aea3b171417dffc82895d079271744af32f8e0dcd298",
    "T2w_300umCoronalOblique_hemi-R.nii.gz": "a37c3e8c59a0a60abad5a94d33ebc72a5e1565d9c7108231c597c8a3e06c6231",
    "S2_10m.json": "09c41f19340407f84017a89460822539e9380aed673bfc1538fa532f9443ef2f",
    "china.jpg": "8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29",
    "flower.jpg": "a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638",
}
# Shares of voxels or pixels, in percent, that black and white leave outside: stray values would take the contrast.
_WINDOW = (0.1, 99.9)
# Axial slices; those at the ends of the blocks hold little.
_SLICES = range(8, 120)
_TEST_SLICES = (20, 42, 64, 86, 108)
# Rows of the Sentinel-2 scene, north first; those between are in neither part.
_NORTH, _SOUTH = slice(0, 112), slice(124, 300)
_FOCUS_TRAINING, _FOCUS_TESTS = 8, 3
_REGION_SIGMA, _EDGE_SIGMA = 40.0, 1.5
_BLUR_RADII = (3, 6)


@dataclass(frozen=True)
class TaskData:
    """Pairs of one kind.

    Attributes:
        title: for headings.
        names: of the two images.
        source: where the pictures are from, and their licence.
        split: what is trained on, what is tested, and what that does not show.
        training, tests: pairs with no pixel in common.
    """

    title: str
    names: tuple[str, str]
    source: str
    split: str
    training: tuple[ImagePair, ...]
    tests: tuple[ImagePair, ...]


def _file(package: str, inside: str, install: str) -> Path:
    """A data file of an installed package.

    Raises:
        UserError: it is not there, or another file than this demo was made with.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the demo reads pictures out of {package}, which is not installed: {install}")
    path = Path(next(iter(spec.submodule_search_locations))) / inside
    if not path.is_file():
        raise UserError(f"{path}: not in the installed {package}; install a version that has it: {install}")
    digest, expected = hashlib.sha256(path.read_bytes()).hexdigest(), _SHA256[path.name]
    if digest != expected:
        raise UserError(f"{path}: SHA-256 is {digest}, expected {expected}; install it anew: {install}")
    return path


def _unit(values: NDArray[Any], measured: NDArray[Any]) -> Gray:
    """Values in 0..1 under the window of `measured`."""
    low, high = (float(v) for v in np.percentile(measured, _WINDOW))
    return np.ascontiguousarray(Window(low, high).to_unit(values))


def _block(contrast: str, hemisphere: str) -> Gray:
    """Axial slices (S, H, W) of one block under one window."""
    name = f"{contrast}w_300umCoronalOblique_hemi-{hemisphere}.nii.gz"
    source = read_nifti(_file("hippunfold", f"resources/CITI168/{name}", _CITI168))
    assert source.grid is not None
    return as_slices(_unit(source.values, source.values), source.grid.affine, "axial")


def _t1_t2() -> TaskData:
    def pairs(hemisphere: str, side: str, slices: range | tuple[int, ...]) -> tuple[ImagePair, ...]:
        t1, t2 = _block("T1", hemisphere), _block("T2", hemisphere)
        found = ((f"{side} block, axial slice {i}", t1[i], t2[i]) for i in slices)
        return tuple(ImagePair(hemisphere, n, np.ascontiguousarray(a), np.ascontiguousarray(b)) for n, a, b in found)

    return TaskData(
        "T1-T2 MRI",
        ("T1w", "T2w"),
        "CITI168 template (Tyszka & Pauli 2016): temporal-lobe blocks of 0.3 mm, the average of 168 healthy adults, "
        "read from hippunfold 0.5.11. Its licence is not stated there: pictures are shown, none is passed on with the "
        "package.",
        f"Trained on {len(_SLICES)} axial slices of the right block, tested on {len(_TEST_SLICES)} of the left one. No "
        "voxel is in both, but both are of one average head, so this says nothing about other people or scanners.",
        pairs("R", "right", _SLICES),
        pairs("L", "left", _TEST_SLICES),
    )


def _visible_nir() -> TaskData:
    path = _file("spyndex", "data/S2_10m.json", _SENTINEL)
    blue, green, red, infrared = np.array(json.loads(path.read_text(encoding="utf-8")), dtype=np.float32)
    visible = luminance(np.stack((red, green, blue), -1))

    def pair(name: str, rows: slice) -> ImagePair:
        a, b = (_unit(band[rows], band[_NORTH]) for band in (visible, infrared))
        return ImagePair(name, name, a, b)

    return TaskData(
        "Visible-NIR satellite",
        ("visible", "near infrared"),
        "Sentinel-2, bands 4, 3, 2 (luminance) and 8, 10 m pixels, one crop of 300 x 300 in spyndex 0.12.0. Contains "
        "Copernicus Sentinel data. Near infrared from orbit, not the thermal street scenes of TNO or MSRS.",
        f"Trained on the northern {_NORTH.stop} rows, tested on the southern {_SOUTH.stop - _SOUTH.start}; the "
        f"{_SOUTH.start - _NORTH.stop} rows between are in neither. Both are one landscape on one day.",
        (pair("north", _NORTH),),
        (pair("south", _SOUTH),),
    )


def simulated_focus(sharp: Gray, seed: int) -> tuple[Gray, Gray]:
    """Two pictures of a scene, each blurred where the other is sharp: a simulation of two depths of focus.

    The regions are smooth noise above and below its median, with an edge of a few pixels; the blur is a disc, as that
    of a round aperture, of a radius of 3 to 6 pixels.

    Args:
        sharp: (H, W) in [0, 1].
        seed: of the regions and the radius.
    """
    rng = np.random.default_rng([seed, 2])
    height, width = sharp.shape
    noise = cv2.GaussianBlur(rng.random((height, width)), (0, 0), _REGION_SIGMA)
    inside = cv2.GaussianBlur((noise > np.median(noise)).astype(np.float64), (0, 0), _EDGE_SIGMA)
    radius = int(rng.integers(_BLUR_RADII[0], _BLUR_RADII[1] + 1))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1)).astype(np.float64)
    blurred = cv2.filter2D(sharp.astype(np.float64), -1, disc / disc.sum(), borderType=cv2.BORDER_REFLECT_101)
    parts = [weight * sharp + (1 - weight) * blurred for weight in (inside, 1 - inside)]
    near, far = (np.clip(part, 0, 1).astype(np.float32) for part in parts)
    return near, far


def _multi_focus() -> TaskData:
    def pairs(photograph: str, seeds: range) -> tuple[ImagePair, ...]:
        source = read_picture(_file("sklearn", f"datasets/images/{photograph}.jpg", _PHOTOGRAPHS))
        sharp = np.ascontiguousarray(luminance(source.window.to_unit(source.values)), dtype=np.float32)
        names = {seed: f"{photograph}, regions {i + 1} (simulated)" for i, seed in enumerate(seeds)}
        return tuple(ImagePair(photograph, name, *simulated_focus(sharp, s), sharp) for s, name in names.items())

    return TaskData(
        "Multi-focus (simulated)",
        ("near", "far"),
        "Photographs in scikit-learn, CC BY 2.0: china.jpg by danielbuechele, flower.jpg by vultilion (Flickr).",
        f"Each photograph is blurred in complementary regions: a simulation, of which the sharp photograph is the true "
        f"result. Trained on {_FOCUS_TRAINING} simulations of one photograph, tested on {_FOCUS_TESTS} of the other.",
        pairs("china", range(_FOCUS_TRAINING)),
        pairs("flower", range(100, 100 + _FOCUS_TESTS)),
    )


_TASKS: dict[Task, Callable[[], TaskData]] = {
    "t1-t2": _t1_t2,
    "visible-nir": _visible_nir,
    "multi-focus": _multi_focus,
}


def load_task(task: Task) -> TaskData:
    """The pairs of a task.

    Raises:
        UserError: a package that holds them is missing, or holds other files.
    """
    return _TASKS[task]()
