"""What a network adds to the classification recipe's loss by itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ssmvision.models import IsotropicSSM
from ssmvision.recipes.classification.config import AugmentConfig, TrainerConfig
from ssmvision.recipes.classification.module import ClassificationModule

SMALL = {"patch_size": 4, "embed_dim": 8, "depth": 2, "mixer": "none"}


def step(network: nn.Module) -> float:
    module = ClassificationModule(network, TrainerConfig(), AugmentConfig(), 3, steps_per_epoch=1, cases=1)
    batch = {"image": torch.ones(2, 1, 8, 8), "label": torch.tensor([0, 1])}
    return float(module.training_step(batch, 0)["loss"].detach())


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_the_balance_of_experts_is_part_of_the_loss() -> None:
    torch.manual_seed(0)
    options = {"channel_mixer_args": {"experts": 4, "balance": 0.0}}
    network = IsotropicSSM(8, 1, 3, channel_mixer="moe", **SMALL, **options)
    plain = step(network)
    for block in network.stages[0].blocks:
        block.channel_mixer.balance = 5.0
    # Two mixtures, each with about its weight at least.
    assert step(network) - plain > 9.0
    assert step(IsotropicSSM(8, 1, 3, **SMALL)) < 5.0
