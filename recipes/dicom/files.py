"""Tells DICOM files apart and opens them; needs pydicom (the extra `dicom`) from `read_header` on."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ssmvision.errors import UserError

__all__ = [
    "dicom_files",
    "guarded",
    "is_cut",
    "is_dicom",
    "is_series",
    "kind_of",
    "quietly",
    "read_header",
    "refusal_of_cut",
    "require",
    "visible_files",
]

ENDINGS = (".dcm", ".ima")
LABEL_KINDS = ("RTSTRUCT", "SEG")
_OTHERS = (".nii", ".nii.gz", ".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp")
_MAGIC_AT, _MAGIC = 128, b"DICM"
_IDENTITY = (
    *("Modality", "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SeriesNumber", "FrameOfReferenceUID"),
    *("Rows", "Columns"),
)


def visible_files(folder: Path, deep: bool = False) -> Iterator[Path]:
    """Files in a folder (`deep`: and below it), sorted; hidden ones and those in hidden folders are left out."""
    paths = folder.rglob("*") if deep else folder.iterdir()
    return (path for path in sorted(paths) if path.is_file() and not _hidden(path.relative_to(folder)))


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def is_series(folder: Path) -> bool:
    """Whether a folder directly holds DICOM files, and no pictures or NIfTI files."""
    files = list(visible_files(folder))
    return not any(path.name.lower().endswith(_OTHERS) for path in files) and any(map(is_dicom, files))


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, by its name or its first bytes."""
    if path.suffix.lower() in ENDINGS:
        return True
    with path.open("rb") as file:
        file.seek(_MAGIC_AT)
        return file.read(len(_MAGIC)) == _MAGIC


def is_cut(path: Path) -> bool:
    """Whether a file without an ending is too short to tell, as a slice whose copy broke off would be."""
    return not path.suffix and path.stat().st_size < _MAGIC_AT + len(_MAGIC)


def dicom_files(folder: Path) -> list[Path]:
    """The DICOM files directly in a folder.

    Raises:
        UserError: beside them lies a file that broke off at its start; it must not just go missing.
    """
    files = list(visible_files(folder))
    found = [path for path in files if is_dicom(path)]
    for path in files if found else ():
        if is_cut(path):
            raise refusal_of_cut(path)
    return found


def refusal_of_cut(path: Path) -> UserError:
    """What to say about a file that broke off at its start."""
    size = path.stat().st_size
    return UserError(f"{path}: has {size} bytes, too few for DICOM; fetch or export it again, or remove it")


def require(path: Path, *packages: str) -> None:
    """Refuses to go on where a package that DICOM needs is missing.

    Raises:
        UserError: says what to install.
    """
    for package in packages or ("pydicom",):
        if find_spec(package) is None:
            raise UserError(
                f"{path}: DICOM needs {package}, which is not installed; pip install 'ssmvision[dicom]' "
                "(in a clone: pip install '.[dicom]')"
            )


@contextmanager
def quietly() -> Iterator[list[warnings.WarningMessage]]:
    """Keeps back, and yields, what libraries warn of or log: they quote values, which may name a patient."""
    loggers = [logging.getLogger(name) for name in ("pydicom", "highdicom")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            yield told
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextmanager
def guarded(path: Path, problem: str) -> Iterator[list[warnings.WarningMessage]]:
    """Turns whatever a damaged file causes into an error that names it; pydicom parses values when they are asked for.

    Args:
        path: the file.
        problem: what a failure in the block means.

    Raises:
        UserError: see above.
    """
    try:
        with quietly() as told:
            yield told
    except UserError:
        raise
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: {problem} ({text}); fetch or export it again") from None


def read_header(path: Path, pixels: bool = False) -> Any:
    """The data set of a DICOM file.

    Args:
        path: the file.
        pixels: read them too.

    Raises:
        UserError: not readable, cut short, or pydicom is not installed.
    """
    require(path)
    import pydicom

    with guarded(path, "not a readable DICOM file") as told:
        data = pydicom.dcmread(path, stop_before_pixels=not pixels)
        # pydicom goes on with what there is of a sequence, or of compressed pixels, that the file ends in.
        if any("End of file reached" in str(warning.message) for warning in told):
            raise UserError(f"{path}: its pixels cannot be decoded (it is cut short); fetch or export it again")
        if not ("Storage" in _storage(data) or data.get("Modality")):
            raise UserError(f"{path}: does not say what it holds, it may be cut short; fetch or export it again")
        # Once parsed without an error, values stay so.
        for name in _IDENTITY:
            data.get(name)
    return data


def _storage(header: Any) -> str:
    """Name of the kind of file, which a file that broke off tells at its start; a bare UID where it is no known one."""
    found = getattr(header, "file_meta", {}).get("MediaStorageSOPClassUID") or header.get("SOPClassUID")
    return str(getattr(found, "name", ""))


def kind_of(header: Any) -> str:
    """What a DICOM file holds: "image", "RTSTRUCT", "SEG", or "other" such as a dose, a report or a disc's index."""
    modality = str(header.get("Modality", ""))
    if modality in LABEL_KINDS:
        return modality
    name = _storage(header)
    if "Storage" in name:
        return "image" if "Image Storage" in name else "other"
    return "image" if "Rows" in header else "other"
