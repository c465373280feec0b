"""One case as the network is to see it: the same way for the cache, for training from memory and for prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ssmvision.errors import UserError
from ssmvision.recipes.preprocessing.locations import Locations, find_locations
from ssmvision.recipes.preprocessing.resize import resize_labels
from ssmvision.recipes.segmentation.datalist import Case
from ssmvision.recipes.segmentation.preprocessing import Preprocessing, object_mask
from ssmvision.recipes.segmentation.resampling import Regrid
from ssmvision.recipes.segmentation.volumes import read_image, read_label_map

__all__ = ["OUTSIDE", "Prepared", "prepare", "read_case"]

# Label of what lies outside the object, as in nnU-Net; augmentation sets the image to zero there where its scale looks
# inside alone. The network is shown background.
OUTSIDE = -1


@dataclass(frozen=True)
class Prepared:
    """A case on the network's grid.

    Args:
        image: (C, X, Y, Z) float32.
        label: (X, Y, Z) int16; `OUTSIDE` where the stored image was zero in every channel, outside the object.
        spacing_mm: voxel edges.
        locations: where each class is.
    """

    image: NDArray[np.float32]
    label: NDArray[np.int16]
    spacing_mm: tuple[float, ...]
    locations: Locations


def prepare(
    how: Preprocessing,
    image: NDArray[np.float32],
    affine: NDArray[np.float64],
    labels: NDArray[np.integer],
    classes: int,
) -> Prepared:
    """Turns, cuts, scales and resamples one case.

    Args:
        how: the rules.
        image: (C, X, Y, Z), raw intensities.
        affine: (4, 4) voxel index to mm (RAS+).
        labels: (X, Y, Z).
        classes: number of labels, background included.
    """
    if how.rules == "linear":
        turned = how.image(image, affine)
        label = how.label(labels.astype(np.int32), affine)[0].numpy().astype(np.int16)
        spacing = tuple(float(edge) for edge in turned.pixdim[:3])
        return Prepared(turned.numpy(), label, spacing, find_locations(label, classes))
    regrid = Regrid.of(how, image.shape[1:], affine).cut(image)
    cut = regrid.forward(torch.from_numpy(image))
    marked = regrid.turn(labels).astype(np.int16)
    marked[(marked == 0) & ~object_mask(cut)[0].numpy()] = OUTSIDE
    label = resize_labels(marked, regrid.shape, regrid.separate)
    resized = regrid.finish(how.scale(cut)).numpy()
    return Prepared(resized, label, regrid.spacing_mm, find_locations(label, classes))


def read_case(how: Preprocessing, case: Case, channels: Sequence[str], label_ids: Sequence[int]) -> Prepared:
    """Reads the files of a case and prepares it.

    Raises:
        UserError: a file is unusable, or the case has no label map.
    """
    volume = read_image(case.images, channels)
    if case.label is None:
        raise UserError(f"{volume.grid.path}: case {case.id!r} has no label map; add its file")
    labels, _ = read_label_map(case.label, label_ids, volume.grid)
    return prepare(how, volume.data, volume.grid.affine, labels, len(label_ids))
