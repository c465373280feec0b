from __future__ import annotations

import hashlib
import itertools
from pathlib import Path

import nibabel
import numpy as np
import pytest

from ssmvision.errors import UserError
from ssmvision.recipes.segmentation.volumes import read_image, read_label_map
from ssmvision.recipes.segmentation.writing import GEOMETRY, write_atomic, write_label_map
from tests.recipes.synthetic import OBLIQUE, ball, save

SHAPE = (9, 8, 7)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return save(tmp_path / "image.nii.gz", ball(SHAPE)[0])


def refused(path: Path, *parts: str) -> None:
    with pytest.raises(UserError) as error:
        read_image([path])
    for part in (str(path), *parts):
        assert part in str(error.value)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_truncation_at_any_place_is_refused(tmp_path: Path, ending: str) -> None:
    path = save(tmp_path / f"a{ending}", ball(SHAPE)[0])
    content = path.read_bytes()
    for kept in np.linspace(0, len(content) - 1, 20).astype(int):
        path.write_bytes(content[:kept])
        refused(path, "fetch or export it again")


def test_flipped_byte_in_compressed_file_is_refused(image: Path) -> None:
    content = bytearray(image.read_bytes())
    content[-6] ^= 0xFF  # in the checksum: only a reader that goes to the end sees it
    image.write_bytes(content)
    refused(image, "fetch or export it again")


def test_header_larger_than_file_is_refused_before_allocation(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", ball(SHAPE)[0])
    content = bytearray(path.read_bytes())
    content[42:48] = np.array([30000, 30000, 30000], "<i2").tobytes()
    path.write_bytes(content)
    refused(path, "108000000000000 bytes", "fetch")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_voxels_are_refused(tmp_path: Path, value: float) -> None:
    data = ball(SHAPE)[0]
    data[1, 2, 3] = value
    refused(save(tmp_path / "a.nii.gz", data), "1 voxel(s)", str(value), "[1, 2, 3]", "replace")


def test_missing_wrong_ending_and_useless_affine(tmp_path: Path) -> None:
    refused(tmp_path / "none.nii.gz", "no such file", "check the path")
    (tmp_path / "a.png").write_bytes(b"x")
    refused(tmp_path / "a.png", "'.png'", "convert")
    path = save(tmp_path / "flat.nii", ball(SHAPE)[0])
    content = bytearray(path.read_bytes())
    content[280:328] = bytes(48)
    path.write_bytes(content)
    refused(path, "affine", "repair the header")


def test_channels_must_share_grid_and_number(tmp_path: Path, image: Path) -> None:
    data = ball(SHAPE)[0]
    shifted = OBLIQUE.copy()
    shifted[:3, 3] += OBLIQUE[:3, 0] / 2
    other = save(tmp_path / "half_voxel.nii.gz", data, shifted)
    with pytest.raises(UserError, match=r"half_voxel.*affine differs.*image\.nii\.gz.*0\.498 mm.*resample"):
        read_image([image, other])
    smaller = save(tmp_path / "smaller.nii.gz", data[:-1])
    with pytest.raises(UserError, match=r"smaller.*\(8, 8, 7\) differs from \(9, 8, 7\).*resample"):
        read_image([image, smaller])
    with pytest.raises(UserError, match=r"image\.nii\.gz: 1 channel\(s\) found, 2 expected \['T1', 'T2'\]; give"):
        read_image([image], ["T1", "T2"])


def test_rounding_noise_in_affine_is_tolerated_flips_are_not(tmp_path: Path, image: Path) -> None:
    rng = np.random.default_rng(0)
    noisy = OBLIQUE.copy()
    noisy[:3] += rng.normal(0, 1e-3, (3, 4))
    assert len(read_image([image, save(tmp_path / "noisy.nii.gz", ball(SHAPE)[0], noisy)]).data) == 2
    flipped = OBLIQUE @ np.diag([-1, 1, 1, 1])
    with pytest.raises(UserError, match="affine differs"):
        read_image([image, save(tmp_path / "flipped.nii.gz", ball(SHAPE)[0], flipped)])


def test_channels_in_fourth_axis_and_2d_files(tmp_path: Path) -> None:
    data = np.stack([ball(SHAPE, seed)[0] for seed in range(2)], -1)
    volume = read_image([save(tmp_path / "four.nii.gz", data)], ["T1", "T2"])
    np.testing.assert_array_equal(volume.data, np.moveaxis(data, -1, 0))
    flat = read_image([save(tmp_path / "two.nii.gz", data[:, :, 0, 0])])
    assert flat.data.shape == (1, 9, 8, 1)
    write_label_map(tmp_path / "out.nii.gz", np.ones((9, 8, 1), np.uint8), flat.grid)
    assert nibabel.load(tmp_path / "out.nii.gz").shape == (9, 8)


def test_units_are_converted_to_mm(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(ball(SHAPE)[0], np.diag([1e-3, 2e-3, 3e-3, 1]))
    image.header.set_xyzt_units("meter")
    nibabel.save(image, tmp_path / "m.nii")
    np.testing.assert_allclose(read_image([tmp_path / "m.nii"]).grid.spacing_mm, (1, 2, 3), rtol=1e-6)


def test_label_maps(tmp_path: Path, image: Path) -> None:
    mask = ball(SHAPE)[1]
    path = save(tmp_path / "label.nii.gz", mask.astype(np.float32))
    read, _ = read_label_map(path, [0, 1], read_image([image]).grid)
    np.testing.assert_array_equal(read, mask)
    mask[0, 0, :2] = 7
    with pytest.raises(UserError, match=r"unknown\.nii\.gz: label ids not in \[0, 1\].*\{7: 2\}; correct"):
        read_label_map(save(tmp_path / "unknown.nii.gz", mask), [0, 1])
    with pytest.raises(UserError, match=r"half\.nii\.gz: .*0\.5.*nearest"):
        read_label_map(save(tmp_path / "half.nii.gz", mask.astype(np.float32) / 2))
    shifted = OBLIQUE.copy()
    shifted[0, 3] += 3
    with pytest.raises(UserError, match=r"moved\.nii\.gz: affine differs from .*image\.nii\.gz.*3 mm.*correct"):
        read_label_map(save(tmp_path / "moved.nii.gz", mask, shifted), None, read_image([image]).grid)


@pytest.mark.parametrize(
    ("axes", "signs"), [(a, s) for a in itertools.permutations(range(3)) for s in ((1, 1, 1), (-1, -1, 1), (1, -1, -1))]
)
def test_written_grid_is_the_inputs_bit_by_bit(tmp_path: Path, axes: tuple[int, ...], signs: tuple[int, ...]) -> None:
    turn = np.eye(4)
    turn[:3, :3] = np.eye(3)[:, list(axes)] * signs
    path = save(tmp_path / "a.nii.gz", ball(SHAPE)[0], OBLIQUE @ turn)
    source = nibabel.load(path)
    grid = read_image([path]).grid
    write_label_map(tmp_path / "b.nii.gz", np.full(SHAPE, 3, np.int32), grid)
    written = nibabel.load(tmp_path / "b.nii.gz")
    np.testing.assert_array_equal(written.affine, source.affine)
    for name in GEOMETRY:
        np.testing.assert_array_equal(written.header[name], source.header[name])
    assert written.get_data_dtype() == np.uint8


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("codes", [(0, 0), (1, 0), (0, 2), (4, 4)])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("shape", [SHAPE, (*SHAPE, 1)])
def test_other_headers_keep_their_grid(
    tmp_path: Path, kind: type, codes: tuple[int, int], order: str, shape: tuple[int, ...]
) -> None:
    rigid = np.array([[0.0, -2, 0, 5], [3, 0, 0, -7], [0, 0, 1, 2], [0, 0, 0, 1]])
    image = kind(ball(SHAPE)[0].reshape(shape).astype(f"{order}i2"), rigid)
    image = kind(image.dataobj, None, image.header.as_byteswapped(order))
    image.header.set_qform(rigid, code=codes[0])
    image.header.set_sform(rigid, code=codes[1])
    image.header["xyzt_units"] = 2
    nibabel.save(image, tmp_path / "a.nii")
    source = nibabel.load(tmp_path / "a.nii")
    assert source.header.endianness == order
    write_label_map(tmp_path / "b.nii", np.ones(SHAPE, np.int64), read_image([tmp_path / "a.nii"]).grid)
    written = nibabel.load(tmp_path / "b.nii")
    assert type(written) is kind
    np.testing.assert_array_equal(written.affine, source.affine)
    assert (int(written.header["qform_code"]), int(written.header["sform_code"])) == codes


def test_forms_that_differ_and_private_text(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(ball(SHAPE)[0], OBLIQUE)
    image.set_qform(np.diag([2.0, 2, 2, 1]), code=3)
    image.set_sform(OBLIQUE, code=2)
    image.header["descrip"] = b"DOE^JANE 1970"
    nibabel.save(image, tmp_path / "a.nii")
    write_label_map(tmp_path / "b.nii", np.zeros(SHAPE, np.uint8), read_image([tmp_path / "a.nii"]).grid)
    written = nibabel.load(tmp_path / "b.nii")
    assert (int(written.header["qform_code"]), int(written.header["sform_code"])) == (3, 2)
    np.testing.assert_array_equal(written.get_qform(), image.get_qform())
    assert b"DOE" not in (tmp_path / "b.nii").read_bytes()


def test_outputs_are_not_overwritten_and_inputs_never(tmp_path: Path, image: Path) -> None:
    grid = read_image([image]).grid
    before = hashlib.sha256(image.read_bytes()).hexdigest()
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"image\.nii\.gz: the output is the input"):
            write_label_map(image, np.zeros(SHAPE, np.uint8), grid, overwrite)
    out = tmp_path / "out.nii.gz"
    write_label_map(out, np.zeros(SHAPE, np.uint8), grid)
    with pytest.raises(UserError, match=r"out\.nii\.gz: exists already; .*--overwrite"):
        write_label_map(out, np.ones(SHAPE, np.uint8), grid)
    write_label_map(out, np.ones(SHAPE, np.uint8), grid, overwrite=True)
    assert read_label_map(out)[0].all()
    assert hashlib.sha256(image.read_bytes()).hexdigest() == before


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")

    def full_disk(path: Path) -> None:
        path.write_text("ha")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"a\.txt: could not be written .*No space left.*free space"):
        write_atomic(target, full_disk)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]
