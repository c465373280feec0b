"""The classification recipe: a small training by command line and what follows, scores and settings."""

from __future__ import annotations

import csv
import json
import pickle
import shutil
from dataclasses import fields, replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from jsonargparse import ArgumentParser
from safetensors.torch import load_file, save_file
from torchmetrics.functional.classification import multiclass_auroc, multiclass_calibration_error

from ssmvision.cli import main
from ssmvision.errors import UserError
from ssmvision.recipes.classification.config import (
    AugmentConfig,
    ClassifyTrainConfig,
    DataConfig,
    ModelConfig,
    TrainerConfig,
)
from ssmvision.recipes.classification.data import (
    Scale,
    TrainingPictures,
    open_data,
)
from ssmvision.recipes.classification.metrics import Outcome, score
from ssmvision.recipes.classification.module import class_weights
from ssmvision.recipes.classification.networks import build, open_model, save_model, start_from
from ssmvision.recipes.classification.optimization import learning_rate, make_optimizer
from ssmvision.recipes.classification.run_folder import check_config
from ssmvision.recipes.classification.saliency import input_gradient
from ssmvision.recipes.classification.start import choose_scale, make_network
from ssmvision.recipes.classification.train import run
from ssmvision.recipes.training.fitting import count_parameters
from ssmvision.recipes.training.module import TrainingModule
from tests.recipes.bars import write_medmnist, write_volume

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = {"patch_size": 4, "embed_dim": 16, "depth": 2}


def settings(data: Path, out: Path, **trainer: object) -> ClassifyTrainConfig:
    t = {"max_epochs": 2, "batch_size": 10, "lr": 0.01, "warmup_epochs": 0.5, "threads": 1, "accelerator": "cpu"}
    return ClassifyTrainConfig(
        DataConfig(str(data), class_names=("one", "two", "three")),
        out,
        model=ModelConfig("vim_tiny", dict(SMALL), drop_path=0.1),
        augment=AugmentConfig(shift=1, mixup=0.2, cutmix=1.0),
        trainer=TrainerConfig(**(t | trainer)),  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A MedMNIST file and the run folder of a training on it by `ssmvision train`."""
    folder = tmp_path_factory.mktemp("classification")
    data, out, file = write_medmnist(folder / "bars.npz"), folder / "run", folder / "mine.yaml"
    file.write_text(
        "task: classification\nmodel: {name: vim_tiny, arguments: {patch_size: 4, embed_dim: 16, depth: 2}}\n"
    )
    words = f"train --config {file} --data.root {data} --out {out} --data.class_names [one,two,three]"
    words += " --trainer.max_epochs 12 --trainer.batch_size 10 --trainer.lr 0.02 --trainer.threads 1"
    words += " --trainer.accelerator cpu --trainer.ema_decay 0.8 --trainer.save best"
    assert main(words.split()) == 0
    return data, out


# From pictures to a report


def test_command_line_trains_a_model_that_timm_reads(trained: tuple[Path, Path]) -> None:
    _, out = trained
    rows = list(csv.DictReader((out / "metrics.csv").open()))
    assert len(rows) == 12
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    saved = open_model(out)
    assert saved.spec.classes == ("one", "two", "three")
    assert saved.training["saved_weights"] == "moving average"
    network = timm.create_model(f"local-dir:{out / 'model'}", pretrained=True).eval()
    image = torch.randn(2, 1, 12, 12)
    with torch.no_grad():
        assert torch.equal(network(image), saved.network(image))
    assert tuple(network.pretrained_cfg["input_size"]) == (1, 12, 12)


def test_evaluation_scores_every_test_picture(trained: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    _, out = trained
    assert main(["classify", "evaluate", str(out), "--threads", "1", "--pictures", "4"]) == 0
    assert "test: 24 pictures" in capsys.readouterr().out
    folder = out / "evaluation"
    scores = json.loads((folder / "scores.json").read_text())
    rows = list(csv.DictReader((folder / "predictions.csv").open()))
    right = sum(row["label"] == row["predicted"] for row in rows)
    assert (len(rows), scores["part"]) == (24, "test")
    assert scores["accuracy"] == pytest.approx(right / 24)
    assert right > 16  # the classes are easy to tell apart; a third is chance
    assert sum(float(rows[0][f"p_{name}"]) for name in ("one", "two", "three")) == pytest.approx(1, abs=1e-4)
    assert [row["name"] for row in csv.DictReader((folder / "classes.csv").open())] == ["one", "two", "three"]
    html = (folder / "report.html").read_text()
    assert html.count("<img ") == 5
    assert "http://" not in html
    assert str(out) not in html
    assert main(["classify", "evaluate", str(out)]) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_volumes_are_scored_by_their_mean_probabilities(trained: tuple[Path, Path], tmp_path: Path) -> None:
    for part, count in (("train", 1), ("val", 1), ("test", 4)):
        for label, name in enumerate(("one", "two", "three")):
            for i in range(count):
                write_volume(tmp_path / part / name / f"{i}.nii.gz", 10 + i, label)
    out = tmp_path / "scores"
    words = f"classify evaluate {trained[1]} --data {tmp_path} --out {out} --threads 1 --pictures 0"
    assert main(words.split()) == 0
    slices, volumes = (list(csv.DictReader((out / f"{n}.csv").open())) for n in ("predictions", "volumes"))
    assert (len(slices), len(volumes)) == (36, 12)
    for row in volumes:
        own = [float(one["p_two"]) for one in slices if one["picture"].startswith(f"{row['volume']} slice")]
        assert len(own) == 3
        assert float(row["p_two"]) == pytest.approx(np.mean(own), abs=1e-5)
    scores = json.loads((out / "scores.json").read_text())
    right = sum(row["label"] == row["predicted"] for row in volumes)
    assert scores["volumes"]["accuracy"] == pytest.approx(right / 12)
    html = (out / "report.html").read_text()
    assert "slices of 12 volumes" in html
    assert "accuracy of volumes" in html


def test_resumed_run_equals_an_unbroken_one(tmp_path: Path) -> None:
    data = write_medmnist(tmp_path / "bars.npz")
    whole = settings(data, tmp_path / "whole", ema_decay=0.9)
    parts = replace(whole, out=tmp_path / "parts", trainer=replace(whole.trainer, checkpoint_steps=2))
    run(whole)

    def stop_in_the_second_epoch(self: TrainingPictures, index: int) -> object:
        if index >= 90:  # of 120: in the middle of the second epoch, after the checkpoint of its second step
            raise KeyboardInterrupt
        return get(self, index)

    get = TrainingPictures.__getitem__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingPictures, "__getitem__", stop_in_the_second_epoch)
        with pytest.raises(KeyboardInterrupt):
            run(parts)
    assert not (parts.out / "model").exists()
    run(replace(parts, resume=True))
    for name in ("metrics.csv", "model/model.safetensors"):
        assert (whole.out / name).read_bytes() == (parts.out / name).read_bytes()
    with pytest.raises(UserError, match=r"trainer.lr 0.01, now it is 0.5"):
        run(replace(parts, resume=True, trainer=replace(parts.trainer, lr=0.5)))
    with pytest.raises(UserError, match="holds a run"):
        run(parts)


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    data = write_medmnist(tmp_path / "bars.npz", count=50)
    balanced = {"max_epochs": 1, "ema_decay": 0.5, "class_weights": "balanced"}
    runs = []
    for devices in (1, 2):
        config = settings(data, tmp_path / str(devices), devices=devices, **balanced)
        plain = replace(config, augment=AugmentConfig(), model=replace(config.model, drop_path=0.0))
        runs.append(run(plain))
    one, two = (load_file(result.model / "model.safetensors") for result in runs)
    assert max(float((one[key] - two[key]).abs().max()) for key in one) < 1e-5
    assert runs[0].validation == pytest.approx(runs[1].validation, abs=1e-5)
    losses = [float(next(csv.DictReader(result.history.open()))["train_loss"]) for result in runs]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_fine_tuning_at_another_resolution_with_other_classes(trained: tuple[Path, Path], tmp_path: Path) -> None:
    _, out = trained
    scale = Scale((20, 16), (0.5,), (0.2,))
    network, _ = build(ModelConfig("vim_tiny", dict(SMALL)), ("a", "b"), scale)
    text = start_from(network, out)
    assert "head.weight" in text
    old = open_model(out).network
    assert torch.equal(network.layers[0].mixer.A_log, old.layers[0].mixer.A_log)
    assert network.pos_embed.shape != old.pos_embed.shape
    assert network(torch.randn(1, 1, 20, 16)).shape == (1, 2)

    other, _ = build(
        ModelConfig("vit_tiny_patch16_224", {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}),
        ("a",),
        scale,
    )
    with pytest.raises(UserError, match=r"not of vit_tiny_patch16_224.*missing"):
        start_from(other, out)
    bad = tmp_path / "weights.pth"
    bad.write_bytes(pickle.dumps({}))
    with pytest.raises(UserError, match="pickle"):
        start_from(network, bad)
    other_file = shutil.copytree(out / "model", tmp_path / "copied") / "model.safetensors"
    save_file(load_file(other_file) | {"head.bias": torch.ones(3)}, other_file)
    with pytest.raises(UserError, match=r"model\.safetensors: sha256 is .* expects"):
        start_from(network, tmp_path / "copied")


def test_fine_tuning_keeps_the_scale_of_the_weights(trained: tuple[Path, Path], tmp_path: Path) -> None:
    data, out = trained
    old, config = open_model(out).spec.scale, settings(data, tmp_path)
    sets = open_data(config.data)
    sets.training.read.array[:] //= 2  # type: ignore[attr-defined]  # darker pictures than the weights were trained on
    assert choose_scale(config, sets).mean[0] < 0.6 * old.mean[0]
    for folder in (out, out / "model"):
        tuned = replace(config, model=replace(config.model, checkpoint=folder))
        assert choose_scale(tuned, sets) == old
    coloured = replace(tuned, data=replace(config.data, channels=3))
    assert choose_scale(coloured, sets).mean == old.mean * 3


def test_weights_of_timm_are_fetched_and_their_scale_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=24, **small)
    config = settings(write_medmnist(tmp_path / "bars.npz"), tmp_path)
    config = replace(config, model=ModelConfig("vit_tiny_patch16_224.augreg_in21k", small, pretrained=True))
    sets, place = open_data(config.data), "timm.models._builder.load_state_dict_from_hf"
    monkeypatch.setattr(place, lambda *_, **__: {key: value.clone() for key, value in theirs.state_dict().items()})
    network, spec, origin = make_network(config, sets, choose_scale(config, sets))
    assert torch.equal(network.blocks[0].mlp.fc1.weight, theirs.blocks[0].mlp.fc1.weight)
    assert network(torch.zeros(1, 1, 12, 12)).shape == (1, 3)
    assert spec.scale.mean == (0.5,)  # of augreg's weights
    assert "augreg_in21k" in origin

    def fail(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(place, fail)
    with pytest.raises(UserError, match=r"model\.pretrained: timm cannot fetch .*no route.*give model\.checkpoint"):
        make_network(config, sets, spec.scale)
    for name in ("s4nd_convnext_micro", "vit_tiny_patch16_224.nobody"):
        with pytest.raises(UserError, match=rf"model\.pretrained: timm has no weights of {name}"):
            choose_scale(replace(config, model=ModelConfig(name, pretrained=True)), sets)


@pytest.mark.parametrize(
    ("name", "arguments", "channels"),
    [
        ("vit_tiny_patch16_224", {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}, 1),
        ("convnext_atto", {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}, 1),
        ("vmamba_tiny", {"depths": [1, 1], "dims": [8, 16]}, 1),
        ("s4nd_convnext_micro", {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}, 3),
    ],
)
def test_any_model_of_timm_is_built_saved_and_fine_tuned(
    name: str, arguments: dict[str, object], channels: int, tmp_path: Path
) -> None:
    config, image = ModelConfig(name, arguments), torch.randn(1, 3, 64, 64)
    network, spec = build(config, ("a", "b", "c"), Scale((64, 64), (0.0,) * 3, (1.0,) * 3))
    assert ("img_size" in spec.arguments) == (name != "convnext_atto")
    made = make_optimizer(network, TrainerConfig(lr=0.1), 5)
    assert sum(p.numel() for g in made["optimizer"].param_groups for p in g["params"]) == count_parameters(network)
    save_model(tmp_path / "model", network, spec, {})
    expected = network.eval()(image)  # S4ND computes it in another way where no weight is trained
    torch.testing.assert_close(open_model(tmp_path).network(image), expected, atol=1e-6, rtol=1e-5)
    same, _ = build(config, ("d", "e", "f"), spec.scale)
    start_from(same, tmp_path)
    assert torch.equal(same.eval()(image), expected)
    other, _ = build(config, ("a", "b"), Scale((96, 80), (0.0,) * channels, (1.0,) * channels))
    assert "new: " in start_from(other, tmp_path)
    assert other(torch.zeros(1, channels, 96, 80)).shape == (1, 2)


def test_balanced_weights_are_1_on_average() -> None:
    labels = np.array([0, 0, 0, 1])
    weights = class_weights(labels, 3)
    assert weights.tolist() == pytest.approx([2 / 3, 2, 0])
    assert float(weights[labels].mean()) == 1


def test_the_moving_average_leaves_tables_of_indices_alone() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(2, 2))
    network.register_buffer("table", torch.arange(100))
    module = TrainingModule(network, ema_decay=0.9)
    assert module.average is not None
    torch.nn.init.zeros_(network[0].weight)
    for _ in range(3):
        module.average.update_parameters(network)
    assert torch.equal(module.result.table, torch.arange(100))
    assert not any(parameter.requires_grad for parameter in module.result.parameters())


def test_learning_rates_follow_layers_and_schedule() -> None:
    config = TrainerConfig(max_epochs=10, warmup_epochs=2, lr=0.1, layer_decay=0.5)
    shares = [learning_rate(step, config, 5) for step in range(51)]
    assert shares[9] == 1
    assert shares[0] == pytest.approx(0.1)
    assert shares[50] == pytest.approx(0)
    assert shares[10:] == sorted(shares[10:], reverse=True)
    network, _ = build(ModelConfig("vim_tiny", dict(SMALL)), ("a", "b"), Scale((12, 12), (0.0,), (1.0,)))
    made = make_optimizer(network, config, 5)
    rates = {g["lr"] for g in made["optimizer"].param_groups}
    assert max(rates) == pytest.approx(0.01)  # the head's in the first of ten steps of warm-up
    assert min(rates) == pytest.approx(0.01 * 0.5**3)  # embedding, two blocks, head
    s4nd, _ = build(
        ModelConfig("s4nd_convnext_micro", {"depths": [1], "dims": [8]}), ("a", "b"), Scale((32, 32), (0.0,), (1.0,))
    )
    with pytest.raises(UserError, match="layer_decay"):
        make_optimizer(s4nd, config, 5)


# Numbers


def test_scores_agree_with_torchmetrics() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 300)
    logits = rng.normal(size=(300, 4)) + 1.5 * np.eye(4)[labels]
    p = torch.softmax(torch.from_numpy(logits), -1)
    scores = score(Outcome(labels, p.numpy(), tuple("abcd"), ("",) * 300), bins=10)
    truth = torch.from_numpy(labels)
    assert scores.ece == pytest.approx(float(multiclass_calibration_error(p, truth, 4, n_bins=10)), abs=1e-6)
    worst = multiclass_calibration_error(p, truth, 4, n_bins=10, norm="max")
    assert scores.mce == pytest.approx(float(worst), abs=1e-6)
    assert scores.macro_auc == pytest.approx(float(multiclass_auroc(p, truth, 4)), abs=1e-6)
    assert np.asarray(scores.confusion).sum() == 300
    for i, one in enumerate(scores.classes):
        said, is_it = p.numpy().argmax(1) == i, labels == i
        assert one.sensitivity == pytest.approx((said & is_it).sum() / is_it.sum())
        assert one.specificity == pytest.approx((~said & ~is_it).sum() / (~is_it).sum())


def test_scores_of_a_class_without_pictures_are_left_out() -> None:
    p = np.array([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1]])
    scores = score(Outcome(np.array([0, 1]), p, ("a", "b", "c"), ("", "")))
    assert (scores.accuracy, scores.balanced_accuracy, scores.macro_f1, scores.macro_auc) == (1, 1, 1, 1)
    assert np.isnan(scores.classes[2].sensitivity)
    assert scores.classes[2].specificity == 1
    assert scores.brier == pytest.approx(((0.2**2 + 2 * 0.1**2) + (0.3**2 + 0.4**2 + 0.1**2)) / 2)


def test_saliency_of_a_linear_network_is_its_weights() -> None:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2 * 3 * 3, 4)).requires_grad_(False)
    found = input_gradient(network, torch.randn(2, 2, 3, 3), torch.tensor([1, 3]))
    weights = network[1].weight.reshape(4, 2, 3, 3).abs().amax(1)
    assert torch.allclose(found, weights[[1, 3]])


# Settings


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("trainer", "lr", 0.0),
        ("trainer", "devices", 3),
        ("trainer", "layer_decay", 1.5),
        ("trainer", "batch_size", 5),
        ("augment", "policy", "trivial"),
        ("augment", "flip_axes", (2,)),
        ("data", "validation_fraction", 1.0),
        ("data", "slices", 0),
        ("data", "dataset", "MNIST"),
    ],
)
def test_impossible_settings_are_refused(part: str, name: str, value: object, tmp_path: Path) -> None:
    config = settings(tmp_path, tmp_path)
    check_config(config)
    with pytest.raises(UserError, match=rf"{part}\.{name}"):
        check_config(replace(config, **{part: replace(getattr(config, part), **{name: value})}))


def test_shipped_settings_are_possible() -> None:
    files = [f for f in (resources.files("ssmvision.configs") / "classification").iterdir() if f.name.endswith(".yaml")]
    assert len(files) >= 4
    for file in files:
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(ClassifyTrainConfig, None, as_group=False)
        parser.add_argument("--config", action="config")
        values = parser.instantiate(parser.parse_args([f"--config={file}", "--data.root=pictures", "--out=run"]))
        check_config(ClassifyTrainConfig(**{f.name: values[f.name] for f in fields(ClassifyTrainConfig)}))


def test_train_goes_by_the_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("task: classification\n")
    words = ["--data.root", "data", "--out", "run", "--print_config"]
    for option in (["--config", str(file)], [f"--config={file}"], ["--task=classification"]):
        assert main(["train", *option, *words]) == 0
        assert "layer_decay" in capsys.readouterr().out
    assert main(["train", *words]) == 0
    assert "steps_per_epoch" in capsys.readouterr().out
    assert main(["train", "--task", "poetry", *words]) == 2
    assert "'poetry'" in capsys.readouterr().err
    file.write_text("task: [")
    assert main(["train", "--config", str(file), *words]) == 2
    assert "not valid YAML" in capsys.readouterr().err
