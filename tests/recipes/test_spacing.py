"""The segmentation recipe tells S4ND networks the voxel spacing of every case."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssmvision.errors import UserError
from ssmvision.layers.s4nd import S4ND
from ssmvision.recipes.segmentation.architecture import build_network, plan_network
from ssmvision.recipes.segmentation.config import AugmentConfig, DataConfig, ModelConfig, TrainConfig, TrainerConfig
from ssmvision.recipes.segmentation.infer import Predictor, load_model
from ssmvision.recipes.segmentation.module import SegmentationModule
from ssmvision.recipes.segmentation.preprocessing import ChannelScale, Preprocessing
from ssmvision.recipes.segmentation.spacing import SpacedNetwork
from ssmvision.recipes.segmentation.train import run
from ssmvision.recipes.segmentation.weights import ModelCard
from tests.recipes.synthetic import ball, save, write_description

SMALL = ModelConfig(features_per_stage=(2, 4), n_conv_per_stage=1, n_conv_per_stage_decoder=1, mixer="s4nd")
LABELS = {"background": 0, "ball": 1}


def rates(network: nn.Module) -> set[tuple[float, ...]]:
    return {module.rate for module in network.modules() if isinstance(module, S4ND)}


def spaced(
    spacing: tuple[float, ...] = (1.0, 1.0, 2.0), config: ModelConfig = SMALL
) -> tuple[nn.Module, SpacedNetwork, dict]:
    torch.manual_seed(0)
    plan = json.loads(json.dumps(plan_network(config, (8,) * len(spacing), spacing, 1, 2)))
    network = build_network(plan)
    return network, SpacedNetwork(network, plan), plan


def patches(batch: int, axes: int = 3) -> Tensor:
    return torch.randn(batch, 1, *(8,) * axes, generator=torch.Generator().manual_seed(1))


class TestPlan:
    def test_the_reference_is_the_usual_spacing_unless_given(self) -> None:
        assert spaced((1.0, 0.8))[2]["reference_spacing_mm"] == [1.0, 0.8]
        own = replace(SMALL, reference_spacing_mm=(1.0, 1.0))
        assert spaced((1.0, 0.8), own)[2]["reference_spacing_mm"] == [1.0, 1.0]
        assert "reference_spacing_mm" not in plan_network(replace(SMALL, mixer="none"), (8, 8), (1.0, 1.0), 1, 2)

    @pytest.mark.parametrize("wrong", [(1.0,), (1.0, 0.0), (1.0, -1.0), (1.0, float("inf")), (1.0, float("nan"))])
    def test_sizes_that_do_not_fit(self, wrong: tuple[float, ...]) -> None:
        with pytest.raises(UserError, match=r"model\.reference_spacing_mm: .* give 2 sizes above 0 in mm"):
            plan_network(replace(SMALL, reference_spacing_mm=wrong), (8, 8), (1.0, 1.0), 1, 2)

    def test_a_mixer_without_spacings(self) -> None:
        with pytest.raises(UserError, match="no use with mixer 'mamba'; leave it out"):
            plan_network(ModelConfig(reference_spacing_mm=(1.0, 1.0)), (8, 8), (1.0, 1.0), 1, 2)


class TestNetwork:
    def test_rates_follow_the_spacing(self) -> None:
        network, call, _ = spaced()
        call(patches(1), torch.tensor([[0.5, 1.0, 5.0]]))
        assert rates(network) == {(0.5, 1.0, 2.5)}
        call.set_spacing((1.0, 1.0, 2.0))
        assert rates(network) == {(1.0, 1.0, 1.0)}

    def test_a_batch_of_several_spacings_is_every_image_at_its_own(self) -> None:
        _, call, _ = spaced()
        rows = torch.tensor([[1.0, 1.0, 2.0], [0.5, 1.0, 4.0], [1.0, 1.0, 2.0], [2.0, 2.0, 2.0]])
        images = patches(4)
        together = call(images, rows)
        alone = [call(images[i : i + 1], rows[i : i + 1]) for i in range(4)]
        assert isinstance(together, list)
        for level, found in enumerate(together):
            torch.testing.assert_close(found, torch.cat([outputs[level] for outputs in alone]), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(together[0][:1], call(images[:1], rows[1:2])[0], atol=1e-4)

    def test_digits_of_an_affine_that_mean_nothing_make_no_kernels(self) -> None:
        network, call, _ = spaced()
        call(patches(2), torch.tensor([[1.0, 1.0, 2.0], [1.00001, 0.99999, 2.00002]]))
        assert rates(network) == {(1.0, 1.0, 1.0)}

    def test_networks_without_spacings_are_called_as_they_are(self) -> None:
        plan = plan_network(replace(SMALL, mixer="none"), (8, 8), (1.0, 1.0), 1, 2)
        network = build_network(plan)
        call = SpacedNetwork(network, plan)
        call.set_spacing((3.0, 3.0))
        images = patches(2, axes=2)
        torch.testing.assert_close(call(images, torch.ones(2, 2))[0], network(images)[0])


def card(plan: dict, spacing_mm: tuple[float, ...] | None) -> ModelCard:
    how = Preprocessing("RAS", spacing_mm, (ChannelScale("zscore"),))
    return ModelCard(plan, ("MRI",), LABELS, (8, 8, 8), how)


class TestRecipe:
    def test_training_and_validation_tell_the_network(self) -> None:
        network, _, plan = spaced()
        module = SegmentationModule(network, TrainerConfig(), LABELS, (8, 8, 8), plan)
        module.log = lambda *args, **options: None  # type: ignore[assignment]
        label = torch.zeros(1, 1, 8, 8, 8, dtype=torch.int64)
        batch = {"image": patches(1), "label": label, "spacing_mm": torch.tensor([[2.0, 1.0, 2.0]])}
        assert module.training_step(batch, 0)["loss"].isfinite()
        assert rates(network) == {(2.0, 1.0, 1.0)}
        module.validation_step(batch | {"spacing_mm": torch.tensor([[1.0, 1.0, 4.0]])}, 0)
        assert rates(network) == {(1.0, 1.0, 2.0)}

    def test_prediction_takes_the_spacing_after_resampling(self) -> None:
        network, _, plan = spaced()
        image = np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32)
        affine = np.diag([0.5, 1.0, 2.0, 1.0])
        Predictor(network, card(plan, None), "cpu").logits(image, affine)
        assert rates(network) == {(0.5, 1.0, 1.0)}
        turned = affine[:, [2, 1, 0, 3]]  # the stored first axis runs along z
        Predictor(network, card(plan, None), "cpu").logits(image, turned)
        assert rates(network) == {(0.5, 1.0, 1.0)}
        Predictor(network, card(plan, (2.0, 1.0, -1.0)), "cpu").logits(image, affine)
        assert rates(network) == {(2.0, 1.0, 1.0)}

    def test_an_array_without_affine_has_the_planned_spacing(self) -> None:
        network, call, plan = spaced()
        image = np.zeros((8, 8, 8), dtype=np.float32)
        for target, rate in ((None, (1.0, 1.0, 1.0)), ((2.0, 1.0, -1.0), (2.0, 1.0, 1.0))):
            call.set_spacing((9.0, 9.0, 9.0))
            Predictor(network, card(plan, target), "cpu").logits(image)
            assert rates(network) == {rate}

    @pytest.mark.parametrize("patch", [(8, 8, 8), (8, 8)])
    def test_a_run_over_cases_of_different_spacings(self, tmp_path: Path, patch: tuple[int, ...]) -> None:
        for i, edges in enumerate(((1.0, 1.0, 1.0), (1.0, 1.0, 3.0), (2.0, 1.0, 1.0))):
            image, mask = ball((10, 10, 9), seed=i)
            save(tmp_path / "data" / "imagesTr" / f"case_{i}_0000.nii.gz", image, np.diag([*edges, 1.0]))
            save(tmp_path / "data" / "labelsTr" / f"case_{i}.nii.gz", mask, np.diag([*edges, 1.0]))
        write_description(tmp_path / "data", numTraining=3)
        model = replace(SMALL, reference_spacing_mm=(1.0,) * len(patch))
        length = TrainerConfig(max_epochs=1, steps_per_epoch=1, batch_size=3, accelerator="cpu")
        data = DataConfig(tmp_path / "data", validation_cases=("case_2",))
        run(TrainConfig(data, tmp_path / "run", model, AugmentConfig(), length, patch))
        predictor = load_model(tmp_path / "run", "cpu")
        predictor(np.zeros((10, 10, 9), dtype=np.float32), np.diag([2.0, 1.0, 1.0, 1.0]))
        assert rates(predictor.network) == {(2.0, 1.0, 1.0)[: len(patch)]}
