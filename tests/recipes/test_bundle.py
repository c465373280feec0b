"""Exported MONAI bundles: MONAI verifies and runs them, and their labels are those of `ssmvision predict`."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, run, verify_metadata, verify_net_in_out
from torch import nn

from ssmvision.cli import main
from ssmvision.errors import UserError
from ssmvision.recipes.bundle import export
from ssmvision.recipes.bundle.calls import VolumeInferer
from ssmvision.recipes.evaluation.postprocessing import Postprocessing, weights_digest, write_rule
from ssmvision.recipes.export.config import ExportConfig
from ssmvision.recipes.segmentation import predict
from ssmvision.recipes.segmentation.architecture import build_network, plan_network
from ssmvision.recipes.segmentation.config import ModelConfig, PredictConfig
from ssmvision.recipes.segmentation.preprocessing import ChannelScale, Preprocessing
from ssmvision.recipes.segmentation.weights import ModelCard, save_model
from tests.recipes.synthetic import ball, save

pytestmark = pytest.mark.usefixtures("one_thread")

# MONAI's schema of bundle metadata, as its site publishes it (Apache License 2.0).
SCHEMA = Path(__file__).parents[1] / "golden" / "monai" / "meta_schema_20240725.json"
LABELS = {"background": 0, "ball": 1, "rim": 2}
SHAPES = [(14, 12, 10), (11, 13, 9)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with random weights, whose labels come in many components, and a rule that keeps the largest."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    plan = plan_network(ModelConfig(features_per_stage=(4, 8)), (8, 8, 8), (1, 1.5, 2), 1, len(LABELS))
    how = Preprocessing("RAS", (1.1, 1.4, 2.0), (ChannelScale("zscore"),))
    torch.manual_seed(0)
    training = {"steps": 3, "training_cases": 2, "validation_dice": {"ball": 0.5, "rim": None}}
    save_model(folder, build_network(plan), ModelCard(plan, ("MRI",), LABELS, (8, 8, 8), how, training))
    write_rule(
        folder / "postprocessing.json", Postprocessing(LABELS, classes=("ball",), models=(weights_digest(folder),))
    )
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for i, shape in enumerate(SHAPES):
        image, mask = ball(shape, seed=i)
        save(folder / "images" / f"case_{i}.nii.gz", image)
        save(folder / "labels" / f"case_{i}.nii.gz", mask)
    return folder


@pytest.fixture(scope="module")
def bundle(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export.run(ExportConfig(trained, tmp_path_factory.mktemp("bundles") / "ball_mri", authors="A. Nonymous"))


@pytest.fixture(scope="module")
def predicted(trained: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    out = tmp_path_factory.mktemp("predicted")
    return predict.run(PredictConfig(trained, images / "images", out, device="cpu"))


@pytest.fixture
def parser(bundle: Path, images: Path) -> ConfigParser:
    found = ConfigParser()
    found.read_config(str(bundle / "configs" / "inference.json"))
    found["bundle_root"], found["dataset_dir"] = str(bundle), str(images / "images")
    found["device"] = "cpu"
    return found


def config(bundle: Path, name: str) -> str:
    return str(bundle / "configs" / f"{name}.json")


def test_holds_no_pickle_and_no_path_of_this_machine(bundle: Path, trained: Path) -> None:
    files = sorted(str(path.relative_to(bundle)) for path in bundle.rglob("*") if path.is_file())
    configs = [f"configs/{name}.json" for name in ("evaluate", "inference", "metadata")]
    models = [f"models/{name}" for name in ("model.json", "model.safetensors", "postprocessing.json")]
    assert files == ["LICENSE", *configs, "docs/README.md", *models]
    for path in bundle.rglob("*"):
        if path.suffix in (".json", ".md") or path.name == "LICENSE":
            assert str(trained.parent) not in path.read_text()
            assert str(Path.home()) not in path.read_text()
    assert "No license was chosen" in (bundle / "LICENSE").read_text()
    readme = (bundle / "docs" / "README.md").read_text()
    assert "0 background, 1 ball, 2 rim" in readme
    assert "{" not in readme


def test_metadata_is_valid(bundle: Path, tmp_path: Path) -> None:
    verify_metadata(meta_file=config(bundle, "metadata"), filepath=str(SCHEMA))
    content = json.loads(Path(config(bundle, "metadata")).read_text())
    assert content["schema"].endswith(SCHEMA.name)
    assert content["authors"] == "A. Nonymous"
    assert content["eval_metrics"] == {"validation_dice_ball": 0.5}
    content["network_data_format"]["inputs"]["image"]["num_channels"] = "one"
    damaged = tmp_path / "metadata.json"
    damaged.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="Failed validating"):
        verify_metadata(meta_file=str(damaged), filepath=str(SCHEMA))


def test_network_has_the_inputs_and_outputs_of_the_metadata(bundle: Path) -> None:
    files = {"meta_file": config(bundle, "metadata"), "config_file": config(bundle, "inference")}
    verify_net_in_out("network_def", **files, device="cpu", bundle_root=str(bundle))
    wrong = {"_meta_#network_data_format#outputs#pred#num_channels": 2}
    with pytest.raises(ValueError, match="output channel number"):
        verify_net_in_out("network_def", **files, device="cpu", bundle_root=str(bundle), **wrong)


def test_has_all_that_monai_asks_of_an_inference_workflow(bundle: Path, images: Path) -> None:
    places = {"bundle_root": str(bundle), "dataset_dir": str(images / "images"), "device": "cpu"}
    files = {"meta_file": config(bundle, "metadata"), "config_file": config(bundle, "inference")}
    workflow = ConfigWorkflow(**files, workflow_type="infer", logging_file=False, **places)
    workflow.initialize()
    assert workflow.check_properties() == []
    assert list(workflow.dataset_data[0]) == ["image"]
    del workflow.parser.config["inferer"]
    workflow.initialize()
    with pytest.raises(KeyError, match="'inferer'"):
        workflow.check_properties()


def test_runs_and_labels_are_those_of_predict(
    bundle: Path, images: Path, predicted: list[Path], tmp_path: Path
) -> None:
    places = {"dataset_dir": str(images / "images"), "output_dir": str(tmp_path / "out"), "device": "cpu"}
    files = [config(bundle, "inference"), config(bundle, "evaluate")]
    run(config_file=files, bundle_root=str(bundle), label_dir=str(images / "labels"), **places)
    for expected in predicted:
        found = nibabel.load(tmp_path / "out" / expected.name)
        voxels = np.asanyarray(nibabel.load(expected).dataobj)
        assert set(np.unique(voxels)) == set(LABELS.values())
        np.testing.assert_array_equal(np.asanyarray(found.dataobj), voxels)
        assert found.header.binaryblock == nibabel.load(expected).header.binaryblock
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert "rim" in json.dumps(scores)
    with pytest.raises(RuntimeError) as error:
        run(config_file=files[0], bundle_root=str(bundle), **places)
    assert isinstance(error.value.__cause__, UserError)
    assert "exists already" in str(error.value.__cause__)


def test_parts_by_themselves_give_the_labels_before_postprocessing(
    parser: ConfigParser, trained: Path, images: Path, tmp_path: Path
) -> None:
    plain = predict.run(PredictConfig(trained, images / "images", tmp_path, device="cpu", postprocessing="none"))
    inferer, after = parser.get_parsed_content("inferer"), parser.get_parsed_content("postprocessing")
    for case, expected in zip(parser.get_parsed_content("dataset"), plain, strict=True):
        logits = inferer(case["image"][None], parser.get_parsed_content("network_def"))
        assert logits.shape == (1, len(LABELS), *case["image"].shape[1:])
        labels = after({"pred": logits[0]})["pred"]
        np.testing.assert_array_equal(np.asarray(labels[0]), np.asanyarray(nibabel.load(expected).dataobj))


def test_inferer_takes_another_network_and_plain_tensors(parser: ConfigParser) -> None:
    inferer: VolumeInferer = parser.get_parsed_content("inferer")
    network = nn.Conv3d(1, 3, 1)
    volumes = torch.randn(2, 1, 9, 8, 7, generator=torch.Generator().manual_seed(0))
    logits = inferer(volumes, network)
    centred = (volumes - volumes.mean((1, 2, 3, 4), keepdim=True)) / volumes.std(
        (1, 2, 3, 4), keepdim=True, correction=0
    )
    torch.testing.assert_close(logits, network(centred).detach(), rtol=1e-4, atol=1e-4)
    with pytest.raises(TypeError, match="nothing on to the network"):
        inferer(volumes, network, 1)


def test_refuses_what_it_cannot_write(
    trained: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(trained), str(bundle)]) == 2
    assert f"{bundle}: exists already" in capsys.readouterr().err
    license_file = tmp_path / "missing.txt"
    with pytest.raises(UserError, match=r"missing\.txt: no such file; give a text file"):
        export.run(ExportConfig(trained, tmp_path / "new", license=license_file))
    license_file.write_text("All rights reserved")
    (tmp_path / "new").mkdir()  # empty, so it may become the bundle
    assert main(["export", str(trained), str(tmp_path / "new"), "--license", str(license_file), "--name", "Ball"]) == 0
    assert (tmp_path / "new" / "LICENSE").read_text() == "All rights reserved"
    assert (tmp_path / "new" / "docs" / "README.md").read_text().startswith("# Ball\n")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["missing.txt", "new"]
