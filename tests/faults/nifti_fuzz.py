"""Hostile NIfTI headers, an independent reading of them, and a worker that reads them in bounded memory and time.

    python -m tests.faults.nifti_fuzz FOLDER FIRST COUNT

prints one JSON line per case: its seed, and what became of it (see `Verdict`).
"""

from __future__ import annotations

import gzip
import json
import math
import resource
import signal
import struct
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np
from numpy.typing import NDArray

from ssmvision.errors import UserError
from ssmvision.recipes.segmentation.volumes import read_array, read_image
from ssmvision.recipes.segmentation.writing import write_label_map

Verdict = Literal["refused", "read", "flagged", "wrong", "crash"]

SHAPE = (10, 12, 8)
HEADROOM_BYTES = 256 * 2**20
SECONDS = 5
AFFINE = np.array([[-1.0, 0.2, 0, 5], [0.1, 1.5, 0, -7], [0, 0.3, 2, 3], [0, 0, 0, 1]])
# Field: offset and struct format, by version; from the standards' tables (nifti1.h, nifti2.h).
FIELDS: dict[int, dict[str, tuple[int, str]]] = {
    1: {
        "sizeof_hdr": (0, "i"),
        **{f"dim{i}": (40 + 2 * i, "h") for i in range(8)},
        "datatype": (70, "h"),
        "bitpix": (72, "h"),
        **{f"pixdim{i}": (76 + 4 * i, "f") for i in range(8)},
        "vox_offset": (108, "f"),
        "scl_slope": (112, "f"),
        "scl_inter": (116, "f"),
        "xyzt_units": (123, "B"),
        "qform_code": (252, "h"),
        "sform_code": (254, "h"),
        **{f"quatern{i}": (256 + 4 * i, "f") for i in range(3)},
        **{f"qoffset{i}": (268 + 4 * i, "f") for i in range(3)},
        **{f"srow{i}": (280 + 4 * i, "f") for i in range(12)},
        "magic": (344, "4s"),
        "extension": (348, "4s"),
        "esize": (352, "i"),
    },
    2: {
        "sizeof_hdr": (0, "i"),
        "magic": (4, "8s"),
        "datatype": (12, "h"),
        "bitpix": (14, "h"),
        **{f"dim{i}": (16 + 8 * i, "q") for i in range(8)},
        **{f"pixdim{i}": (104 + 8 * i, "d") for i in range(8)},
        "vox_offset": (168, "q"),
        "scl_slope": (176, "d"),
        "scl_inter": (184, "d"),
        "qform_code": (344, "i"),
        "sform_code": (348, "i"),
        **{f"quatern{i}": (352 + 8 * i, "d") for i in range(3)},
        **{f"qoffset{i}": (376 + 8 * i, "d") for i in range(3)},
        **{f"srow{i}": (400 + 8 * i, "d") for i in range(12)},
        "xyzt_units": (500, "i"),
        "extension": (540, "4s"),
        "esize": (544, "i"),
    },
}
TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
FLOATS = (math.nan, math.inf, -math.inf, 0.0, -1.0, -0.0, 1e-30, 1e30, -1e30, 3e38, 2.0, 0.5)
INTEGERS = {
    "B": (0, 1, 2, 3, 4, 7, 10, 200, 255),
    "h": (-32768, -1, 0, 1, 2, 3, 4, 5, 7, 8, 9, 11, 16, 128, 512, 1536, 1792, 2048, 2304, 30000, 32767),
    "i": (-(2**31), -1, 0, 1, 4, 8, 16, 17, 99, 348, 540, 2**30, 2**31 - 1),
    "q": (-(2**63), -1, 0, 1, 2, 7, 9, 11, 544, 560, 2**31, 2**40, 2**62, 2**63 - 1),
}
MAGICS = (b"n+1\0", b"ni1\0", b"n+2\0", b"ni2\0", b"n+9\0", b"\0\0\0\0", b"GIF8", b"n+1\n")


@dataclass(frozen=True)
class Case:
    """A file with a hostile header.

    Args:
        name: of the file.
        content: its bytes, not compressed.
        sound: the bytes before the header was changed.
        version: 1 or 2.
        order: "<" or ">".
    """

    name: str
    content: bytes
    sound: bytes
    version: int
    order: str

    @property
    def compressed(self) -> bool:
        """Whether the file is stored with gzip."""
        return self.name.endswith(".gz")


def make_case(seed: int) -> Case:
    """The case of a seed: a sound file, then one to three hostile fields, or a few random bytes of the header."""
    rng = np.random.default_rng(seed)
    version, order = int(rng.integers(1, 3)), str(rng.choice(["<", ">"]))
    kind = nibabel.Nifti1Image if version == 1 else nibabel.Nifti2Image
    shape = SHAPE if rng.random() < 0.8 else (*SHAPE, 2)
    voxels = rng.integers(0, 200, shape).astype(str(rng.choice(["u1", "i2", "f4"])))
    image = kind(voxels, AFFINE)
    image = kind(voxels, None, image.header.as_byteswapped(order))
    image.set_sform(AFFINE, code=int(rng.integers(0, 3)))
    image.set_qform(AFFINE, code=int(rng.integers(0, 2)), strip_shears=True)
    image.header.set_xyzt_units("mm")
    sound = bytearray(image.to_bytes())
    content = bytearray(sound)
    names = list(FIELDS[version])
    if rng.random() < 0.85:
        for name in rng.choice(names, int(rng.integers(1, 4)), replace=False):
            _damage(content, rng, version, order, str(name))
    else:
        for _ in range(int(rng.integers(1, 5))):
            content[rng.integers(FIELDS[version]["esize"][0])] = rng.integers(256)
    ending = str(rng.choice([".nii", ".nii.gz"]))
    return Case(f"case_{seed}{ending}", bytes(content), bytes(sound), version, order)


def _damage(content: bytearray, rng: np.random.Generator, version: int, order: str, name: str) -> None:
    offset, code = FIELDS[version][name]
    if code in ("f", "d"):
        value: Any = FLOATS[rng.integers(len(FLOATS))]
        if name == "vox_offset":
            value = (*FLOATS, 16.0, 348.0, 353.0, 368.0, 1e9)[rng.integers(len(FLOATS) + 5)]
    elif code.endswith("s"):
        value = MAGICS[rng.integers(len(MAGICS))] if name == "magic" else bytes([rng.integers(1, 256), 0, 0, 0])
    else:
        value = INTEGERS[code][rng.integers(len(INTEGERS[code]))]
    if name == "esize":  # the length of an extension counts where one is announced
        flag = FIELDS[version]["extension"][0]
        content[flag] = 1
    struct.pack_into(order + code, content, offset, value)


def meaning(content: bytes, version: int, order: str) -> tuple[NDArray[Any], NDArray[np.float64] | None] | None:
    """Voxels and, where a sform or qform gives it, the affine that the standard reads out of a file; None: nothing."""

    def field(name: str) -> Any:
        offset, code = FIELDS[version][name]
        return struct.unpack_from(order + code, content, offset)[0]

    axes = field("dim0")
    if not 2 <= axes <= 4 or field("datatype") not in TYPES:
        return None
    shape = [field(f"dim{i}") for i in range(1, axes + 1)]
    offset = field("vox_offset")
    if min(shape) < 1 or not math.isfinite(offset) or offset < 0:
        return None
    first = int(offset) or FIELDS[version]["esize"][0]
    dtype, count = np.dtype(order + TYPES[field("datatype")]), math.prod(shape)
    if first + count * dtype.itemsize > len(content):
        return None
    voxels = np.frombuffer(content, dtype, count, first).reshape(shape, order="F")
    slope, inter = field("scl_slope"), field("scl_inter")
    if math.isfinite(slope) and slope != 0:
        with np.errstate(all="ignore"):
            voxels = voxels * np.float64(slope) + np.float64(inter)
    return voxels, _affine(field)


def _affine(field: Any) -> NDArray[np.float64] | None:
    if field("sform_code") > 0:
        rows = np.array([field(f"srow{i}") for i in range(12)], np.float64).reshape(3, 4)
        return np.vstack([rows, [0, 0, 0, 1]])
    if field("qform_code") <= 0:
        return None
    b, c, d = (field(f"quatern{i}") for i in range(3))
    a = math.sqrt(max(0.0, 1 - b * b - c * c - d * d))
    turn = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    edges = np.array([field(f"pixdim{i}") for i in (1, 2, 3)])
    edges[2] *= -1 if field("pixdim0") < 0 else 1
    result = np.eye(4)
    result[:3, :3] = turn * edges
    result[:3, 3] = [field(f"qoffset{i}") for i in range(3)]
    return result


def judge(case: Case, folder: Path) -> tuple[Verdict, str]:
    """Reads a case as prediction and training do, writes a label map on its grid, and compares."""
    path = folder / case.name
    path.write_bytes(gzip.compress(case.content, 1) if case.compressed else case.content)
    try:
        with warnings.catch_warnings(record=True) as told, np.errstate(all="ignore"):
            warnings.simplefilter("always")
            voxels, grid = read_array(path)
            told_of_file = [str(w.message) for w in told if str(path) in str(w.message)]
            written = folder / f"labels_{case.name}"
            if np.isfinite(voxels).all():
                read_image([path])
            write_label_map(written, np.ones(grid.shape, np.uint8), grid, overwrite=True)
            written.unlink()
    except UserError as error:
        return ("refused", "") if str(path) in str(error) else ("wrong", f"does not name the file: {error}")
    except Exception as error:
        return "crash", f"{type(error).__name__}: {error}"
    finally:
        path.unlink()
    unit = {1: 1e3, 3: 1e-3}.get(case.content[FIELDS[case.version]["xyzt_units"][0]] & 7, 1.0)
    if case.version == 2:
        unit = {1: 1e3, 3: 1e-3}.get(struct.unpack_from(f"{case.order}i", case.content, 500)[0] & 7, 1.0)
    # A damaged field that means nothing leaves the sound file's meaning.
    for content in (case.content, case.sound):
        if _agrees(meaning(content, case.version, case.order), voxels, grid.affine, unit):
            return ("flagged", told_of_file[0]) if told_of_file else ("read", "")
    return ("flagged", told_of_file[0]) if told_of_file else ("wrong", f"shape {voxels.shape}, {grid.affine.tolist()}")


def _agrees(
    expected: tuple[NDArray[Any], NDArray[np.float64] | None] | None,
    voxels: NDArray[Any],
    affine: NDArray[np.float64],
    unit: float,
) -> bool:
    if expected is None:
        return False
    data, own = expected
    if data.size != voxels.size or not np.allclose(data.reshape(voxels.shape), voxels, rtol=1e-5, equal_nan=True):
        return False
    return own is None or np.allclose(np.diag([unit, unit, unit, 1]) @ own, affine, rtol=1e-4, atol=1e-4)


def main(folder: Path, first: int, count: int) -> None:
    """Judges cases one after another; a hang ends the process by SIGALRM, a greedy one meets the limit of memory."""
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + HEADROOM_BYTES, resource.RLIM_INFINITY))
    for seed in range(first, first + count):
        print(json.dumps({"seed": seed}), flush=True)
        signal.alarm(SECONDS)
        verdict, detail = judge(make_case(seed), folder)
        signal.alarm(0)
        print(json.dumps({"seed": seed, "verdict": verdict, "detail": detail}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
