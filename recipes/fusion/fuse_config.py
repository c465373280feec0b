"""Settings of `ssmvision fuse`: standard library only, so that a command line can read them at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["FuseConfig", "Method"]

Method = Literal["fusionmamba", "average", "max", "laplacian", "wavelet", "guided"]


@dataclass(frozen=True)
class FuseConfig:
    """Fuse two registered images, volumes or folders of them; the result lies on the grid of the first.

    Args:
        a: first image: PNG, TIFF, JPEG, BMP, NIfTI, a folder with a DICOM series, or a folder of any of these. For
            published weights it is the MRI or the visible image.
        b: second image, or a folder whose files have the names of those in `a`, endings aside. For published weights
            it is CT, PET, SPECT or the infrared image.
        out: file (.png, .tif, .nii.gz) or, for folders, a folder; has the size of `a`, and a volume its geometry and
            header.
        method: the trained network, or a classical method to compare it with.
        weights: run folder or .safetensors of a training, or a published FusionMamba checkpoint; null takes the weights
            that ship with the package.
        device: where the network runs; "auto" takes the first GPU if there is one.
        threads: CPU threads of torch; null is torch's own choice.
        overwrite: replace existing outputs; inputs are never written.
        resample: bring `b` onto the grid of `a` where they differ, by linear interpolation; nothing is registered.
        colour: whose colours the result has; "auto" takes those of every coloured image, "both" mixes them, "none"
            gives gray.
        like: whose type of numbers and range the result has; "auto" is the only coloured one, else `a`.
        window_a: stored values of `a` for black and white, such as '[-100,300]' of a CT; null is 0 to 255,
            4095, 16383 or 65535 for pictures of 8, 12, 14 and 16 bits, and the smallest and largest value of a volume.
        window_b: the same for `b`.
        colormap_a: matplotlib colour map that shows gray `a` in colour, such as "hot"; null leaves it gray.
        colormap_b: the same for `b`.
        axis: volumes are fused slice by slice across this direction; "auto" is that of the thickest voxel edge, axial
            where none stands out.
        postprocess: "clamp" keeps the network's brightness; "official" stretches each picture or volume to its full
            range and cuts fractions off, as the published test code does.
        tile: side in pixels of the parts that larger images go through the network in; 0 never parts them.
        metrics: .csv or .json file for all fusion metrics of every pair's luminance; null measures nothing.
    """

    a: Path
    b: Path
    out: Path
    method: Method = "fusionmamba"
    weights: Path | None = None
    device: str = "auto"
    threads: int | None = None
    overwrite: bool = False
    resample: bool = False
    colour: Literal["auto", "a", "b", "both", "none"] = "auto"
    like: Literal["auto", "a", "b"] = "auto"
    window_a: tuple[float, float] | None = None
    window_b: tuple[float, float] | None = None
    colormap_a: str | None = None
    colormap_b: str | None = None
    axis: Literal["auto", "axial", "coronal", "sagittal"] = "auto"
    postprocess: Literal["clamp", "official"] = "clamp"
    tile: int = 1024
    metrics: Path | None = None
