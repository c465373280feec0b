"""`ssmvision export` to ONNX files and programs: from runs and folders of every kind, and what it refuses."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from ssmvision.cli import main
from ssmvision.export import load_program
from ssmvision.hub import save_pretrained
from ssmvision.models import UMambaBot
from ssmvision.recipes.classification import networks
from ssmvision.recipes.classification.config import ClassifyTrainConfig, DataConfig, ModelConfig
from ssmvision.recipes.classification.data import Scale
from ssmvision.recipes.classification.run_folder import FOLDER
from ssmvision.recipes.export.config import ExportConfig
from ssmvision.recipes.export.sources import open_source
from ssmvision.recipes.fusion.config import ModelConfig as FusionModel
from ssmvision.recipes.fusion.network import build_network
from ssmvision.recipes.fusion.weights import FusionCard
from ssmvision.recipes.fusion.weights import save_model as save_fusion

pytestmark = pytest.mark.usefixtures("one_thread")
VIM = {"patch_size": 7, "embed_dim": 16, "depth": 1}


def write_pictures(path: Path) -> Path:
    """A MedMNIST file of 28 x 28 pictures of ten classes, a bright bar in ten places."""
    rng = np.random.default_rng(0)
    content = {}
    for part, count in (("train", 40), ("val", 40), ("test", 40)):
        labels = np.arange(count) % 10
        images = rng.integers(0, 60, (count, 28, 28))
        for image, label in zip(images, labels, strict=True):
            image[2 * label + 4 :][:4] += 150
        content |= {f"{part}_images": images.astype(np.uint8), f"{part}_labels": labels[:, None].astype(np.uint8)}
    np.savez(path, **content)
    return path


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of an untrained classifier of ten classes."""
    folder = tmp_path_factory.mktemp("runs")
    run, data = folder / "digits", write_pictures(folder / "bars.npz")
    torch.manual_seed(0)
    model = ModelConfig("vim_tiny", dict(VIM))
    scale = Scale((28, 28), (0.13,), (0.31,))
    network, spec = networks.build(model, tuple("0123456789"), scale)
    networks.save_model(run / networks.MODEL, network, spec, {})
    FOLDER.keep_settings(ClassifyTrainConfig(DataConfig(str(data)), run, model))
    return run


@pytest.mark.parametrize("ending", ["onnx", "pt2"])
def test_classifier_is_compared_on_the_pictures_that_its_run_held_out(
    digits: Path, ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / f"digits.{ending}"
    assert main(["export", str(digits), str(out)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"on 32 \w+ pictures of the run and random values: ", said)
    assert re.search(r"greatest difference \d\.\de(-0[5-9]|\+00)", said)
    assert "largest class the same in 100.00%" in said
    assert f"{out}: {out.stat().st_size / 1e6:.1f} MB" in said
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    assert main(["export", str(digits), str(out)]) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_program_runs_in_a_process_that_knows_no_model(digits: Path, tmp_path: Path) -> None:
    out, result = tmp_path / "digits.pt2", tmp_path / "result.npy"
    assert main(["export", str(digits), str(out)]) == 0
    code = "import sys, numpy, torch, ssmvision; program = ssmvision.export.load_program(sys.argv[1]); "
    code += "x = torch.linspace(-1, 1, 5 * 28 * 28).reshape(5, 1, 28, 28); "
    code += "numpy.save(sys.argv[2], program(x).detach().numpy())"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(out), str(result)], check=True)
    network = networks.open_model(digits).network
    x = torch.linspace(-1, 1, 5 * 28 * 28).reshape(5, 1, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(np.load(result)), network(x), rtol=1e-5, atol=1e-6)


def test_hub_folder_of_a_volume_network_at_a_chosen_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tmp_path / "net", tmp_path / "net.pt2"
    network = UMambaBot(3, 1, 2, features_per_stage=[4, 8]).eval()
    save_pretrained(network, folder)
    assert main(["export", str(folder), str(out)]) == 2
    assert "say --size" in capsys.readouterr().err
    assert main(["export", str(folder), str(out), "--size", "[8,4,8]", "--any_size"]) == 0
    x = torch.randn(3, 1, 4, 8, 12)
    with torch.no_grad():
        torch.testing.assert_close(load_program(out)(x), network(x))


def test_other_sources(digits: Path, tmp_path: Path) -> None:
    small = FusionModel(depths=(1,), depths_decoder=(1,), dims=(8,))
    save_fusion(tmp_path / "fusion", build_network(small), FusionCard(small))
    fusion = open_source(ExportConfig(tmp_path / "fusion", tmp_path / "f.onnx"))
    assert (fusion.inputs, fusion.channels, fusion.size) == (2, 1, (256, 256))
    save_pretrained(timm.create_model("vim_tiny", depth=1, embed_dim=16, img_size=32), tmp_path / "vim")
    vim = open_source(ExportConfig(tmp_path / "vim", tmp_path / "v.onnx", size=(48, 32)))
    assert (vim.channels, vim.size, vim.real) == (3, (48, 32), None)
    with torch.no_grad():
        assert vim.model(torch.randn(1, 3, 48, 32)).shape == (1, 1000)


def test_refusals(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    run = str(digits)
    for words, message in (
        (["vim_tiny", "m.onnx"], "would have random weights; pass --pretrained"),
        (["no_such", "m.onnx"], "no such folder, and no model of timm"),
        ([str(empty), "m.onnx"], "holds no model/config.json"),
        ([run, "m.onnx", "--format", "torch"], "--format torch needs a file that ends in .pt2"),
        ([run, "m.onnx", "--name", "N"], "--name: is of bundles"),
        ([run, "folder", "--any_size"], "--any_size: is of ONNX files and programs"),
        ([run, "m.onnx", "--tolerance", "0"], "give a number above 0"),
        ([run, "m.onnx", "--size", "[28]"], "takes 2 sizes"),
        ([run, "m.onnx", "--pictures", str(empty)], "holds no pictures"),
        ([run, "m.pt2", "--any_size"], "could not be exported with axes [0, 2, 3] open"),
        ([run, "m.onnx", "--tolerance", "1e-12"], "where 1e-12 is allowed; nothing was written"),
    ):
        assert main(["export", words[0], str(tmp_path / words[1]), *words[2:]]) == 2
        assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
