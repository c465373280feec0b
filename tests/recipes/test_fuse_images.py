"""Reading and writing pictures: every bit stays, and what cannot be read is refused by name."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from ssmvision.errors import UserError
from ssmvision.recipes.fusion.images import on_size, read_picture, write_picture
from ssmvision.recipes.fusion.windows import Window
from tests.recipes.fusion_files import load_picture, picture, save_picture


@pytest.mark.parametrize(
    ("dtype", "ending", "window"),
    [
        (np.uint8, ".png", Window(0, 255)),
        (np.uint16, ".png", Window(0, 65535)),
        (np.uint8, ".tif", Window(0, 255)),
        (np.uint16, ".tiff", Window(0, 65535)),
        (np.int16, ".tif", Window(0, 32767)),
        (np.int32, ".tif", Window(0, 2147483647)),
        (np.float32, ".tif", Window(0, 1)),
        (np.float64, ".tif", Window(0, 1)),
    ],
)
@pytest.mark.parametrize("channels", [(), (3,)])
def test_pictures_come_back_as_written(tmp_path, dtype, ending, window, channels):
    pixels = picture((17, 23, *channels), dtype)
    path = tmp_path / f"a{ending}"
    write_picture(path, pixels)
    source = read_picture(path)
    assert source.values.dtype == source.dtype == dtype
    assert source.is_coloured == bool(channels)
    assert source.shape == (17, 23)
    assert source.window == window
    np.testing.assert_array_equal(source.values, pixels)
    np.testing.assert_array_equal(load_picture(path), pixels)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(("largest", "white"), [(0, 4095), (4095, 4095), (4096, 16383), (16383, 16383), (16384, 65535)])
def test_twelve_and_fourteen_bits_in_sixteen(tmp_path, largest, white):
    path = save_picture(tmp_path / "a.png", np.full((3, 4), largest, np.uint16))
    assert read_picture(path).window == Window(0, white)
    assert read_picture(path, Window(10, 20)).window == Window(10, 20)


def test_floats_outside_0_to_1_have_their_own_range(tmp_path):
    pixels = picture(dtype=np.float32) * 7 - 3
    assert read_picture(save_picture(tmp_path / "a.tif", pixels)).window == Window(-3, 4)
    constant = np.full((4, 5), 9, np.float32)
    assert read_picture(save_picture(tmp_path / "b.tif", constant)).window == Window(9, 10)


@pytest.mark.parametrize("transparency", [None, 3])
def test_palettes_are_looked_up(tmp_path, transparency):
    image = Image.fromarray(picture((20, 30, 3))).quantize(16)
    options = {} if transparency is None else {"transparency": transparency}
    image.save(tmp_path / "a.png", **options)
    source = read_picture(tmp_path / "a.png")
    assert source.is_coloured
    shown = np.asarray(image.convert("RGB")).copy()
    if transparency is not None:
        assert source.alpha is not None
        hidden = np.asarray(image) == transparency
        np.testing.assert_array_equal(source.alpha, np.where(hidden, 0, 255))
        shown[hidden] = 0
    np.testing.assert_array_equal(source.values, shown)


def test_one_bit_is_black_and_white(tmp_path):
    Image.fromarray(picture() > 128).save(tmp_path / "a.png")
    source = read_picture(tmp_path / "a.png")
    assert source.dtype == np.uint8
    np.testing.assert_array_equal(source.values, np.where(picture() > 128, 255, 0))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_alpha_is_kept_apart_and_what_it_hides_is_black(tmp_path, dtype, ending):
    pixels, alpha = picture((20, 30, 3), dtype), picture((20, 30), dtype, seed=4)
    alpha[:5] = 0
    write_picture(tmp_path / f"a{ending}", pixels, alpha)
    source = read_picture(tmp_path / f"a{ending}")
    np.testing.assert_array_equal(source.alpha, alpha)
    np.testing.assert_array_equal(source.values, np.where(alpha[..., None] == 0, 0, pixels))


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_alpha_in_tiffs_of_other_programs(tmp_path, mode):
    pixels, alpha = picture((20, 30, 3)), np.maximum(picture((20, 30), seed=4), 1)
    pixels = pixels if mode == "RGBA" else pixels[..., 0]  # Pillow tells the mode by the number of channels
    Image.fromarray(np.dstack((pixels, alpha))).save(tmp_path / "a.tif")
    source = read_picture(tmp_path / "a.tif")
    np.testing.assert_array_equal(source.values, pixels)
    np.testing.assert_array_equal(source.alpha, alpha)


def test_gray_with_alpha_stays_gray(tmp_path):
    pixels, alpha = picture((20, 30)), np.maximum(picture((20, 30), seed=4), 1)
    write_picture(tmp_path / "a.png", pixels, alpha)
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "LA"
    source = read_picture(tmp_path / "a.png")
    assert not source.is_coloured
    np.testing.assert_array_equal(source.values, pixels)
    np.testing.assert_array_equal(source.alpha, alpha)


def test_gray_with_alpha_of_16_bits(tmp_path):
    pixels, alpha = picture((6, 7), np.uint16), np.maximum(picture((6, 7), np.uint16, seed=4), 1)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in np.dstack((pixels, alpha)))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 7, 6, 16, 4, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    source = read_picture(tmp_path / "a.png")
    np.testing.assert_array_equal(source.values, pixels)
    np.testing.assert_array_equal(source.alpha, alpha)


def test_names_of_any_script(tmp_path):
    path = tmp_path / "脑 ñ.png"
    write_picture(path, picture())
    np.testing.assert_array_equal(read_picture(path).values, picture())


def truncated(path: Path) -> None:
    content = cv2.imencode(path.suffix, picture((40, 40, 3)))[1].tobytes()
    path.write_bytes(content[: len(content) // 2])


def two_pages(path: Path) -> None:
    Image.fromarray(picture()).save(path, save_all=True, append_images=[Image.fromarray(picture())])


def not_a_number(path: Path) -> None:
    pixels = picture(dtype=np.float32)
    pixels[3, 4] = np.nan
    save_picture(path, pixels)


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("a.png", lambda path: None, "no such file"),
        ("a.png", lambda path: path.write_bytes(b""), r"not a readable picture \(0 bytes\)"),
        ("a.png", lambda path: path.write_bytes(b"hello"), r"not a readable picture \(5 bytes\)"),
        ("a.png", truncated, "not a readable picture"),
        ("a.tif", truncated, "not a readable picture"),
        ("a.jpg", truncated, "not a readable picture"),
        ("a.tif", two_pages, "holds 2 pages"),
        ("a.tif", not_a_number, r"1 value\(s\) are not finite, the first is nan at \[3, 4\]"),
    ],
)
def test_what_is_no_picture_is_refused_in_one_line(tmp_path, capfd, name, make, message):
    make(tmp_path / name)
    with pytest.raises(UserError, match=message) as error:
        read_picture(tmp_path / name)
    assert name in str(error.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "dtype", "message"),
    [("a.jpg", np.uint8, "since it loses values"), ("a.png", np.float32, r"PNG cannot hold float32 .* \.tif")],
)
def test_formats_that_lose_values_are_not_written(tmp_path, name, dtype, message):
    with pytest.raises(UserError, match=message):
        write_picture(tmp_path / name, picture(dtype=dtype))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shape", [(12, 18), (48, 72), (1, 1), (1, 40)])
def test_stretched_only_if_asked(tmp_path, shape):
    a = read_picture(
        save_picture(tmp_path / "a.png", picture(shape, seed=1) if min(shape) > 1 else np.ones(shape, "u1"))
    )
    pixels = np.dstack([picture((24, 36), seed=i) for i in range(3)])
    b = read_picture(save_picture(tmp_path / "b.png", pixels))
    with pytest.raises(UserError, match=rf"b.png: is 36x24 pixels, but .*a.png is {shape[1]}x{shape[0]}.*--resample"):
        on_size(a, b, resample=False)
    moved = on_size(a, b, resample=True)
    assert moved.shape == shape
    assert moved.is_coloured
    assert moved.dtype == np.uint8
    assert moved.values.mean() == pytest.approx(pixels.mean(), abs=3 if min(shape) > 1 else 40)
    assert on_size(b, b, resample=True) is b
