"""Bad steps, short memory, dead workers, full disks, early ends, folds: trainings of a second each."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
import time
from multiprocessing import resource_sharer
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from monai.losses.dice import DiceCELoss
from safetensors.torch import load_file
from torch.utils.data import get_worker_info
from torch.utils.data._utils import signal_handling

from ssmvision.errors import UserError
from ssmvision.recipes.segmentation import faults, fold_runs, loading, module, train
from ssmvision.recipes.segmentation.config import TrainerConfig
from ssmvision.recipes.segmentation.losses import segmentation_loss, training_criterion
from ssmvision.recipes.segmentation.optimization import learning_rate
from ssmvision.recipes.segmentation.patches import PatchDataset
from ssmvision.recipes.segmentation.split import read_split
from tests.recipes.killing import digests, tiny_config
from tests.recipes.synthetic import nnunet_folder

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nnunet_folder(tmp_path_factory.mktemp("raw"), [(10, 12, 9), (12, 10, 8), (9, 9, 9)])


def test_a_bad_step_is_named_and_skipped(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, before = module.SegmentationModule.training_step, {}

    def step(self: module.SegmentationModule, batch: dict[str, torch.Tensor], index: int) -> Any:
        if self.global_step == 5:
            before.update({k: v.clone() for k, v in self.network.state_dict().items()})
            batch = batch | {"image": batch["image"] * torch.inf}
        if self.global_step == 6:
            assert all(torch.equal(v, before[k]) for k, v in self.network.state_dict().items())
        return real(self, batch, index)

    monkeypatch.setattr(module.SegmentationModule, "training_step", step)
    with pytest.warns(UserWarning, match=r"step skipped at epoch 2, step 6: loss is nan; first .*: the input batch"):
        result = train.run(tiny_config(root, tmp_path / "run", max_nonfinite_steps=2))
    assert result.steps == 12
    rows = [line.split(",") for line in result.history.read_text().splitlines()]
    assert [row[rows[0].index("skipped")] for row in rows[1:]] == ["0", "1", "1"]
    assert all(torch.isfinite(value).all() for value in load_file(result.weights).values())


def test_a_step_of_the_loss_scale_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    network = torch.nn.Conv3d(1, 2, 1)
    trained = module.SegmentationModule(network, TrainerConfig(max_nonfinite_steps=2), {"a": 1}, (8, 8, 8), {})
    scale = [65536.0]
    trained.trainer = SimpleNamespace(  # type: ignore[assignment]
        precision_plugin=SimpleNamespace(scaler=SimpleNamespace(get_scale=lambda: scale[0])), current_epoch=0
    )
    monkeypatch.setattr(type(trained), "global_step", 0)
    optimizer = torch.optim.SGD(network.parameters(), 1.0)
    for _ in range(5):
        network.weight.grad = torch.full_like(network.weight, torch.inf)
        trained._loss = trained._own = torch.tensor(1.0)
        trained.configure_gradient_clipping(optimizer)
        assert network.weight.grad is None
    assert (trained.skipped, trained.streak) == (0, 0)
    scale[0] = 1.0
    network.weight.grad = torch.full_like(network.weight, torch.inf)
    with pytest.warns(UserWarning, match=r"gradient norm is inf; first non-finite: gradient of weight"):
        trained.configure_gradient_clipping(optimizer)
    assert (trained.skipped, trained.streak) == (1, 1)


def test_the_moving_average_and_the_best_epoch_are_saved(root: Path, tmp_path: Path) -> None:
    config = tiny_config(root, tmp_path / "run", save="last", ema_decay=0.7)
    result = train.run(config)
    state = torch.load(config.out / "last.ckpt", weights_only=True)["state_dict"]
    saved = load_file(result.weights)
    for name, value in saved.items():
        assert torch.equal(value, state[f"average.module.{name}"])
    assert any(not torch.equal(value, state[f"network.{name}"]) for name, value in saved.items())
    # Steps too small to matter: the first epoch stays the best, and patience ends the run.
    config = tiny_config(root, tmp_path / "flat", lr=1e-12, max_epochs=9, early_stop_epochs=2)
    result = train.run(config)
    assert result.epochs == 3
    card = json.loads((config.out / "model.json").read_text())["training"]
    assert (card["epochs"], card["saved_epoch"], card["saved_weights"]) == (3, 1, "moving average")
    before = digests(config.out)
    assert train.run(dataclasses.replace(config, resume=True)).epochs == 3
    assert digests(config.out) == before
    data = dataclasses.replace(config.data, validation_cases=(), validation_fraction=0.0)
    with pytest.raises(UserError, match=r"trainer\.early_stop_epochs: 2 needs validation cases"):
        train.run(dataclasses.replace(config, data=data, out=tmp_path / "none"))


def test_short_memory(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes: dict[str, Any] = {"batch_dice": False, "max_epochs": 1, "save": "last", "ema_decay": 0.0}
    whole = train.run(tiny_config(root, tmp_path / "whole", **changes))
    real = train.build_network

    def build(architecture: dict[str, Any]) -> torch.nn.Module:
        network = real(architecture)

        def refuse(_: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            if len(args[0]) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

        network.register_forward_pre_hook(refuse)
        return network

    monkeypatch.setattr(train, "build_network", build)
    with pytest.raises(UserError, match=r"Tried to allocate 20.*measured to fit: trainer\.batch_size=1 with .*8x8x8"):
        train.run(tiny_config(root, tmp_path / "short", **changes))
    with pytest.warns(UserWarning, match=r"step 1: out of memory; .* batch of 2 patches runs in 2 parts"):
        halved = train.run(tiny_config(root, tmp_path / "halved", auto_halve=True, **changes))
    one, two = load_file(whole.weights), load_file(halved.weights)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6)


def test_short_memory_in_validation(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train.run(tiny_config(root, tmp_path / "whole", max_epochs=1))
    real, left = module.stream_labels, [1]

    def labels(*arguments: Any) -> torch.Tensor:
        if left[0]:
            left[0] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(*arguments)

    monkeypatch.setattr(module, "stream_labels", labels)
    with pytest.warns(UserWarning, match=r"validation: out of memory for \(1, .*kept on the CPU"):
        short = train.run(tiny_config(root, tmp_path / "short", max_epochs=1))
    assert digests(short.out) == digests(whole.out)


@pytest.mark.parametrize(
    ("killed", "error", "message"),
    [
        (True, UserError, r"^data\.num_workers: 1: .*a worker was killed"),
        (False, ConnectionResetError, "^reset$"),  # by a host that has nothing to do with it
    ],
)
def test_a_connection_reset_while_a_worker_hands_a_batch_over(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool, error: type[Exception], message: str
) -> None:
    real, calls = PatchDataset.__getitem__, 0

    def item(self: PatchDataset, index: int) -> dict[str, torch.Tensor]:
        (tmp_path / "pid").write_text(str(os.getpid()))
        return real(self, index)

    def connection(ident: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            if killed:
                os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
            monkeypatch.setattr(BaseProcess, "is_alive", lambda self: True)  # as long as it cannot be waited for
            raise ConnectionResetError("reset")
        return connect(ident)

    sharer: Any = resource_sharer._resource_sharer  # type: ignore[attr-defined]
    connect = sharer.get_connection
    monkeypatch.setattr(PatchDataset, "__getitem__", item)
    monkeypatch.setattr(sharer, "get_connection", connection)
    monkeypatch.setattr(faults, "ENDING_SECONDS", 60.0 if killed else 0.5)
    # As in a process's second training: Lightning has put back the handler of SIGCHLD that torch sets once.
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", True)
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    config = tiny_config(root, tmp_path / "run")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, num_workers=1))
    try:
        with pytest.raises(error, match=message):
            train.run(config)
    finally:
        signal.signal(signal.SIGCHLD, handler)


@pytest.mark.parametrize("fault", ["killed", "hangs", "bad"])
def test_a_worker_that_fails(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    real = PatchDataset.__getitem__

    def item(self: PatchDataset, index: int) -> dict[str, torch.Tensor]:
        assert get_worker_info() is not None
        if index == 6 and fault == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if index == 6 and fault == "hangs":
            time.sleep(30)
        if index == 6:
            raise UserError("case_0.nii.gz: torn; fetch it again")
        return real(self, index)

    monkeypatch.setattr(PatchDataset, "__getitem__", item)
    monkeypatch.setattr(loading, "HANG_SECONDS", 2.0)
    config = tiny_config(root, tmp_path / "run")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, num_workers=1))
    messages = {
        "killed": r"^data\.num_workers: 1: .*a worker was killed, most often for lack of main memory.*--resume",
        "hangs": r"^data\.num_workers: 1: .*timed out after 2.*: a worker hangs",
        "bad": r"^case_0\.nii\.gz: torn; fetch it again$",
    }
    started = time.monotonic()
    with pytest.raises(UserError, match=messages[fault]):
        train.run(config)
    assert time.monotonic() - started < 25
    monkeypatch.undo()
    torch.set_num_threads(1)
    assert train.run(dataclasses.replace(config, resume=True)).steps == 12


def test_a_full_disk_leaves_the_checkpoint_before(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(root, tmp_path / "run")
    real = Path.write_bytes

    def write(path: Path, content: Any) -> int:
        if path.name.startswith(".last.ckpt.") and "sha256" not in path.name and len(writes) == 6:
            real(path, bytes(content)[:100])
            raise OSError(errno.ENOSPC, "No space left on device")
        writes.append(path)
        return real(path, content)

    writes: list[Path] = []
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", write)
        with pytest.raises(UserError, match=r"last\.ckpt: could not be written .*takes up to \d+ bytes, \d+ are free"):
            train.run(config)
    assert not list(config.out.glob(".last.ckpt.*"))
    assert train.run(dataclasses.replace(config, resume=True)).steps == 12


def test_every_fold(root: Path, tmp_path: Path) -> None:
    config = tiny_config(root, tmp_path / "cv", max_epochs=1)
    data = dataclasses.replace(config.data, validation_cases=(), fold="each", folds=3)
    config = dataclasses.replace(config, data=data)
    results = fold_runs.run(config)
    assert [result.out.name for result in results] == ["fold0", "fold1", "fold2"]
    held_out = [read_split(result.out).validation for result in results]
    assert sorted(case for fold in held_out for case in fold) == ["case_0", "case_1", "case_2"]
    with pytest.raises(UserError, match=r"fold0: holds a run"):
        fold_runs.run(config)
    before = [digests(result.out) for result in results]
    for path in (config.out / "fold2").iterdir():
        path.unlink()
    assert len(fold_runs.run(dataclasses.replace(config, resume=True))) == 3
    assert [digests(result.out) for result in results] == before


def test_float16_is_not_replaced_where_there_is_no_gpu(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trainer\.precision: '16-mixed' needs a GPU; give 'bf16-mixed' or 32-true"):
        train.run(tiny_config(root, tmp_path / "run", precision="16-mixed"))


@pytest.mark.parametrize("batch_dice", [True, False])
def test_the_loss_is_monais(batch_dice: bool) -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 5, 6, 7, requires_grad=True)
    label = torch.randint(0, 3, (2, 1, 5, 6, 7))
    options: dict[str, Any] = {"include_background": False, "to_onehot_y": True, "softmax": True, "batch": batch_dice}
    expected = DiceCELoss(**options, smooth_nr=1e-5, smooth_dr=1e-5)(logits, label.float())
    ours = segmentation_loss(training_criterion(batch_dice), logits, label)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (ours, expected)))


def test_the_schedule_of_a_plan_is_by_epoch() -> None:
    by_step = TrainerConfig(max_epochs=10, steps_per_epoch=5)
    by_epoch = dataclasses.replace(by_step, poly_per="epoch")
    assert learning_rate(25, by_step) == learning_rate(29, by_epoch) == 0.5**0.9
    assert learning_rate(49, by_epoch) == pytest.approx(0.1**0.9)
    assert learning_rate(50, by_step) == learning_rate(60, by_epoch) == 0.0
