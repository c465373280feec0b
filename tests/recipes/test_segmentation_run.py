"""Train, resume, predict and evaluate on volumes of a few thousand voxels."""

from __future__ import annotations

import dataclasses
import json
import signal
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from ssmvision.errors import UserError
from ssmvision.recipes.segmentation import evaluate, predict, train
from ssmvision.recipes.segmentation.config import (
    AugmentConfig,
    DataConfig,
    EvaluateConfig,
    ModelConfig,
    PredictConfig,
    TrainConfig,
    TrainerConfig,
)
from ssmvision.recipes.segmentation.infer import load_model
from ssmvision.recipes.segmentation.memory_plan import Placement
from ssmvision.recipes.segmentation.volumes import read_image
from tests.recipes.synthetic import OBLIQUE, ball, nnunet_folder, save

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPES = [(24, 20, 14), (22, 24, 16), (20, 22, 14)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nnunet_folder(tmp_path_factory.mktemp("raw"), SHAPES)


def settings(root: Path, out: Path, **changes: object) -> TrainConfig:
    trainer = TrainerConfig(
        max_epochs=3, steps_per_epoch=8, lr=0.05, momentum=0.9, validate_every=2, accelerator="cpu", threads=1
    )
    model = ModelConfig(features_per_stage=(4, 8), n_conv_per_stage=1, n_conv_per_stage_decoder=1)
    base = TrainConfig(
        DataConfig(root, validation_cases=("case_2",)), out, model, trainer=trainer, patch_size=(16, 16, 8)
    )
    flat = {k: v for k, v in changes.items() if "." not in k}
    for key, value in changes.items():
        if "." in key:
            section, name = key.split(".")
            flat[section] = dataclasses.replace(flat.get(section, getattr(base, section)), **{name: value})
    return dataclasses.replace(base, **flat)


@pytest.fixture(scope="module")
def trained(root: Path, tmp_path_factory: pytest.TempPathFactory) -> train.RunResult:
    return train.run(settings(root, tmp_path_factory.mktemp("runs") / "mamba"))


def weights(result: train.RunResult) -> bytes:
    return result.weights.read_bytes()


def test_training_learns_and_reports(trained: train.RunResult) -> None:
    assert (trained.epochs, trained.steps) == (3, 24)
    rows = trained.history.read_text().splitlines()
    assert rows[0] == "epoch,step,lr,train_loss,skipped,val_dice,val_dice_ball"
    losses = [float(row.split(",")[3]) for row in rows[1:]]
    assert losses[-1] < losses[0] - 0.5
    assert [bool(row.split(",")[5]) for row in rows[1:]] == [False, True, True]
    assert trained.validation_dice["ball"] > 0.5
    card = json.loads((trained.out / "model.json").read_text())
    assert card["labels"] == {"background": 0, "ball": 1}
    assert str(trained.out) not in json.dumps(card)
    assert not list(trained.out.glob("*.pkl"))


def test_predict_and_evaluate_on_the_exact_grid(root: Path, trained: train.RunResult, tmp_path: Path) -> None:
    before = {p: p.read_bytes() for p in sorted((root / "imagesTr").iterdir())}
    config = PredictConfig(trained.out, root / "imagesTr", tmp_path / "pred", probabilities=True, mirror_axes=(0,))
    written = predict.run(config)
    assert [p.name for p in written] == ["case_0.nii.gz", "case_1.nii.gz", "case_2.nii.gz"]
    assert before == {p: p.read_bytes() for p in sorted((root / "imagesTr").iterdir())}
    for path, shape in zip(written, SHAPES, strict=True):
        source, result = nibabel.load(root / "imagesTr" / path.name.replace(".nii", "_0000.nii")), nibabel.load(path)
        assert result.shape == shape
        np.testing.assert_array_equal(result.affine, source.affine)
        probabilities = np.load(path.with_name(path.name.replace(".nii.gz", "_probabilities.npz")))["probabilities"]
        np.testing.assert_array_equal(probabilities.argmax(0), np.asanyarray(result.dataobj))
    scores = evaluate.run(EvaluateConfig(tmp_path / "pred", root / "labelsTr"))
    assert scores.mean("dice") > 0.5
    with pytest.raises(UserError, match=r"case_0\.nii\.gz: exists already; .*--overwrite"):
        predict.run(config)
    assert len(predict.run(dataclasses.replace(config, overwrite=True))) == 3


def test_predictor_gives_the_same_mask_for_turned_arrays(trained: train.RunResult) -> None:
    image, _ = ball(SHAPES[0])
    predictor = load_model(trained.out, device="cpu")
    labels = predictor(image, OBLIQUE)
    assert labels.dtype == np.uint8
    turned = OBLIQUE[:, [2, 0, 1, 3]]
    np.testing.assert_array_equal(predictor(image.transpose(2, 0, 1), turned), labels.transpose(2, 0, 1))
    with pytest.raises(ValueError, match=r"shape \(2, 24, 20, 14\), expected \(1, X, Y, Z\)"):
        predictor(np.stack([image, image]), OBLIQUE)


def test_out_of_memory_steps_down_to_the_same_labels(trained: train.RunResult, monkeypatch: pytest.MonkeyPatch) -> None:
    image, _ = ball(SHAPES[0])
    predictor = load_model(trained.out, device="cpu")
    labels = predictor(image, OBLIQUE)
    real, left = predictor.network.forward, [2]

    def forward(window: torch.Tensor) -> torch.Tensor:
        if left[0]:
            left[0] -= 1
            raise torch.OutOfMemoryError("forced")
        return real(window)

    cpu = torch.device("cpu")
    monkeypatch.setattr(predictor.network, "forward", forward)
    monkeypatch.setattr(predictor, "placements", lambda: [Placement(cpu, cpu)] * 3)
    with pytest.warns(UserWarning, match=r"out of memory for shape \(1, .*on cpu.*using less"):
        np.testing.assert_array_equal(predictor(image, OBLIQUE), labels)
    left[0] = 3
    with pytest.warns(UserWarning, match="using less"), pytest.raises(torch.OutOfMemoryError):
        predictor(image, OBLIQUE)


def test_image_smaller_than_the_patch(trained: train.RunResult, tmp_path: Path) -> None:
    image, mask = ball((11, 9, 5))
    path = save(tmp_path / "small.nii.gz", image)
    (out,) = predict.run(PredictConfig(trained.out, path, tmp_path / "out.nii.gz"))
    found = np.asanyarray(nibabel.load(out).dataobj)
    assert found.shape == mask.shape
    predictor = load_model(trained.out, device="cpu")
    prepared = predictor.card.preprocessing.image(image[None], OBLIQUE)
    half = [(n - m) // 2 for n, m in zip((16, 16, 8), prepared.shape[1:], strict=True)]
    padded = torch.zeros(1, 1, 16, 16, 8)
    window = tuple(slice(h, h + n) for h, n in zip(half, prepared.shape[1:], strict=True))
    padded[(0, 0, *window)] = prepared.as_tensor()[0]
    with torch.no_grad():
        logits = predictor.network(padded)[0][(slice(None), *window)]
    np.testing.assert_array_equal(predictor.card.preprocessing.restore(logits, prepared).argmax(0).numpy(), found)


def test_bad_inputs_at_predict(root: Path, trained: train.RunResult, tmp_path: Path) -> None:
    source = tmp_path / "in"
    for i in range(2):
        save(source / f"good_{i}.nii.gz", ball((16, 16, 8), i)[0])
    content = (source / "good_0.nii.gz").read_bytes()
    (source / "bad.nii.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"1 of 3 case\(s\) failed.*bad\.nii\.gz.*fetch or export it again"):
        predict.run(PredictConfig(trained.out, source, tmp_path / "out"))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["good_0.nii.gz", "good_1.nii.gz"]

    two = np.stack([ball((16, 16, 8))[0]] * 2, -1)
    path = save(tmp_path / "two.nii.gz", two)
    with pytest.raises(UserError, match=r"two\.nii\.gz: 2 channel\(s\) found, 1 expected \['MRI'\]; give one file"):
        predict.run(PredictConfig(trained.out, path, tmp_path / "two_out.nii.gz"))
    assert not (tmp_path / "two_out.nii.gz").exists()
    with pytest.raises(UserError, match=r"nothing: no such file or folder"):
        predict.run(PredictConfig(trained.out, tmp_path / "nothing", tmp_path / "o"))
    with pytest.raises(UserError, match=r"overlap is 1\.0, expected a share in \[0, 1\)"):
        predict.run(PredictConfig(trained.out, path, tmp_path / "o.nii.gz", overlap=1.0))
    with pytest.raises(UserError, match=r"device 'gpu7' cannot be used .*'cpu' or 'auto'"):
        predict.run(PredictConfig(trained.out, path, tmp_path / "o.nii.gz", device="gpu7"))


def test_outputs_that_cannot_be_written(root: Path, trained: train.RunResult, tmp_path: Path) -> None:
    images, file = root / "imagesTr", tmp_path / "file"
    file.write_text("mine")
    before = sorted(images.iterdir())
    for output in (file, file / "below"):
        with pytest.raises(UserError, match=r"file: is a file where a folder is needed"):
            predict.run(PredictConfig(trained.out, images, output))
    with pytest.raises(UserError, match=r"imagesTr: is the input folder, which is never written to"):
        predict.run(PredictConfig(trained.out, images, images, overwrite=True))
    with pytest.raises(UserError, match=r"file: is a file where a folder is needed"):
        train.run(settings(root, file / "run"))
    assert sorted(images.iterdir()) == before
    assert file.read_text() == "mine"


def test_accelerator_that_is_not_there(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trainer\.accelerator: 'tpu' .*give cpu or auto"):
        train.run(settings(root, tmp_path / "run", **{"trainer.accelerator": "tpu"}))
    assert not (tmp_path / "run").exists()


def test_model_that_is_no_safetensors_file(root: Path, trained: train.RunResult, tmp_path: Path) -> None:
    note = tmp_path / "note.txt"
    note.write_text("x")
    moved = tmp_path / "model.safetensors"
    moved.write_bytes(trained.weights.read_bytes())
    for model, message in (
        (note, r"note\.txt: the ending '\.txt' is not"),
        (moved, r"model\.json: no such file; copy it"),
    ):
        with pytest.raises(UserError, match=message):
            predict.run(PredictConfig(model, root / "imagesTr", tmp_path / "out"))


def test_resumed_run_equals_the_uninterrupted_one(root: Path, trained: train.RunResult, tmp_path: Path) -> None:
    short = settings(root, tmp_path / "run", **{"trainer.max_minutes": 1e-6})
    stopped = train.run(short)
    assert stopped.epochs == 1
    assert stopped.validation_dice  # validated although the epoch was not due
    resumed = train.run(settings(root, tmp_path / "run", resume=True, **{"data.num_workers": 1}))
    assert (resumed.epochs, resumed.steps) == (3, 24)
    assert weights(resumed) == weights(trained)
    assert resumed.history.read_text() == trained.history.read_text()


def test_resume_survives_a_torn_checkpoint_and_refuses_other_settings(root: Path, tmp_path: Path) -> None:
    config = settings(root, tmp_path / "run", **{"model.mixer": "none", "trainer.max_epochs": 2})
    whole = train.run(config)
    last = tmp_path / "run" / "last.ckpt"
    expected = weights(whole)
    again = dataclasses.replace(config, resume=True)
    (tmp_path / "run" / ".last.ckpt.half").touch()
    for damage in (lambda: last.write_bytes(last.read_bytes()[:1000]), last.unlink):
        damage()
        with pytest.warns(UserWarning, match=r"last\.ckpt is missing or damaged; continuing from .*previous\.ckpt"):
            assert weights(train.run(again)) == expected
    assert not (tmp_path / "run" / ".last.ckpt.half").exists()
    other = settings(root, tmp_path / "run", resume=True, **{"model.mixer": "none", "trainer.lr": 0.1})
    with pytest.raises(UserError, match=r"config\.json: .* trainer\.lr 0\.05, now it is 0\.1; resume with the same"):
        train.run(other)
    for name in ("last.ckpt", "previous.ckpt"):
        (tmp_path / "run" / name).write_bytes(b"\x80torn")
    with pytest.raises(UserError, match=r"last\.ckpt: neither .*--overwrite"):
        train.run(again)


def test_interrupted_run_can_be_resumed(
    root: Path, trained: train.RunResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = train.SegmentationModule.training_step
    calls = iter(range(100))

    def step(module: train.SegmentationModule, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
        if next(calls) == 12:  # in the middle of the second epoch
            raise KeyboardInterrupt
        return real(module, batch, index)

    config, handler = settings(root, tmp_path / "run"), signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(train.SegmentationModule, "training_step", step)
        with pytest.raises(KeyboardInterrupt):
            train.run(config)
    assert signal.getsignal(signal.SIGINT) is handler
    assert not (config.out / "model.safetensors").exists()
    assert weights(train.run(dataclasses.replace(config, resume=True))) == weights(trained)


def test_run_folder_is_not_overwritten_by_accident(root: Path, trained: train.RunResult, tmp_path: Path) -> None:
    before = weights(trained)
    with pytest.raises(UserError, match=r"mamba: holds a run .*--resume or --overwrite"):
        train.run(settings(root, trained.out))
    assert weights(trained) == before
    with pytest.raises(UserError, match=r"empty: no last\.ckpt to resume from; start without --resume"):
        train.run(settings(root, tmp_path / "empty", resume=True))


def test_diverging_run_names_the_first_bad_module(root: Path, tmp_path: Path) -> None:
    changes = {"trainer.lr": 1e30, "trainer.gradient_clip": 0.0, "trainer.max_nonfinite_steps": 3}
    config = settings(root, tmp_path / "run", **changes)
    stop = r"training stopped at epoch 1, step \d: .*first non-finite: .*, step 3 of that kind .*Lower trainer\.lr"
    with pytest.warns(UserWarning, match="step skipped at epoch 1"), pytest.raises(UserError, match=stop):
        train.run(config)
    assert not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainer.lr": 0.0}, r"trainer\.lr: 0\.0 is not possible; give a number above 0"),
        ({"patch_size": (16,)}, r"patch_size: \(16,\) is not possible; give 2 or 3 sizes"),
        ({"augment": AugmentConfig(flip_axes=(3,))}, r"augment\.flip_axes: \(3,\).*0 to 2"),
        ({"data.validation_fraction": 1.5, "data.validation_cases": ()}, r"data\.validation_fraction: 1\.5"),
    ],
)
def test_impossible_settings_leave_nothing_behind(root: Path, tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        train.run(settings(root, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_slices_bf16_two_channels_and_resampling(tmp_path: Path) -> None:
    root = nnunet_folder(tmp_path / "raw", SHAPES[:2], channels=2)
    config = settings(
        root,
        tmp_path / "run",
        data=DataConfig(root, validation_cases=("case_1",), spacing_mm=(1.2, 1.2)),
        patch_size=(16, 16),
        **{"trainer.precision": "bf16-mixed", "model.name": "UMambaEnc", "trainer.max_epochs": 2},
    )
    result = train.run(config)
    assert result.validation_dice["ball"] > 0.3
    (out,) = predict.run(PredictConfig(result.out, root / "imagesTr" / "case_0_0000.nii.gz", tmp_path / "pred"))
    assert nibabel.load(out).shape == SHAPES[0]
    assert read_image([out]).grid.spacing_mm == read_image([root / "imagesTr" / "case_0_0000.nii.gz"]).grid.spacing_mm
