"""Writes label maps as DICOM-SEG that refer to the slices they belong to, and proves them on re-reading."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssmvision import __version__
from ssmvision.errors import UserError
from ssmvision.recipes.dicom.files import quietly, read_header
from ssmvision.recipes.dicom.segments import frame_slices, read_frames, segment_numbers, segments_of
from ssmvision.recipes.dicom.series import Series
from ssmvision.recipes.dicom.source import reference_headers
from ssmvision.recipes.segmentation.writing import check_free, write_atomic

__all__ = ["Algorithm", "check_segment_names", "write_segmentation"]

MAKER = "ssmvision"
# A value of type LO holds so many characters.
LONGEST_NAME = 64


@dataclass(frozen=True)
class Algorithm:
    """What made the labels.

    Args:
        name: of the network, such as UMambaBot.
        weights: digest that tells one training from another; serves as the serial number that DICOM demands.
    """

    name: str
    weights: str


def check_segment_names(labels: Mapping[str, int]) -> None:
    r"""Refuses names that a segment cannot have.

    Raises:
        UserError: longer than 64 characters, or with a backslash, which separates values in DICOM.
    """
    for name in labels:
        if len(name) > LONGEST_NAME or "\\" in name or not name.isprintable():
            raise UserError(
                f"label {name!r}: cannot name a DICOM segment (64 characters, no \\); --output_format nifti"
            )


def write_segmentation(
    path: Path,
    labels: NDArray[np.unsignedinteger[Any]],
    series: Series,
    names: Mapping[str, int],
    algorithm: Algorithm,
    overwrite: bool = False,
) -> None:
    """Writes a BINARY segmentation, one segment per label, reads it back and compares.

    Every UID of it is new. Of the images it repeats what DICOM demands, see `source.FILED_UNDER`, among it the
    patient's name and ID; nothing else of them.

    Args:
        path: .dcm file.
        labels: (X, Y, Z) ids on the grid of the series.
        series: the images.
        names: name to id, with background 0.
        algorithm: what made the labels.
        overwrite: replace an existing file.

    Raises:
        UserError: the images lack UIDs, `path` is one of them or exists, or the disk refused the file.
        ValueError: the shape or type of `labels` does not fit.
    """
    if labels.shape != series.grid.shape or labels.dtype.kind != "u":
        raise ValueError(f"labels are {labels.dtype}{labels.shape}, expected unsigned, of shape {series.grid.shape}")
    check_segment_names(names)
    check_free(path, overwrite, series.files)
    with quietly():
        content = _compose(labels, series, names, algorithm)

    def write(temporary: Path) -> None:
        content.save_as(temporary)
        _prove(temporary, path, labels, series, names)

    write_atomic(path, write, ".dcm")


def _compose(labels: NDArray[Any], series: Series, names: Mapping[str, int], algorithm: Algorithm) -> Any:
    from highdicom.seg import Segmentation
    from pydicom.uid import generate_uid

    sources = reference_headers(series)
    if len(sources) > 1 and any(plane.frame is not None for plane in series.planes):
        raise UserError(f"{series.path}: {len(sources)} files with several frames each; take --output_format nifti")
    order = np.argsort([plane.frame or 0 for plane in series.planes], kind="stable")
    frames = np.swapaxes(labels, 0, 2)[order]
    number = sources[0].get("SeriesNumber") or 0
    return Segmentation(
        source_images=sources,
        pixel_array=frames,
        segmentation_type="BINARY",
        segment_descriptions=_descriptions(names, algorithm),
        series_instance_uid=generate_uid(),
        series_number=int(number) * 100 + 1,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer=MAKER,
        manufacturer_model_name=algorithm.name,
        software_versions=__version__,
        device_serial_number=algorithm.weights,
        content_label="SEGMENTATION",
        series_description=f"{MAKER} {algorithm.name}",
    )


def _descriptions(names: Mapping[str, int], algorithm: Algorithm) -> list[Any]:
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import SegmentDescription
    from pydicom.sr.codedict import codes

    how = AlgorithmIdentificationSequence(
        name=f"{MAKER} {algorithm.name}", family=codes.DCM.ArtificialIntelligence, version=__version__
    )
    # What a user's label means is not known beyond its name, and a tissue is what every structure in a body is.
    return [
        SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=codes.SCT.Tissue,
            segmented_property_type=codes.SCT.Tissue,
            algorithm_type="AUTOMATIC",
            algorithm_identification=how,
        )
        for name, number in names.items()
        if number > 0
    ]


def _prove(temporary: Path, path: Path, labels: NDArray[Any], series: Series, names: Mapping[str, int]) -> None:
    """Every frame lies on the slice that it refers to and holds its label's voxels, and none is missing."""
    header = read_header(temporary)
    slices = frame_slices(temporary, header, series.grid)
    owners = segment_numbers(temporary, header)
    referred = [_referred(group) for group in header.PerFrameFunctionalGroupsSequence]
    wrong = segments_of(header) != {number: name for name, number in names.items() if number > 0}
    voxels = 0
    for k, pixels in enumerate(read_frames(temporary, range(len(slices)))):
        plane = series.planes[slices[k]]
        inside = pixels.T.astype(bool)
        wrong |= not np.array_equal(inside, labels[:, :, slices[k]] == owners[k])
        wrong |= referred[k] != (plane.instance, plane.frame)
        voxels += int(inside.sum())
    if wrong or voxels != int(np.count_nonzero(labels)):
        raise UserError(f"{path}: the segmentation read back differs from what was written; report this series")


def _referred(group: Any) -> tuple[str, int | None]:
    """Instance and frame (from 0) that a frame of the segmentation was made from."""
    image = group.DerivationImageSequence[0].SourceImageSequence[0]
    frame = image.get("ReferencedFrameNumber")
    return str(image.ReferencedSOPInstanceUID), None if frame is None else int(frame) - 1
