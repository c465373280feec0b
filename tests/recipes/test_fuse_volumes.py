"""Volumes: one window, upright slices that turn back exactly, and headers that stay."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform

from ssmvision.errors import UserError
from ssmvision.recipes.fusion.volumes import (
    as_slices,
    check_registered,
    from_slices,
    read_nifti,
    resampled,
    slicing_axis,
    write_nifti,
)
from ssmvision.recipes.fusion.windows import Window
from ssmvision.recipes.segmentation.volumes import RGB24
from tests.recipes.fusion_files import OBLIQUE, head, save_volume, texture


def test_window_is_that_of_the_whole_volume(tmp_path):
    source = read_nifti(save_volume(tmp_path / "a.nii.gz", head(low=-300, high=900)))
    assert source.window == Window(-300, 900)
    assert source.dtype == np.int16
    unit = source.window.to_unit(source.values)
    assert (unit.min(), unit.max()) == (0, 1)
    # A slice on its own does not reach them.
    assert unit[..., 4].max() < 1 or unit[..., 4].min() > 0
    constant = read_nifti(save_volume(tmp_path / "b.nii", np.full((3, 4, 5), 7, np.int16)))
    assert constant.window == Window(7, 8)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "LPI", "PIR", "ASL", "SRA"])
@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
def test_slices_are_upright_whatever_the_storage_and_turn_back_exactly(codes, axis):
    # Coordinates themselves as voxels: x grows to the right, y to the front, z up.
    shape = (4, 5, 6)
    ras = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    turn = ornt_transform(axcodes2ornt(tuple("RAS")), axcodes2ornt(tuple(codes)))
    stored = nibabel.orientations.apply_orientation(ras, turn)
    affine = np.eye(4) @ inv_ornt_aff(turn, shape)
    slices = as_slices(stored, affine, axis)
    assert (np.diff(slices[..., {"axial": 2, "coronal": 1, "sagittal": 0}[axis]], axis=0) != 0).all()
    down, right = {"axial": (1, 0), "coronal": (2, 0), "sagittal": (2, 1)}[axis]
    assert (np.diff(slices[..., down], axis=1) == -1).all()  # from the front, or the top, downwards
    assert (np.diff(slices[..., right], axis=2) == -1).all()  # the patient's right, or front, on the left
    np.testing.assert_array_equal(from_slices(slices, affine, axis), stored)


@pytest.mark.parametrize(
    ("spacing", "shape", "expected"),
    [
        ((1, 1, 1), (9, 9, 9), "axial"),
        ((1, 1, 3), (9, 9, 9), "axial"),
        ((1, 3, 1), (9, 9, 9), "coronal"),
        ((3, 1, 1), (9, 9, 9), "sagittal"),
        ((1.2, 1, 1), (9, 9, 9), "axial"),
        ((3, 2, 1), (1, 9, 9), "sagittal"),
    ],
)
def test_slices_lie_across_the_thick_direction(tmp_path, spacing, shape, expected):
    source = read_nifti(save_volume(tmp_path / "a.nii", np.zeros(shape, np.uint8), np.diag([*spacing, 1])))
    assert source.grid is not None
    assert slicing_axis(source.grid, "auto") == expected
    assert slicing_axis(source.grid, "coronal") == "coronal"


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_header_geometry_and_type_stay(tmp_path, dtype, name):
    values = head(low=0, high=200).astype(dtype)
    path = save_volume(
        tmp_path / "in" / name, values, descrip=b"scanner 7", cal_max=180, intent_name=b"x", toffset=3, aux_file=b"y"
    )
    source = read_nifti(path)
    assert source.grid is not None
    write_nifti(tmp_path / "out.nii.gz", values[::-1], source.grid, source.dtype, source.scale, same_numbers=True)
    before, after = nibabel.load(path), nibabel.load(tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(after.dataobj), values[::-1])
    np.testing.assert_array_equal(after.affine, before.affine)
    for field in before.header:
        np.testing.assert_array_equal(after.header[field], before.header[field], err_msg=field)


def test_scaled_numbers_stay_scaled(tmp_path):
    image = nibabel.Nifti1Image(head(low=0, high=1000), OBLIQUE)
    image.header.set_slope_inter(0.25, -100)
    nibabel.save(image, tmp_path / "a.nii.gz")
    source = read_nifti(tmp_path / "a.nii.gz")
    assert source.scale == (0.25, -100)
    assert source.window == Window(-100, 150)
    assert source.grid is not None
    write_nifti(tmp_path / "b.nii.gz", source.values, source.grid, source.dtype, source.scale)
    again = nibabel.load(tmp_path / "b.nii.gz")
    assert again.get_data_dtype() == np.int16
    assert (again.dataobj.slope, again.dataobj.inter) == (0.25, -100)
    np.testing.assert_array_equal(again.get_fdata(), nibabel.load(tmp_path / "a.nii.gz").get_fdata())
    write_nifti(tmp_path / "c.nii.gz", np.full_like(source.values, 1e9), source.grid, source.dtype, source.scale)
    assert nibabel.load(tmp_path / "c.nii.gz").dataobj.get_unscaled().max() == np.iinfo(np.int16).max


def test_colour_is_rgb24_and_comes_back(tmp_path):
    source = read_nifti(save_volume(tmp_path / "a.nii.gz", head(), cal_max=50))
    assert source.grid is not None
    rgb = (np.stack([texture((18, 20, 9), seed) for seed in range(3)], -1) * 255).astype(np.uint8)
    write_nifti(tmp_path / "b.nii.gz", rgb, source.grid, source.dtype)
    image = nibabel.load(tmp_path / "b.nii.gz")
    assert image.get_data_dtype() == RGB24
    assert image.header["datatype"] == 128
    assert image.header["bitpix"] == 24
    assert image.header["cal_max"] == 0
    np.testing.assert_array_equal(image.affine, nibabel.load(tmp_path / "a.nii.gz").affine)
    again = read_nifti(tmp_path / "b.nii.gz")
    assert again.is_coloured
    assert again.window == Window(0, 255)
    np.testing.assert_array_equal(again.values, rgb)


@pytest.mark.parametrize("shape", [(7, 8), (1, 1), (7, 8, 1), (7, 8, 9, 1), (1, 1, 1)])
def test_few_and_many_axes(tmp_path, shape):
    values = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    source = read_nifti(save_volume(tmp_path / "a.nii", values))
    assert source.grid is not None
    write_nifti(tmp_path / "b.nii", source.values, source.grid, source.dtype)
    image = nibabel.load(tmp_path / "b.nii")
    assert image.shape == (shape[:3] if len(shape) == 4 else shape)
    np.testing.assert_array_equal(np.asanyarray(image.dataobj).ravel(), values.ravel())


def bad_volume(tmp_path, kind):
    path = tmp_path / "a.nii.gz"
    if kind == "nan":
        values = head().astype(np.float32)
        values[1, 2, 3] = np.nan
        save_volume(path, values)
    elif kind == "series":
        save_volume(path, np.zeros((3, 4, 5, 6), np.int16))
    elif kind == "truncated":
        save_volume(path, head())
        path.write_bytes(path.read_bytes()[:-200])
    elif kind == "complex":
        save_volume(path, np.zeros((3, 4, 5), np.complex64))
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "no such file"),
        ("nan", r"1 value\(s\) are not finite, the first is nan at \[1, 2, 3\]"),
        ("series", r"has the shape \(3, 4, 5, 6\); give one volume of three axes"),
        ("truncated", "truncated or corrupt"),
        ("complex", "voxels are of type complex64"),
    ],
)
def test_what_is_no_volume_is_refused(tmp_path, kind, message):
    with pytest.raises(UserError, match=message):
        read_nifti(bad_volume(tmp_path, kind))


def shifted(millimetres):
    affine = OBLIQUE.copy()
    affine[0, 3] += millimetres
    return affine


@pytest.mark.parametrize(
    ("values", "affine", "message"),
    [
        (head((18, 20, 8)), OBLIQUE, r"shape \(18, 20, 8\) differs from \(18, 20, 9\)"),
        (head(), shifted(0.4), r"a corner lies 0\.4 mm away \(allowed 0\.1"),
        (head(), OBLIQUE @ np.diag([-1, 1, 1, 1]), "a corner lies"),
    ],
)
def test_other_grids_are_refused_with_numbers_and_the_fix(tmp_path, values, affine, message):
    a = read_nifti(save_volume(tmp_path / "a.nii", head()))
    b = read_nifti(save_volume(tmp_path / "b.nii", values, affine))
    with pytest.raises(UserError, match=message + r".*--resample brings b\.nii onto the grid of a\.nii"):
        check_registered(a, b)
    check_registered(a, read_nifti(save_volume(tmp_path / "c.nii", head(), shifted(0.05))))


@pytest.mark.parametrize("coloured", [False, True])
def test_resampling_puts_voxels_where_they_are_in_space(tmp_path, coloured):
    fine = np.diag([1.0, 1, 1, 1])
    coarse = np.diag([2.0, 2, 2, 1])
    coarse[:3, 3] = [2, 0, -2]
    x, y, z = np.meshgrid(*map(np.arange, (8, 8, 8)), indexing="ij")
    places = 10 * (2 * x + 2) + 2 * y + z - 1  # linear in space, so that interpolation is exact
    if coloured:
        places = np.stack([places % 256, places // 2, 255 - places // 2], -1).astype(np.uint8)
        places = np.ascontiguousarray(places).view(RGB24)[..., 0]
    b = read_nifti(save_volume(tmp_path / "b.nii", places.astype(RGB24 if coloured else np.int16), coarse))
    a = read_nifti(save_volume(tmp_path / "a.nii", np.zeros((12, 12, 12), np.uint8), fine))
    assert a.grid is not None
    moved = resampled(b, a.grid)
    assert moved.shape == (12, 12, 12)
    assert moved.window == b.window
    assert moved.dtype == b.dtype
    if coloured:
        np.testing.assert_allclose(moved.values[4, 2, 0], b.values[1, 1, 1])
    else:
        assert moved.values[5, 3, 1] == pytest.approx(10 * 5 + 3 + (1 + 2) / 2 - 1)
        assert moved.values[0, 0, 0] == b.window.low  # not covered


def test_volumes_apart_are_not_resampled(tmp_path):
    a = read_nifti(save_volume(tmp_path / "a.nii", head()))
    b = read_nifti(save_volume(tmp_path / "b.nii", head(), shifted(500)))
    assert a.grid is not None
    with pytest.raises(UserError, match=r"b.nii: nothing of it lies within .*a.nii: centres \[5"):
        resampled(b, a.grid)
