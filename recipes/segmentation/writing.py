"""Writes results whole or not at all: label maps on the exact grid of their image, and other files."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from ssmvision.errors import UserError
from ssmvision.recipes.segmentation.volumes import Grid

__all__ = ["check_folder", "check_free", "write_atomic", "write_bytes", "write_label_map", "write_map"]

# Everything that places voxels in space; no other header field is carried over, since free text may name a patient.
GEOMETRY = (
    *("pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units"),
)
# The larger of the two headers, with its empty list of extensions.
HEADER_BYTES = 544


def check_free(path: Path, overwrite: bool, inputs: Iterable[Path] = ()) -> None:
    """Refuses an output path that is an input, that exists without `overwrite`, or whose folder takes no files.

    Raises:
        UserError: the path must not be written.
    """
    if any(path.resolve() == Path(other).resolve() for other in inputs):
        raise UserError(f"{path}: the output is the input itself; choose another output")
    if path.exists() and not overwrite:
        raise UserError(f"{path}: exists already; choose another output or pass --overwrite")
    check_folder(path.parent)


def check_folder(folder: Path) -> None:
    """Refuses a folder that cannot take files, before the work whose result it would take; creates nothing.

    Raises:
        UserError: it, or the first of its parents that exists, is a file or may not be written to.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))
    if not existing.is_dir():
        raise UserError(f"{existing}: is a file where a folder is needed; choose another output")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{folder}: no permission to write into {existing}; choose another folder")


def write_atomic(
    path: Path, write: Callable[[Path], None], suffix: str = "", needed: int | None = None, mode: int = 0o666
) -> None:
    """Lets `write` fill a temporary file beside `path`, flushes it to disk, and renames it to `path`.

    Args:
        path: final name; an older file there stays whole until the new one is complete.
        write: called with the temporary path; may verify what it wrote, an exception discards the file.
        suffix: ending of the temporary name, where the writer goes by it.
        needed: bytes that the file will take (at most, where it is compressed), for the message; None: unknown.
        mode: who may read and write it, before the umask.

    Raises:
        UserError: the folder or the disk refused the file; says how many bytes are needed and free.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=suffix, dir=path.parent)
        os.close(descriptor)
        temporary = Path(name)
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        # mkstemp makes files private; results get the usual permissions.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(mode & ~umask)
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        sizes = "" if needed is None else f"; it takes up to {needed} bytes, {_free_bytes(path.parent)} are free"
        raise UserError(
            f"{path}: could not be written ({error}){sizes}; free space or choose another folder"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Makes a renaming survive a power cut; file systems that cannot sync a folder keep it otherwise."""
    descriptor = os.open(folder, os.O_RDONLY) if os.name == "posix" else None
    if descriptor is None:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _free_bytes(folder: Path) -> int:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


def write_bytes(path: Path, content: bytes | str, mode: int = 0o666) -> None:
    """`write_atomic` for content that is at hand; text is written as UTF-8."""
    data = content.encode() if isinstance(content, str) else content

    def write(temporary: Path) -> None:
        temporary.write_bytes(data)

    write_atomic(path, write, needed=len(data), mode=mode)


def write_label_map(path: Path, labels: NDArray[np.integer], grid: Grid, overwrite: bool = False) -> None:
    """Writes integer labels on the grid of an image, then reads the file back and compares.

    Args:
        path: .nii or .nii.gz file.
        labels: (X, Y, Z) non-negative integers in the stored axis order of `grid`.
        grid: of the image; its affine, qform, sform, their codes, zooms and units are copied bit by bit.
        overwrite: replace an existing file.

    Raises:
        UserError: `path` exists or is the image itself, or the disk refused the file.
        ValueError: shape or type of `labels` do not fit.
    """
    if labels.dtype.kind not in "iu":
        raise ValueError(f"labels are {labels.dtype}{labels.shape}, expected integers of shape {grid.shape}")
    smallest = np.min_scalar_type(int(labels.max(initial=0)))
    write_map(path, labels.astype(smallest, copy=False), grid, overwrite)


def write_map(path: Path, values: NDArray[Any], grid: Grid, overwrite: bool = False) -> None:
    """Writes one value per voxel as `write_label_map` does, in the type that `values` have.

    Raises:
        UserError: as `write_label_map`.
        ValueError: the shape of `values` does not fit.
    """
    if values.shape != grid.shape:
        raise ValueError(f"values are {values.dtype}{values.shape}, expected the shape {grid.shape}")
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise UserError(f"{path}: the ending {path.suffix!r} is not NIfTI; end the name in .nii.gz")
    check_free(path, overwrite, [grid.path])
    stored = values[..., 0] if grid.stored_2d else values
    header = type(grid.header)()
    header.set_data_shape(stored.shape)
    header.set_data_dtype(stored.dtype)
    for name in GEOMETRY:
        header[name] = grid.header[name]
    image = type_of_image(grid)(stored, header.get_best_affine(), header)

    def write(temporary: Path) -> None:
        nibabel.save(image, temporary)
        _compare(temporary, path, stored, grid)

    ending = ".nii.gz" if path.name.lower().endswith(".gz") else ".nii"
    write_atomic(path, write, ending, needed=stored.nbytes + HEADER_BYTES)


def type_of_image(grid: Grid) -> type[nibabel.Nifti1Image]:
    """NIfTI-1 or NIfTI-2, as the grid's own file."""
    return nibabel.Nifti2Image if isinstance(grid.header, nibabel.Nifti2Header) else nibabel.Nifti1Image


def _compare(temporary: Path, path: Path, values: NDArray[Any], grid: Grid) -> None:
    image = nibabel.load(temporary)
    if not np.array_equal(np.asanyarray(image.dataobj), values):  # type: ignore[attr-defined]
        raise UserError(f"{path}: the voxels read back differ from those written; check the disk and try again")
    for name in GEOMETRY:
        found, expected = image.header[name], grid.header[name]  # type: ignore[index]
        if not np.array_equal(found, expected, equal_nan=True):
            raise UserError(f"{path}: header field {name} reads back as {found}, expected {expected}; report this file")
