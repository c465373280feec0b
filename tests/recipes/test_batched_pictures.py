"""Pictures kept on the device: the changes of whole batches, their order, shares of processes, and CUDA graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from ssmvision.errors import UserError
from ssmvision.recipes.classification.batched import DRAWN, change, stacked, training_batches, whole_batches
from ssmvision.recipes.classification.config import AugmentConfig, ClassifyTrainConfig, DataConfig, TrainerConfig
from ssmvision.recipes.classification.data import Scale, shuffled
from ssmvision.recipes.classification.graphs import graph_network
from ssmvision.recipes.classification.pictures import ArrayReader, Pictures
from ssmvision.recipes.workers import call_apart

CPU = torch.device("cpu")
SCALE = Scale((6, 5), (0.5,), (0.25,))


def pictures(count: int = 11) -> Pictures:
    array = np.random.default_rng(0).integers(0, 256, (count, 6, 5), dtype=np.uint8)
    return Pictures(ArrayReader(array), np.arange(count), [str(i) for i in range(count)])


def settings(**augment: object) -> ClassifyTrainConfig:
    changes = AugmentConfig(library="batched", **augment)  # type: ignore[arg-type]
    return ClassifyTrainConfig(DataConfig("x"), Path("x"), augment=changes, trainer=TrainerConfig(batch_size=4, seed=3))


def test_shift_continues_by_reflection_and_flips_mirror() -> None:
    whole = torch.arange(30, dtype=torch.uint8).reshape(1, 6, 5, 1)
    for down, right, up_down, left_right in ((0, 0, 0, 0), (4, 0, 1, 0), (1, 3, 0, 1), (2, 2, 1, 1)):
        drawn = torch.full((1, DRAWN), 0.999, dtype=torch.float64)
        drawn[0, :2] = (torch.tensor([down, right]) + 0.5) / 5  # one of five shifts, -2 to 2
        drawn[0, 2:4] = 1 - torch.tensor([up_down, left_right]) * 0.9
        found = change(whole, torch.tensor([0]), drawn, AugmentConfig(shift=2, flip_axes=(0, 1)))
        flipped = np.flip(whole[0, ..., 0].numpy(), [axis for axis, yes in enumerate((up_down, left_right)) if yes])
        shifted = np.pad(flipped, 2, mode="reflect")[down : down + 6, right : right + 5]
        np.testing.assert_array_equal(found[0, ..., 0].numpy(), shifted)


def test_erased_rectangles_have_the_share_and_area_that_they_should() -> None:
    whole = torch.full((1, 28, 28, 1), 255, dtype=torch.uint8)
    drawn = torch.from_numpy(np.random.default_rng(1).random((4000, DRAWN)))
    blank = change(whole, torch.zeros(4000, dtype=torch.long), drawn, AugmentConfig(erase=0.25))[..., 0] == 0
    erased = blank.flatten(1).any(1)
    assert float(erased.double().mean()) == pytest.approx(0.25, abs=0.03)
    boxes = blank[erased]
    areas = boxes.flatten(1).sum(1)
    assert float(areas.double().mean()) / 784 == pytest.approx((0.02 + 0.33) / 2, abs=0.02)
    assert torch.equal(boxes.any(2).sum(1) * boxes.any(1).sum(1), areas)  # each is one rectangle
    assert bool((boxes.any(2).sum(1).diff() != 0).any())


def test_a_step_sees_the_same_pictures_whoever_shares_it() -> None:
    config = settings(shift=1, flip_axes=(1,), erase=0.5)
    steps = 5  # of 4, over eleven pictures: from one shuffling into the next

    def epoch(start: int, rank: int = 0, ranks: int = 1) -> list[dict[str, torch.Tensor]]:
        return list(training_batches(pictures(), SCALE, config, steps, lambda: start, CPU, rank, ranks))

    whole = epoch(0)
    assert [len(batch["label"]) for batch in whole] == [4] * steps
    assert torch.equal(epoch(3)[0]["image"], whole[3]["image"])  # as after resuming
    halves = zip(epoch(0, 0, 2), epoch(0, 1, 2), strict=True)
    for batch, (first, second) in zip(whole, halves, strict=True):
        assert torch.equal(batch["image"], torch.cat([first["image"], second["image"]]))
    labels = torch.cat([batch["label"] for batch in whole])
    assert labels.tolist() == [*shuffled(3, 0, 11), *shuffled(3, 1, 11)][:20]
    assert not torch.equal(whole[0]["image"], epoch(5)[0]["image"])


def test_whole_pictures_come_once_and_unchanged() -> None:
    data = pictures()
    batches = list(whole_batches(data, SCALE, settings(), CPU))
    assert [len(batch["label"]) for batch in batches] == [4, 4, 3]
    image = torch.cat([batch["image"] for batch in batches])[:, 0]
    expected = (np.stack([data.read(i) for i in range(11)]) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(image.numpy(), expected, rtol=1e-5, atol=1e-6)
    shares = [torch.cat([b["label"] for b in whole_batches(data, SCALE, settings(), CPU, rank, 2)]) for rank in (0, 1)]
    assert sorted(torch.cat(shares).tolist()) == list(range(11))


def test_pictures_of_other_sizes_and_colours_are_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    grey, colour = np.full((8, 8), 51, np.uint8), np.full((3, 4, 3), 204, np.uint8)
    mixed = Pictures(lambda index: (grey, colour)[index], np.array([0, 1]), ["a", "b"])
    found = stacked(mixed, Scale((6, 5), (0.0,) * 3, (1.0,) * 3), CPU)
    assert found.shape == (2, 6, 5, 3)
    assert found.flatten(1).unique(dim=1).tolist() == [[51], [204]]
    monkeypatch.setattr("ssmvision.recipes.classification.batched.MAX_BYTES", 50)
    with pytest.raises(UserError, match=r"augment\.library: batched would keep 2 pictures on the device"):
        stacked(mixed, SCALE, CPU)


def test_shifts_and_devices_that_do_not_fit() -> None:
    with pytest.raises(UserError, match=r"augment\.shift: 5 is not possible; give less than 5 pixels"):
        training_batches(pictures(), SCALE, settings(shift=5), 1, lambda: 0, CPU)
    with pytest.raises(UserError, match=r"trainer\.cuda_graph: true needs an Nvidia GPU, and this run is on cpu"):
        graph_network(torch.nn.Linear(2, 2), (1, 2), CPU, "32-true")


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_recorded_networks_have_the_gradients_of_plain_ones(precision: str) -> None:
    device = torch.device("cuda")
    torch.manual_seed(0)
    options = {"img_size": 12, "patch_size": 4, "in_chans": 1, "embed_dim": 32, "depth": 2, "num_classes": 3}
    network = timm.create_model("vim_tiny", **options).to(device).train()
    image = torch.randn(8, 1, 12, 12, device=device)

    def gradients() -> list[torch.Tensor]:
        network.zero_grad()
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16-mixed"):
            network(image).float().square().mean().backward()
        return [p.grad.clone() for p in network.parameters() if p.grad is not None]

    plain = gradients()
    graph_network(network, image.shape, device, precision)
    for _ in range(2):
        torch.testing.assert_close(gradients(), plain)
    image = 2 * image
    changed = gradients()
    assert any(not torch.equal(a, b) for a, b in zip(plain, changed, strict=True))


class Asks(torch.nn.Linear):
    """Looks at a result in its forward, which no recording allows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * x.sum().item()


def draw_after_a_failed_recording() -> bool:
    device = torch.device("cuda")
    with pytest.raises(UserError, match="the network cannot be recorded"):
        graph_network(Asks(2, 2).to(device), (1, 2), device, "32-true")
    return bool((torch.rand(4, device=device) < 1).all())


@pytest.mark.gpu
def test_random_numbers_after_a_failed_recording() -> None:
    assert call_apart(draw_after_a_failed_recording, "recording")
