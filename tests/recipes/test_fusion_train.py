"""Fusion training on pictures and volumes of a few thousand pixels."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import cv2
import nibabel
import numpy as np
import pytest
import torch
from torch import nn

from ssmvision.errors import UserError
from ssmvision.recipes.fusion import train
from ssmvision.recipes.fusion.config import (
    AugmentConfig,
    DataConfig,
    FusionTrainConfig,
    LossConfig,
    ModelConfig,
    TrainerConfig,
)
from ssmvision.recipes.fusion.crops import CropDataset
from ssmvision.recipes.fusion.module import FusionModule, learning_rate
from ssmvision.recipes.fusion.network import build_network
from ssmvision.recipes.fusion.pairs import ImagePair, hold_out, read_pairs
from ssmvision.recipes.fusion.weights import open_model

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = (40, 52)


def scene(seed: int, size: tuple[int, ...] = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Two views of smooth noise: one sharp to the left, the other to the right."""
    noise = np.random.default_rng(seed).random(size)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2.0)
    smooth = (smooth - smooth.min()) / np.ptp(smooth)
    left = np.arange(size[1]) < size[1] // 2
    return np.where(left, smooth, smooth.mean()), np.where(left, smooth.mean(), smooth)


def write_pictures(folder: Path, count: int) -> DataConfig:
    for i in range(count):
        for name, image in zip("ab", scene(i), strict=True):
            (folder / name).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / name / f"case_{i}.png"), np.rint(255 * image).astype(np.uint8))
    return DataConfig(folder / "a", folder / "b", validation_pairs=("case_1",))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    return write_pictures(tmp_path_factory.mktemp("pictures"), 3)


def settings(data: DataConfig, out: Path, **changes: object) -> FusionTrainConfig:
    model = ModelConfig(dims=(8, 16), d_state=2, drop_path_rate=0.2)
    trainer = TrainerConfig(
        max_epochs=4, steps_per_epoch=6, batch_size=2, lr=1e-2, warmup_steps=2, validate_every=2, accelerator="cpu"
    )
    trainer = dataclasses.replace(trainer, **changes)
    loss = LossConfig(intensity=10.0, intensity_target="max")
    return FusionTrainConfig(data, out, model, loss, trainer=trainer, patch_size=(24, 24))


@pytest.fixture(scope="module")
def trained(pictures: DataConfig, tmp_path_factory: pytest.TempPathFactory) -> train.RunResult:
    return train.run(settings(pictures, tmp_path_factory.mktemp("runs") / "whole"))


def test_training_learns_and_tells(trained: train.RunResult) -> None:
    assert (trained.epochs, trained.steps) == (4, 24)
    rows = [row.split(",") for row in trained.history.read_text().splitlines()]
    assert rows[0][:6] == ["epoch", "step", "lr", "train_loss", "val_loss", "val_intensity"]
    losses = [float(row[3]) for row in rows[1:]]
    assert losses[-1] < 0.95 * losses[0]
    assert [bool(row[4]) for row in rows[1:]] == [False, True, False, True]
    assert float(rows[-1][4]) == pytest.approx(trained.validation["total"])
    previews = sorted((trained.out / "previews").iterdir())
    assert [path.name for path in previews] == [f"epoch_000{i}.png" for i in (1, 2, 3, 4)]
    drawn = cv2.imread(str(previews[-1]), cv2.IMREAD_UNCHANGED)
    assert drawn.shape == (SIZE[0], 3 * SIZE[1] + 8)
    np.testing.assert_array_equal(drawn[:, : SIZE[1]], np.rint(255 * scene(1)[0]).astype(np.uint8))


def test_the_saved_network_is_the_one_that_was_validated(trained: train.RunResult, pictures: DataConfig) -> None:
    network, card = open_model(trained.out)
    assert card.training["steps"] == 24
    text = (trained.out / "model.json").read_text()
    assert str(trained.out.parent) not in text
    assert str(pictures.a.parent) not in text
    _, validation = hold_out(read_pairs(pictures), pictures.validation_pairs, 0, 0)
    a, b = (torch.from_numpy(x)[None, None] for x in (validation[0].a, validation[0].b))
    loss = FusionModule(network, LossConfig(intensity=10.0, intensity_target="max"), TrainerConfig(ema_decay=0))
    with torch.no_grad():
        assert float(loss.terms({"a": a, "b": b}).total) == pytest.approx(trained.validation["total"], rel=1e-5)


def test_a_resumed_run_is_the_unbroken_one(
    trained: train.RunResult, pictures: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(pictures, tmp_path / "run")
    real = FusionModule.on_train_batch_end

    def interrupted(self: FusionModule, *args: Any) -> None:
        if self.global_step == 9:
            raise KeyboardInterrupt
        real(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(FusionModule, "on_train_batch_end", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train.run(config)
    with pytest.raises(UserError, match=r"holds a run \(.*\); pass --resume or --overwrite"):
        train.run(config)
    with pytest.raises(UserError, match=r"started with patch_size \[24, 24\], now it is \[16, 16\]; resume with"):
        train.run(dataclasses.replace(config, resume=True, patch_size=(16, 16)))
    resumed = train.run(dataclasses.replace(config, resume=True))
    assert (resumed.epochs, resumed.steps) == (4, 24)
    assert resumed.weights.read_bytes() == trained.weights.read_bytes()
    assert resumed.history.read_text() == trained.history.read_text()


def test_bf16_and_the_published_network_and_loss(pictures: DataConfig, tmp_path: Path) -> None:
    config = settings(pictures, tmp_path / "run", precision="bf16-mixed", max_epochs=1, steps_per_epoch=1)
    model = ModelConfig(dims=(8, 16), faithful=True, d_state=16, output="image")
    data = dataclasses.replace(pictures, validation_pairs=(), validation_fraction=0.0)
    config = dataclasses.replace(config, model=model, loss=LossConfig.published(), data=data)
    result = train.run(config)
    assert result.validation == {}
    network, _ = open_model(result.weights)
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_volumes_give_slices_under_one_window_and_are_held_out_whole(tmp_path: Path) -> None:
    ramp = np.linspace(0, 1, 6)[:, None, None] * np.ones((6, 8, 5))
    for case in ("p1", "p2"):
        for name, scale in (("a", 1000), ("b", 100)):
            (tmp_path / name).mkdir(exist_ok=True)
            volume = (scale * (ramp + 0.1 * np.random.default_rng(7).random(ramp.shape))).astype(np.float32)
            volume[..., 4] = 0  # an empty slice
            nibabel.save(nibabel.Nifti1Image(volume, np.diag([1, 1, 1, 1])), tmp_path / name / f"{case}.nii.gz")
    pairs = read_pairs(DataConfig(tmp_path / "a", tmp_path / "b", axis="axial"))
    assert len(pairs) == 8
    assert pairs[0].name == "p1, axial slice 1"
    assert pairs[0].a.shape == (8, 6)
    whole = np.stack([pair.a for pair in pairs[:4]])
    assert whole.max() == 1
    assert sum(pair.a.max() == 1 for pair in pairs[:4]) == 1, "one window for the volume, not one a slice"
    training, validation = hold_out(pairs, (), 0.1, seed=0)
    assert {p.group for p in training} | {p.group for p in validation} == {"p1", "p2"}
    assert len({p.group for p in validation}) == 1
    narrow = read_pairs(DataConfig(tmp_path / "a", tmp_path / "b", axis="axial", window_a=(0, 500)))
    assert narrow[0].a.max() == 1

    moved = np.diag([1.0, 1, 1, 1])
    moved[0, 3] = 3
    nibabel.save(nibabel.Nifti1Image(np.ones((6, 8, 5), np.float32), moved), tmp_path / "b" / "p2.nii.gz")
    with pytest.raises(UserError, match=r"p2\.nii\.gz: affine differs .* 3 mm away"):
        read_pairs(DataConfig(tmp_path / "a", tmp_path / "b"))


def test_bad_data(pictures: DataConfig, tmp_path: Path) -> None:
    data = write_pictures(tmp_path, 2)
    (data.b / "case_1.png").unlink()
    with pytest.raises(UserError, match=r"case_1\.png: no partner in .*remove or complete them"):
        read_pairs(data)
    cv2.imwrite(str(data.b / "case_1.png"), np.zeros((20, 30), np.uint8))
    with pytest.raises(UserError, match=r"case_1\.png: 20x30 pixels, .*case_1\.png has 40x52; training needs"):
        read_pairs(data)
    with pytest.raises(UserError, match=r"validation_pairs: no pair is named case_9; there are case_0, case_1, case_2"):
        train.run(settings(dataclasses.replace(pictures, validation_pairs=("case_9",)), tmp_path / "run"))
    with pytest.raises(UserError, match="all 3 pairs are held out"):
        hold_out(read_pairs(pictures), ("case_0", "case_1", "case_2"), 0, 0)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": (24, 32)}, r"patch_size: \(24, 32\) is not possible; give two equal sizes"),
        ({"loss": LossConfig(0, 0, 0)}, r"loss weights: \(0, 0, 0\) is not possible; .*not all 0"),
        ({"augment": AugmentConfig(gamma=(2, 1))}, r"augment\.gamma: \(2, 1\) is not possible"),
        ({"trainer": TrainerConfig(ema_decay=1)}, r"trainer\.ema_decay: 1 is not possible"),
        ({"model": ModelConfig(faithful=True), "patch_size": (20, 20)}, r"multiples of 8, which the published"),
        ({"model": ModelConfig(dims=(8, 20))}, r"model: dims must start with a multiple of 8 and double"),
        ({"trainer": TrainerConfig(accelerator="abacus")}, r"trainer\.accelerator: 'abacus' cannot be used"),
    ],
)
def test_impossible_settings(pictures: DataConfig, tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        train.run(dataclasses.replace(settings(pictures, tmp_path / "run"), **changes))
    assert not (tmp_path / "run").exists()


def test_crops_are_in_lockstep_and_repeatable() -> None:
    image = np.arange(40 * 52, dtype=np.float32).reshape(SIZE) / (40 * 52)
    pair = ImagePair("p", "p", image, 1 - image)
    same_tone = AugmentConfig(gamma=(1, 1), swap=0.0)
    crops = CropDataset([pair], same_tone, (16, 16), seed=3)
    drawn = [crops[i] for i in range(12)]
    for crop in drawn:
        assert crop["a"].shape == (1, 16, 16)
        torch.testing.assert_close(crop["a"] + crop["b"], torch.ones(1, 16, 16))
    assert len({float(crop["a"].sum()) for crop in drawn}) > 6
    again = CropDataset([pair], same_tone, (16, 16), seed=3)
    torch.testing.assert_close(again[11]["a"], drawn[11]["a"], rtol=0, atol=0)
    small = CropDataset([pair], same_tone, (64, 64), seed=0)[0]
    torch.testing.assert_close(small["a"] + small["b"], torch.ones(1, 64, 64))


def test_tones_and_exchange() -> None:
    pair = ImagePair("p", "p", np.full((8, 8), 0.25, np.float32), np.full((8, 8), 0.5, np.float32))
    turned = CropDataset([pair], AugmentConfig(swap=1.0, invert=1.0, gamma_probability=0.0), (8, 8), 0)[0]
    assert float(turned["a"].mean()) == 0.5
    assert float(turned["b"].mean()) == 0.75
    squared = CropDataset([pair], AugmentConfig(swap=0.0, gamma=(2, 2), gamma_probability=1.0), (8, 8), 0)[0]
    assert float(squared["a"].mean()) == 0.0625


def test_what_the_network_computes_is_an_image_or_weights() -> None:
    a, b = torch.rand(2, 1, 1, 20, 30, generator=torch.Generator().manual_seed(0))
    for faithful, state in ((False, 2), (True, 16)):
        config = ModelConfig(dims=(8, 16), d_state=state, faithful=faithful, output="image", input_scale=0.25)
        network = build_network(config).eval()
        nn.init.zeros_(network.network.final_conv.weight)
        nn.init.zeros_(network.network.final_conv.bias)
        with torch.no_grad():
            torch.testing.assert_close(network(a, b), (a + b) / 2)
            network.output = "weights"
            torch.testing.assert_close(network(a, b), (a + b) / 2)
            nn.init.constant_(network.network.final_conv.bias, 3.0)
            torch.testing.assert_close(network(a, b), torch.lerp(b, a, torch.tensor(3.0).sigmoid()))


def test_weights_keep_every_pixel_between_the_images() -> None:
    a, b = torch.rand(2, 1, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    network = build_network(ModelConfig(dims=(8, 16), d_state=2))
    nn.init.normal_(network.network.final_conv.weight, std=5.0)
    fused = network(a, b)
    assert float(fused.detach().std()) > 0
    assert bool(((fused >= torch.minimum(a, b) - 1e-6) & (fused <= torch.maximum(a, b) + 1e-6)).all())


def test_weights_are_smooth_across_the_patches() -> None:
    a, b = torch.zeros(1, 1, 32, 32), torch.ones(1, 1, 32, 32)
    steps = []
    for smooth in (0.0, 1.5):
        torch.manual_seed(0)
        network = build_network(ModelConfig(dims=(8, 16), d_state=2, smooth_px=smooth)).eval()
        nn.init.normal_(network.network.final_conv.weight, std=2.0)
        with torch.no_grad():
            steps.append(float(network(a, b).diff(dim=-1).abs().max()))
    assert 0 < steps[1] < 0.5 * steps[0]


def test_schedule() -> None:
    config = TrainerConfig(max_epochs=2, steps_per_epoch=50, warmup_steps=10)
    rates = [learning_rate(step, config) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0)


def test_optimizer_spares_the_systems_parameters() -> None:
    config = TrainerConfig()
    module = FusionModule(build_network(ModelConfig(dims=(8, 16))), LossConfig(), config)
    groups = module.configure_optimizers()["optimizer"].param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    found = {name: decay[id(p)] for name, p in module.network.named_parameters()}
    assert {v for k, v in found.items() if k.endswith(("A_logs", "Ds", "bias"))} == {0.0}
    assert found["network.layers.0.blocks.0.op.in_proj.weight"] == config.weight_decay


def test_weights_are_refused_with_the_reason(trained: train.RunResult, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.pth: \.pth weights are refused, since a pickle"):
        open_model(tmp_path / "model.pth")
    with pytest.raises(UserError, match=r"model\.safetensors: no such file; give a run folder"):
        open_model(tmp_path)
    content, card = trained.weights.read_bytes(), (trained.out / "model.json").read_text()
    (tmp_path / "model.json").write_text(card)
    (tmp_path / "model.safetensors").write_bytes(content[:-1] + b"\x01")
    with pytest.raises(UserError, match=r"sha256 is .* damaged or another file"):
        open_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(content)
    (tmp_path / "model.json").write_text(json.dumps(json.loads(card) | {"kind": "segmentation"}))
    with pytest.raises(UserError, match=r"describes 'segmentation' in format 1, expected 'image fusion'"):
        open_model(tmp_path)
    (tmp_path / "model.json").write_text(card.replace('"dims": [\n', '"dimensions": [\n'))
    with pytest.raises(UserError, match=r"model\.json: unusable \(TypeError"):
        open_model(tmp_path)
