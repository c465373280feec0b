"""DICOM series: the scanner's geometry, or a refusal that names the file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from ssmvision.errors import UserError
from ssmvision.recipes.dicom.files import is_series
from ssmvision.recipes.fusion.dicom import read_dicom
from ssmvision.recipes.fusion.windows import Window
from tests.recipes.fusion_files import head

UID = generate_uid()
# Rows and columns of the slices below run along these directions (LPS), a bit oblique.
ACROSS, DOWN = np.array([0.8, 0.6, 0.0]), np.array([-0.6, 0.8, 0.0])
NORMAL = np.cross(ACROSS, DOWN)
ORIGIN, SPACING, GAP = np.array([-50.0, -40.0, 100.0]), (0.7, 0.9), 2.5


def save_slice(folder: Path, index: int, stored: Any, name: str | None = None, **fields: Any) -> Path:
    """One slice, (rows, columns), at its place along the normal."""
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = pydicom.Dataset()
    data.file_meta, data.SOPClassUID, data.SOPInstanceUID = meta, CTImageStorage, meta.MediaStorageSOPInstanceUID
    data.Modality, data.SeriesInstanceUID, data.InstanceNumber = "CT", UID, index + 1
    data.Rows, data.Columns = stored.shape[:2]
    data.PixelSpacing = [str(value) for value in SPACING]
    data.ImageOrientationPatient = [f"{value:.6f}" for value in (*ACROSS, *DOWN)]
    data.ImagePositionPatient = [f"{value:.6f}" for value in ORIGIN + index * GAP * NORMAL]
    data.SliceThickness = str(GAP)
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
    data.PixelRepresentation = int(stored.dtype.kind == "i")
    data.RescaleSlope, data.RescaleIntercept = "1", "-1024"
    for key, value in fields.items():
        setattr(data, key, value)
    data.PixelData = np.ascontiguousarray(stored).tobytes()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (name or f"{9 - index}.dcm")  # names in another order than the slices
    data.save_as(path, enforce_file_format=True)
    return path


def save_series(folder: Path, hounsfield: Any, **fields: Any) -> Path:
    """A volume (column, row, slice)."""
    for index in range(hounsfield.shape[2]):
        save_slice(folder, index, (hounsfield[..., index].T + 1024).astype(np.uint16), **fields)
    return folder


def test_values_and_geometry(tmp_path):
    volume = head((7, 6, 5), low=-1000, high=2000)
    source = read_dicom(save_series(tmp_path / "ct", volume))
    assert is_series(tmp_path / "ct")
    assert source.dtype == np.int16
    assert source.window == Window(-1000, 2000)
    np.testing.assert_array_equal(source.values, volume)
    assert source.grid is not None
    corner = np.array([3.0, 2.0, 4.0])
    lps = ORIGIN + corner[0] * SPACING[1] * ACROSS + corner[1] * SPACING[0] * DOWN + corner[2] * GAP * NORMAL
    np.testing.assert_allclose(source.grid.affine @ [*corner, 1], [*(lps * [-1, -1, 1]), 1], atol=1e-4)
    np.testing.assert_allclose(source.grid.header.get_best_affine(), source.grid.affine, atol=1e-4)
    assert source.grid.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_allclose(source.grid.spacing_mm, (0.9, 0.7, 2.5), atol=1e-5)


def test_one_file_is_one_slice(tmp_path):
    path = save_slice(tmp_path, 0, np.arange(12, dtype=np.uint16).reshape(3, 4), name="IM1")
    source = read_dicom(path)
    assert source.shape == (4, 3, 1)
    assert source.values[1, 2, 0] == 9 - 1024
    assert source.grid is not None
    assert source.grid.spacing_mm[2] == pytest.approx(2.5)


def test_fractions_and_large_integers(tmp_path):
    stored = np.arange(12, dtype=np.uint16).reshape(3, 4)
    pet = read_dicom(save_slice(tmp_path, 0, stored, RescaleSlope="0.5", RescaleIntercept="0"))
    assert pet.dtype == np.float32
    assert pet.values.max() == 5.5
    wide = read_dicom(save_slice(tmp_path, 1, stored + 60000, RescaleIntercept="0"))
    assert wide.dtype == np.int32
    assert wide.values.max() == 60011


def test_colour(tmp_path):
    rgb = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)
    fields = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "SamplesPerPixel": 3, "PlanarConfiguration": 0}
    source = read_dicom(save_slice(tmp_path, 0, rgb, PhotometricInterpretation="RGB", **fields))
    assert source.is_coloured
    assert source.window == Window(0, 255)
    np.testing.assert_array_equal(source.values[:, :, 0], rgb.swapaxes(0, 1))


def test_a_scanners_own_file_beside_one_without_pixels(tmp_path):
    real = pydicom.data.get_testdata_file("CT_small.dcm")
    (tmp_path / "ct.dcm").write_bytes(Path(real).read_bytes())
    contours = pydicom.dcmread(real)
    del contours.PixelData
    contours.file_meta.MediaStorageSOPClassUID = contours.SOPClassUID = pydicom.uid.RTStructureSetStorage
    contours.save_as(tmp_path / "contours.dcm")
    source = read_dicom(tmp_path)
    assert source.shape == (128, 128, 1)
    assert source.grid is not None
    np.testing.assert_allclose(source.grid.spacing_mm, (0.661468, 0.661468, 5), atol=1e-5)
    np.testing.assert_allclose(source.grid.affine[:3, 3], (158.135803, 179.035797, -75.699997), atol=1e-4)
    pixels = pydicom.dcmread(real).pixel_array
    np.testing.assert_array_equal(source.values[..., 0], pixels.T.astype(int) - 1024)


def odd_slice(**fields):
    return lambda folder: save_slice(folder, 2, np.zeros((6, 7), np.uint16), name="odd.dcm", **fields)


def gantry(folder):
    for index in range(5):
        place = ORIGIN + index * (GAP * NORMAL + 0.4 * DOWN)
        save_slice(folder, index, np.zeros((6, 7), np.uint16), ImagePositionPatient=[f"{value:.4f}" for value in place])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "7.dcm").unlink(), r"8\.dcm and 6\.dcm are 5\.000 mm apart, the others 2\.500 mm"),
        (odd_slice(), r"7\.dcm and odd\.dcm lie at one place|odd\.dcm and 7\.dcm lie at one place"),
        (odd_slice(SeriesInstanceUID=generate_uid()), "holds 2 series"),
        (odd_slice(Rows=5), r"odd\.dcm: Rows is 5, but 6 in 5\.dcm"),
        (odd_slice(PixelSpacing=["1", "1"]), r"odd\.dcm: PixelSpacing is \[1, 1\]"),
        (odd_slice(ImageOrientationPatient=["1", "0", "0", "0", "1", "0"]), "ImageOrientationPatient is"),
        (odd_slice(NumberOfFrames="4"), r"odd\.dcm: holds 4 frames"),
        (odd_slice(PhotometricInterpretation="MONOCHROME1"), r"odd\.dcm: its pixels are MONOCHROME1"),
        (odd_slice(ImagePositionPatient=None), r"odd\.dcm: has no ImagePositionPatient"),
        (gantry, r"tilted by 9\.1 degrees"),
        (lambda folder: (folder / "7.dcm").write_bytes(b"no"), r"7\.dcm: not a readable DICOM file"),
        (lambda folder: (folder / "7.dcm").write_bytes((folder / "7.dcm").read_bytes()[:-20]), r"7\.dcm: its pixels"),
    ],
)
def test_what_is_no_volume_is_refused(tmp_path, change, message):
    folder = save_series(tmp_path / "ct", head((7, 6, 5)))
    change(folder)
    with pytest.raises(UserError, match=message):
        read_dicom(folder)


def test_other_folders_are_no_series(tmp_path):
    (tmp_path / "a").mkdir()
    assert not is_series(tmp_path / "a")
    (tmp_path / "a" / "notes").write_text("none")
    assert not is_series(tmp_path / "a")
    save_slice(tmp_path / "a", 0, np.zeros((3, 4), np.uint16), name="IM0")
    assert is_series(tmp_path / "a")
    nibabel.save(nibabel.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)), tmp_path / "a" / "x.nii")
    assert not is_series(tmp_path / "a")


def test_without_pydicom_the_way_to_get_it_is_told(tmp_path, monkeypatch):
    path = save_slice(tmp_path, 0, np.zeros((3, 4), np.uint16))
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(UserError, match=r"pip install 'ssmvision\[dicom\]'"):
        read_dicom(path)
