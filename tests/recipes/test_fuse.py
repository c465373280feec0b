"""`ssmvision fuse` as a user meets it: what comes out of which input, and what is refused how."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ssmvision.cli import main
from ssmvision.metrics.fusion import METRICS, qabf, spatial_frequency
from ssmvision.recipes.fusion import classical
from ssmvision.recipes.fusion.colour import chroma, luminance
from ssmvision.recipes.fusion.volumes import as_slices
from ssmvision.recipes.segmentation.volumes import RGB24
from tests.recipes.fusion_files import OBLIQUE, head, load_picture, picture, save_picture, save_volume, texture
from tests.recipes.test_fuse_dicom import save_series
from tests.recipes.test_fuse_network import small

CLASSICAL = ("average", "max", "laplacian", "wavelet", "guided")


@pytest.fixture
def fuse(tmp_path, monkeypatch, capsys):
    """Runs the command in an empty folder; returns its exit code and what it wrote on standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*words: Any) -> tuple[int, str]:
        code = main(["fuse", *map(str, words)])
        return code, capsys.readouterr().err

    return run


def colours(shape=(24, 36), dtype=np.uint8) -> Any:
    return np.dstack([picture(shape, dtype, seed) for seed in (5, 6, 7)])


def unit(pixels):
    return pixels / np.iinfo(pixels.dtype).max


class TestPictures:
    @pytest.mark.parametrize("method", CLASSICAL)
    def test_every_classical_method_on_gray(self, fuse, method):
        a, b = picture(), picture(seed=1)
        save_picture(Path("a.png"), a)
        save_picture(Path("b.png"), b)
        assert fuse("a.png", "b.png", "out.png", "--method", method)[0] == 0
        expected = classical.fuse(unit(a).astype(np.float32), unit(b).astype(np.float32), method)
        # Halves may be rounded to either side.
        np.testing.assert_allclose(load_picture(Path("out.png")), expected * 255, atol=0.5001)

    @pytest.mark.parametrize(
        ("dtype", "ending", "bits"),
        [(np.uint8, "png", 8), (np.uint16, "png", 16), (np.uint16, "png", 12), (np.uint16, "tif", 16)],
    )
    @pytest.mark.parametrize("channels", [1, 3])
    def test_bits_and_range_are_kept(self, fuse, dtype, ending, bits, channels):
        a = (picture((24, 36), dtype) >> (np.dtype(dtype).itemsize * 8 - bits)).astype(dtype)
        a = a if channels == 1 else np.dstack([a, a[::-1], a[:, ::-1]])
        save_picture(Path(f"a.{ending}"), a)
        save_picture(Path("b.png"), np.zeros((24, 36), np.uint8))
        assert fuse(f"a.{ending}", "b.png", f"out.{ending}", "--method", "max")[0] == 0
        out = load_picture(Path(f"out.{ending}"))
        assert out.dtype == dtype
        np.testing.assert_array_equal(out, a)  # the brighter of it and black, colours and all

    def test_floats_stay_floats(self, fuse):
        a = picture(dtype=np.float32) * 5 - 2
        save_picture(Path("a.tif"), a)
        save_picture(Path("b.tif"), np.full((24, 36), -2, np.float32))
        assert fuse("a.tif", "b.tif", "out.tif", "--method", "max")[0] == 0
        out = load_picture(Path("out.tif"))
        assert out.dtype == np.float32
        np.testing.assert_allclose(out, a, atol=1e-5)
        code, told = fuse("a.tif", "b.tif", "out.png", "--method", "max")
        assert code == 2
        assert "PNG cannot hold float32" in told

    def test_colour_of_the_second_with_the_luminance_of_both(self, fuse):
        mri, pet = picture(), colours()
        save_picture(Path("mri.png"), mri)
        save_picture(Path("pet.png"), pet)
        assert fuse("mri.png", "pet.png", "out.png", "--method", "average")[0] == 0
        out = unit(load_picture(Path("out.png")))
        expected = (unit(mri) + luminance(unit(pet))) / 2
        np.testing.assert_allclose(luminance(out), expected, atol=1 / 255)
        has_room = ((out > 2 / 255) & (out < 253 / 255)).all(-1)
        assert has_room.mean() > 0.5
        np.testing.assert_allclose(chroma(out)[has_room], chroma(unit(pet))[has_room], atol=1.5 / 255)

    def test_whose_colour_and_whose_bits(self, fuse):
        save_picture(Path("mri.png"), picture(dtype=np.uint16))
        save_picture(Path("pet.png"), colours())
        for name, words, shape, dtype in [
            ("1.png", (), (24, 36, 3), np.uint8),
            ("2.png", ("--like", "a"), (24, 36, 3), np.uint16),
            ("3.png", ("--colour", "none"), (24, 36), np.uint16),
            ("4.png", ("--colour", "none", "--like", "b"), (24, 36), np.uint8),
        ]:
            assert fuse("mri.png", "pet.png", name, "--method", "max", *words)[0] == 0
            assert (load_picture(Path(name)).shape, load_picture(Path(name)).dtype) == (shape, dtype)
        code, told = fuse("mri.png", "pet.png", "5.png", "--method", "max", "--colour", "a")
        assert code == 2
        assert "--colour is a, but an image that it names is gray" in told

    def test_two_colours_mix(self, fuse):
        a, b = colours(), colours()[::-1]
        save_picture(Path("a.png"), a)
        save_picture(Path("b.png"), b)
        save_picture(Path("gray.png"), np.repeat(picture()[..., None], 3, 2))
        for other, expected in [("a.png", a), ("gray.png", None)]:
            assert fuse("a.png", other, "out.png", "--method", "average", "--overwrite")[0] == 0
            out = load_picture(Path("out.png"))
            if expected is not None:
                np.testing.assert_allclose(out, expected, atol=1)
        has_room = ((out > 2) & (out < 253)).all(-1)
        np.testing.assert_allclose(chroma(unit(out))[has_room], chroma(unit(a))[has_room], atol=1.5 / 255)
        assert fuse("a.png", "b.png", "out.png", "--method", "average", "--colour", "b", "--overwrite")[0] == 0
        out = load_picture(Path("out.png"))
        has_room = ((out > 2) & (out < 253)).all(-1)
        np.testing.assert_allclose(chroma(unit(out))[has_room], chroma(unit(b))[has_room], atol=1.5 / 255)

    def test_gray_in_a_colour_map(self, fuse):
        save_picture(Path("mri.png"), picture())
        save_picture(Path("pet.png"), picture(seed=3))
        assert fuse("mri.png", "pet.png", "out.png", "--method", "average", "--colormap_b", "hot")[0] == 0
        out = load_picture(Path("out.png"))
        assert out.shape == (24, 36, 3)
        assert (out[..., 0] >= out[..., 2]).all()  # "hot" is red before it is blue
        code, told = fuse("mri.png", "pet.png", "x.png", "--method", "average", "--colormap_b", "heiss")
        assert code == 2
        assert "colour map 'heiss' is unknown" in told

    def test_alpha_of_the_picture_that_decides_stays(self, fuse):
        alpha = picture(seed=9)
        save_picture(Path("a.png"), np.dstack([colours(), alpha]))
        save_picture(Path("b.png"), picture())
        assert fuse("a.png", "b.png", "out.png", "--method", "max")[0] == 0
        out = load_picture(Path("out.png"))
        assert out.shape == (24, 36, 4)
        np.testing.assert_array_equal(out[..., 3], alpha)

    @pytest.mark.parametrize("method", CLASSICAL)
    @pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 1)])
    def test_single_pixels_and_lines_of_constant_value(self, fuse, method, shape):
        save_picture(Path("a.png"), np.full(shape, 40, np.uint8))
        save_picture(Path("b.png"), np.full(shape, 80, np.uint8))
        assert fuse("a.png", "b.png", "out.png", "--method", method, "--metrics", "m.json")[0] == 0
        expected = 80 if method == "max" else 60
        np.testing.assert_array_equal(load_picture(Path("out.png")), np.full(shape, expected))

    def test_published_postprocessing_stretches_and_truncates(self, fuse):
        a, b = picture() // 2 + 20, picture(seed=1) // 2 + 20
        save_picture(Path("a.png"), a)
        save_picture(Path("b.png"), b)
        assert fuse("a.png", "b.png", "out.png", "--method", "average", "--postprocess", "official")[0] == 0
        mean = (unit(a).astype(np.float32) + unit(b).astype(np.float32)) / 2
        expected = (255 * ((mean - mean.min()) / np.ptp(mean))).astype(np.uint8)
        assert expected.max() == 255
        assert np.mean(load_picture(Path("out.png")) != expected) < 0.01  # float32 rounds on the way

    def test_windows(self, fuse):
        save_picture(Path("a.png"), np.array([[0, 50, 100, 200]], np.uint8))
        save_picture(Path("b.png"), np.zeros((1, 4), np.uint8))
        assert fuse("a.png", "b.png", "out.png", "--method", "max", "--window_a", "[50,150]")[0] == 0
        np.testing.assert_array_equal(load_picture(Path("out.png")), [[50, 50, 100, 150]])
        code, told = fuse("a.png", "b.png", "x.png", "--method", "max", "--window_a", "[9,9]")
        assert code == 2
        assert "window 9 to 9 is empty" in told


class TestNetwork:
    @pytest.fixture
    def weights(self, tmp_path):
        save_file(small().state_dict(), tmp_path / "w.safetensors")
        return tmp_path / "w.safetensors"

    @pytest.mark.parametrize("shape", [(40, 53), (1, 1), (3, 200)])
    def test_any_size(self, fuse, weights, shape):
        rng = np.random.default_rng(0)
        for name in "ab":
            save_picture(Path(f"{name}.png"), rng.integers(0, 256, shape, dtype=np.uint8))
        assert fuse("a.png", "b.png", "out.png", "--weights", weights, "--device", "cpu")[0] == 0
        assert load_picture(Path("out.png")).shape == shape
        words = ("--weights", weights, "--device", "cpu", "--tile", 64, "--overwrite")
        assert fuse("a.png", "b.png", "out.png", *words)[0] == 0

    def test_the_weights_that_ship_need_no_option(self, fuse):
        a, b = picture((40, 53)), picture((40, 53), seed=1)
        save_picture(Path("a.png"), a)
        save_picture(Path("b.png"), b)
        assert fuse("a.png", "b.png", "out.png", "--device", "cpu", "--metrics", "m.json") == (0, "[1/1] out.png\n")
        out = load_picture(Path("out.png"))
        assert (np.minimum(a, b).astype(int) - 1 <= out).all()
        assert (out <= np.maximum(a, b).astype(int) + 1).all()
        assert np.std(out) > 0.5 * min(np.std(a), np.std(b))
        assert json.loads(Path("m.json").read_text())["settings"]["weights"] == "shipped"

    def test_volume_is_fused_slice_by_slice_within_one_window(self, fuse, weights, monkeypatch):
        monkeypatch.setattr("ssmvision.recipes.fusion.fuse_network._PIXELS_AT_ONCE", 800)
        save_volume(Path("a.nii.gz"), head())
        save_volume(Path("b.nii.gz"), head(seed=1, low=0, high=5))
        words = ("--weights", weights, "--device", "cpu")
        assert fuse("a.nii.gz", "b.nii.gz", "out.nii.gz", *words) == (0, "[1/1] out.nii.gz\n")
        out = nibabel.load("out.nii.gz")
        assert out.shape == (18, 20, 9)
        assert out.get_data_dtype() == np.int16
        assert out.dataobj[:].min() >= -300
        assert out.dataobj[:].max() <= 900

    def test_errors_before_anything_is_written(self, fuse, weights, tmp_path):
        save_picture(Path("a.png"), picture())
        for words, message in [
            (("--weights", "none.safetensors"), "none.safetensors: no such file"),
            (("--method", "max", "--weights", weights), "--weights has no use with --method max"),
            (("--weights", weights, "--device", "gpu7"), "device 'gpu7' cannot be used"),
            (("--weights", weights, "--tile", 5), "--tile is 5"),
            (("--method", "median"), "median"),
            (("--method", "max", "--threads", 0), "--threads is 0; give 1 or more"),
        ]:
            code, told = fuse("a.png", "a.png", "out.png", *words)
            assert code == 2
            assert message in told
            assert told.count("\n") == 1
        assert not Path("out.png").exists()


class TestVolumes:
    def test_geometry_header_and_type_stay(self, fuse):
        save_volume(Path("ct.nii.gz"), head(), descrip=b"CT 7", cal_max=300)
        save_volume(Path("mr.nii.gz"), texture((18, 20, 9), 3).astype(np.float32))
        assert fuse("ct.nii.gz", "mr.nii.gz", "out.nii.gz", "--method", "laplacian")[0] == 0
        before, after = nibabel.load("ct.nii.gz"), nibabel.load("out.nii.gz")
        for field in before.header:
            np.testing.assert_array_equal(after.header[field], before.header[field], err_msg=field)
        assert np.asanyarray(after.dataobj).dtype == np.int16
        assert fuse("ct.nii.gz", "mr.nii.gz", "like_b.nii.gz", "--method", "laplacian", "--like", "b")[0] == 0
        other = nibabel.load("like_b.nii.gz")
        assert other.get_data_dtype() == np.float32
        np.testing.assert_array_equal(other.affine, before.affine)
        assert 0 <= other.get_fdata().min() <= other.get_fdata().max() <= 1

    def test_slices_share_one_window(self, fuse):
        ramp = np.tile(np.arange(9, dtype=np.int16) * 100, (18, 20, 1))
        save_volume(Path("a.nii.gz"), ramp)
        save_volume(Path("b.nii.gz"), np.zeros_like(ramp))
        assert fuse("a.nii.gz", "b.nii.gz", "out.nii.gz", "--method", "max")[0] == 0
        # Slices are constant: with a window each they would all be black.
        np.testing.assert_array_equal(np.asanyarray(nibabel.load("out.nii.gz").dataobj), ramp)

    @pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
    def test_the_slicing_direction_counts(self, fuse, axis):
        values = head(), head(seed=1)
        for name, volume in zip("ab", values, strict=True):
            save_volume(Path(f"{name}.nii"), volume)
        assert fuse("a.nii", "b.nii", "out.nii", "--method", "laplacian", "--axis", axis)[0] == 0
        a, b = (
            as_slices(((x - x.min()) / np.ptp(x)).astype(np.float32), OBLIQUE, axis) for x in map(np.float64, values)
        )
        fused = np.stack([classical.laplacian_pyramid(*pair) for pair in zip(a, b, strict=True)])
        out = as_slices(nibabel.load("out.nii").get_fdata(), OBLIQUE, axis)
        np.testing.assert_allclose(out, np.rint(-300 + fused * 1200), atol=1)

    def test_colour_map_gives_rgb24(self, fuse):
        save_volume(Path("mr.nii.gz"), head())
        save_volume(Path("pet.nii.gz"), head(seed=2).astype(np.float32))
        words = ("--method", "average", "--colormap_b", "hot", "--metrics", "m.json")
        assert fuse("mr.nii.gz", "pet.nii.gz", "out.nii.gz", *words)[0] == 0
        image = nibabel.load("out.nii.gz")
        assert image.get_data_dtype() == RGB24
        np.testing.assert_array_equal(image.affine, nibabel.load("mr.nii.gz").affine)
        # And goes in again: fused with itself it stays.
        assert fuse("out.nii.gz", "out.nii.gz", "again.nii.gz", "--method", "average")[0] == 0
        again = np.asanyarray(nibabel.load("again.nii.gz").dataobj)
        for name in "RGB":
            np.testing.assert_allclose(again[name].astype(int), np.asanyarray(image.dataobj)[name], atol=1)

    @pytest.mark.parametrize(
        ("values", "affine", "message"),
        [
            (head((18, 20, 8)), OBLIQUE, "shape (18, 20, 8) differs from (18, 20, 9)"),
            (head(), OBLIQUE @ np.array([[1, 0, 0, 0.5], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "a corner lies"),
        ],
    )
    def test_other_grids_need_resample(self, fuse, values, affine, message):
        save_volume(Path("a.nii.gz"), head())
        save_volume(Path("b.nii.gz"), values, affine)
        code, told = fuse("a.nii.gz", "b.nii.gz", "out.nii.gz", "--method", "max")
        assert code == 2
        assert message in told
        assert "--resample" in told
        assert not Path("out.nii.gz").exists()
        assert fuse("a.nii.gz", "b.nii.gz", "out.nii.gz", "--method", "max", "--resample")[0] == 0
        np.testing.assert_array_equal(nibabel.load("out.nii.gz").affine, nibabel.load("a.nii.gz").affine)

    def test_constant_and_tiny(self, fuse):
        save_volume(Path("a.nii.gz"), np.full((1, 1, 1), 5, np.int16))
        save_volume(Path("b.nii.gz"), np.full((1, 1, 1), 0.25, np.float32))
        assert fuse("a.nii.gz", "b.nii.gz", "out.nii.gz", "--method", "guided", "--metrics", "m.csv")[0] == 0
        assert np.asanyarray(nibabel.load("out.nii.gz").dataobj).tolist() == [[[5]]]

    def test_dicom_series_become_nifti(self, fuse):
        save_series(Path("ct"), head((7, 6, 5)))
        save_series(Path("pet"), head((7, 6, 5), seed=1))
        assert fuse("ct", "pet", "out.nii.gz", "--method", "max")[0] == 0
        out = nibabel.load("out.nii.gz")
        np.testing.assert_array_equal(np.asanyarray(out.dataobj), np.maximum(head((7, 6, 5)), head((7, 6, 5), seed=1)))
        assert out.header["sform_code"] == 1


class TestBatches:
    def test_pairs_by_name_and_one_bad_pair_does_not_stop_the_others(self, fuse):
        for i, name in enumerate(["one", "three", "two"]):
            save_picture(Path("ir") / f"{name}.png", picture(seed=i))
            save_picture(Path("vis") / f"{name}.tif", colours())
        save_picture(Path("vis/three.tif"), colours((5, 5)))
        save_picture(Path("ir/lonely.png"), picture())
        Path("vis/notes.txt").write_text("not an image")
        code, told = fuse("ir", "vis", "out", "--method", "max", "--metrics", "m.json")
        assert code == 2
        assert sorted(path.name for path in Path("out").iterdir()) == ["one.png", "two.png"]
        assert "2 of 3 pair(s) fused; 2 problem(s)" in told
        assert "lonely.png: no partner in vis" in told
        assert "three.tif: is 5x5 pixels, but ir/three.png is 36x24" in told
        report = json.loads(Path("m.json").read_text())
        assert [row["pair"] for row in report["pairs"]] == ["one", "two"]
        assert len(report["failed"]) == 2
        np.testing.assert_allclose(load_picture(Path("out/one.png")).shape, (24, 36, 3))

    def test_all_well_is_exit_code_0(self, fuse):
        for name in ("1.nii.gz", "2.nii"):
            save_volume(Path("a") / name, head())
            save_volume(Path("b") / name.replace(".nii.gz", ".nii"), head(seed=1))
        assert fuse("a", "b", "out", "--method", "average")[0] == 0
        assert sorted(path.name for path in Path("out").iterdir()) == ["1.nii.gz", "2.nii"]

    def test_folders_of_dicom_series(self, fuse):
        for name in ("anna", "bert"):
            save_series(Path("ct") / name, head((7, 6, 5)))
            save_volume(Path("mr") / f"{name}.nii.gz", head((7, 6, 5)))
        code, told = fuse("ct", "mr", "out", "--method", "max", "--resample")
        assert code == 2  # another place altogether
        assert told.count("nothing of it lies within") == 4  # as it goes, and in the list at the end

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("empty", "pictures", "out"), "empty: 0 images found"),
            (("pictures", "others", "out"), "no name is both in pictures (a.png) and in others (b.png)"),
            (("pictures", "a.png", "out"), "pictures is a folder of images and a.png is one image"),
            (("none", "pictures", "out"), "none: no such file or folder"),
            (("pictures", "twins", "out"), "a.png and a.tif have one name"),
            (("pictures", "pictures", "out.png"), "out.png: a file cannot take the results of folders"),
            (("pictures", "pictures", "pictures"), "pictures: is an input folder"),
            (("a.png", "v.nii.gz", "out.png"), "v.nii.gz is a volume and a.png a picture"),
            (("a.png", "a.png", "a.png"), "a.png: the output is the input itself"),
            (("a.png", "a.png", "taken.png"), "taken.png: exists already"),
            (("a.png", "a.png", "out.jpg"), "out.jpg: the ending '.jpg' is not written"),
            (("v.nii.gz", "v.nii.gz", "out.png"), "out.png: a volume needs a NIfTI name"),
            (("notes.txt", "v.nii.gz", "out.nii"), "notes.txt: is neither DICOM nor ends in"),
            (("a.png", "a.png", "out.png", "--metrics", "m.xls"), "m.xls: metrics are written as a table"),
            (("a.png", "a.png", "out.png", "--metrics", "taken.csv"), "taken.csv: exists already"),
        ],
    )
    def test_what_cannot_be_done_is_one_line_and_leaves_no_file(self, fuse, words, message):
        save_picture(Path("a.png"), picture())
        save_picture(Path("taken.png"), picture())
        save_picture(Path("pictures/a.png"), picture())
        save_picture(Path("others/b.png"), picture())
        save_picture(Path("twins/a.png"), picture())
        save_picture(Path("twins/a.tif"), picture())
        save_volume(Path("v.nii.gz"), head())
        Path("notes.txt").write_text("no")
        Path("taken.csv").write_text("mine")
        Path("empty").mkdir()
        before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
        code, told = fuse(*words, "--method", "max")
        assert code == 2
        assert message in told
        assert told.count("\n") == 1
        assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before

    def test_a_disk_that_fails_is_told_and_the_rest_goes_on(self, fuse, monkeypatch):
        for name in ("1.png", "2.png"):
            save_picture(Path("a") / name, picture())
        read = Path.read_bytes

        def failing(path: Path) -> bytes:
            if path == Path("a/1.png"):
                raise OSError(5, "Input/output error")
            return read(path)

        monkeypatch.setattr(Path, "read_bytes", failing)
        code, told = fuse("a", "a", "out", "--method", "max")
        assert code == 2
        assert "a/1.png: cannot be read (Input/output error)" in told
        assert [path.name for path in Path("out").iterdir()] == ["2.png"]

    def test_overwrite_replaces(self, fuse):
        save_picture(Path("a.png"), picture())
        save_picture(Path("out.png"), picture(seed=1))
        assert fuse("a.png", "a.png", "out.png", "--method", "max", "--overwrite")[0] == 0
        np.testing.assert_array_equal(load_picture(Path("out.png")), picture())

    def test_output_folder_takes_the_name_of_the_first(self, fuse):
        save_picture(Path("x.jpg"), colours())
        save_picture(Path("y.png"), picture())
        assert fuse("x.jpg", "y.png", "new", "--method", "max")[0] == 0
        assert [path.name for path in Path("new").iterdir()] == ["x.png"]


class TestMetrics:
    def test_csv_and_json_agree_with_the_library_on_what_was_written(self, fuse):
        a, b = picture((50, 60)), picture((50, 60), seed=1)
        save_picture(Path("a.png"), a)
        save_picture(Path("b.png"), b)
        assert fuse("a.png", "b.png", "out.png", "--method", "wavelet", "--metrics", "m.csv")[0] == 0
        assert fuse("a.png", "b.png", "2.png", "--method", "wavelet", "--metrics", "m.json")[0] == 0
        (row,) = csv.DictReader(Path("m.csv").read_text().splitlines())
        report = json.loads(Path("m.json").read_text())
        values = report["pairs"][0]["metrics"]
        assert list(values) == list(report["conventions"]) == list(METRICS)
        assert report["settings"]["method"] == row["method"] == "wavelet"
        assert values["MS-SSIM"] is None  # too small for it
        assert row["MS-SSIM"] == ""
        images = [torch.from_numpy(x) for x in (a, b, load_picture(Path("out.png")))]
        assert values["Qabf"] == pytest.approx(float(qabf(*images)), abs=1e-4)
        assert float(row["SF"]) == pytest.approx(float(spatial_frequency(images[2])), rel=1e-4)

    def test_volumes_are_means_over_the_slices_with_content(self, fuse):
        values = head()
        values[..., :4] = values.min()
        save_volume(Path("a.nii.gz"), values)
        save_volume(Path("b.nii.gz"), head(seed=1))
        assert fuse("a.nii.gz", "b.nii.gz", "out.nii.gz", "--method", "max", "--metrics", "m.csv")[0] == 0
        (row,) = csv.DictReader(Path("m.csv").read_text().splitlines())
        assert row["slices"] == "5"
        assert float(row["EN"]) > 4
