"""S4ND's networks: published sizes, parity, sizes and rates of the input, inflation to 3D, U-Net mixers."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor

from ssmvision.layers.s4nd import S4ND
from ssmvision.models import S4NDConvNeXt, S4NDVisionTransformer, UMambaEnc, USegS4NDBot, USegS4NDEnc
from ssmvision.models.s4nd_inflate import inflate_state_dict, reset_time_kernels
from tests.parity_cases.s4nd import matches, run

GOLDEN = Path(__file__).parents[1] / "golden" / "s4nd"
TINY = {"num_classes": 5, "dims": (6, 8, 10, 12), "depths": (1, 1, 1, 1), "d_state": 8}
CASES = {name: list(group) for name, group in itertools.groupby(run(GOLDEN), key=lambda c: c.case)}


def image(*size: int, channels: int = 3) -> Tensor:
    return torch.randn(1, channels, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("case", CASES)
def test_parity_with_the_authors(case: str) -> None:
    assert matches(GOLDEN)
    assert [c for c in CASES[case] if not c.passed] == []


@pytest.mark.parametrize(
    ("name", "classes", "parameters"),
    [
        ("s4nd_convnext_tiny", 1000, 29_980_456),
        ("s4nd_convnext_tiny_stem", 1000, 30_007_057),
        ("s4nd_convnext_tiny_full", 1000, 29_409_457),
        ("s4nd_convnext_micro", 40, 9_644_209),
        ("s4nd_vit_base", 1000, 88_786_408),
    ],
)
def test_published_numbers_of_parameters(name: str, classes: int, parameters: int) -> None:
    model = timm.create_model(name, num_classes=classes, device="meta")
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_published_number_of_parameters_in_3d() -> None:
    model = S4NDConvNeXt((30, 224, 224), num_classes=51, spatial_dims=3, device="meta")
    assert sum(p.numel() for p in model.parameters()) == 30_113_235


class TestSizes:
    def test_kernels_follow_the_nominal_size(self) -> None:
        model = S4NDConvNeXt(64, downsample="s4nd", **TINY)
        assert model.stages[1].downsample[1].conv.l_max == (16, 16)
        assert [stage.blocks[0].conv_dw.l_max for stage in model.stages] == [(16, 16), (8, 8), (4, 4), (2, 2)]
        model.set_input_size((96, 32))
        assert model.stages[1].downsample[1].conv.l_max == (24, 8)
        assert [stage.blocks[0].conv_dw.l_max for stage in model.stages] == [(24, 8), (12, 4), (6, 2), (3, 1)]

    def test_other_sizes_run_with_the_kernels_there_are(self) -> None:
        model = S4NDConvNeXt(64, **TINY).eval()
        assert model(image(96, 45)).shape == (1, 5)

    def test_the_rate_reaches_every_layer(self) -> None:
        model = S4NDConvNeXt(64, s4nd_args={"kernel": "s4d"}, **TINY).eval()
        before = model(image(32, 64))
        model.set_rate((2.0, 1.0))
        assert {m.rate for m in model.modules() if isinstance(m, S4ND)} == {(2.0, 1.0)}
        assert not torch.equal(model(image(32, 64)), before)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"img_size": 16}, "too small: a map of"),
            ({"img_size": (64, 64, 64)}, "one positive size an axis"),
            ({"img_size": 64, "stem": "conv"}, "choose from"),
            ({"img_size": 64, "depths": (1, 1)}, "one entry a stage"),
            ({"img_size": 64, "global_pool": "sum"}, "choose from 'avg'"),
        ],
    )
    def test_settings_that_cannot_be(self, options: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            S4NDConvNeXt(**(TINY | options))


class TestOptimizer:
    @pytest.mark.parametrize("network", [S4NDConvNeXt, S4NDVisionTransformer])
    def test_groups(self, network: type) -> None:
        small = TINY if network is S4NDConvNeXt else {"depth": 2, "embed_dim": 24, "d_state": 8, "num_classes": 5}
        model = network(64, **small)
        groups = model.param_groups(lr=4e-3, weight_decay=0.05)
        assert {(g["lr"], g["weight_decay"]) for g in groups} == {(4e-3, 0.05), (4e-3, 0.0), (1e-3, 0.05), (1e-3, 0.0)}
        names = {id(p): name for name, p in model.named_parameters()}
        fixed = {names[id(p)].rpartition(".")[2] for g in groups if g["lr"] == 1e-3 for p in g["params"]}
        assert fixed == {"inv_dt", "A_real", "A_imag", "B", "C", "P"}
        assert sum(len(g["params"]) for g in groups) == len(names)


class TestInflation:
    def pair(self) -> tuple[S4NDConvNeXt, S4NDConvNeXt]:
        torch.manual_seed(0)
        flat = S4NDConvNeXt(64, ls_init_value=0.5, **TINY)
        solid = S4NDConvNeXt((8, 64, 64), spatial_dims=3, ls_init_value=0.5, **TINY)
        reset_time_kernels(solid)
        return flat, solid

    def test_kernels_move_by_one_axis(self) -> None:
        flat, solid = self.pair()
        solid.load_state_dict(inflate_state_dict(flat.state_dict(), solid))
        two, three = flat.stages[0].blocks[0].conv_dw, solid.stages[0].blocks[0].conv_dw
        for axis in (0, 1):
            torch.testing.assert_close(three.kernel[axis + 1](16), two.kernel[axis](16))
        assert torch.equal(three.D, two.D)
        assert not torch.equal(solid.head.fc.weight, flat.head.fc.weight)
        torch.testing.assert_close(solid.stem[0].weight.sum(2), flat.stem[0].weight)
        solid.load_state_dict(inflate_state_dict(flat.state_dict(), solid, keep_head=True))
        assert torch.equal(solid.head.fc.weight, flat.head.fc.weight)

    def test_time_kernels_are_short_and_fixed(self) -> None:
        _, solid = self.pair()
        kernel = solid.stages[0].blocks[0].conv_dw.kernel[0]
        torch.testing.assert_close(torch.exp(kernel.inv_dt), torch.full_like(kernel.inv_dt, 2.0))
        one_tap = torch.zeros(2, 6, 4)
        one_tap[..., 0] = 1
        torch.testing.assert_close(kernel(4).detach(), one_tap, rtol=0, atol=1e-4)

    def test_a_still_video_looks_like_its_frame_to_the_stem(self) -> None:
        flat, solid = self.pair()
        solid.load_state_dict(inflate_state_dict(flat.state_dict(), solid))
        frame = image(64, 64)
        video = frame.unsqueeze(2).expand(-1, -1, 8, -1, -1)
        torch.testing.assert_close(solid.stem(video)[:, :, 0], flat.stem(frame), rtol=1e-4, atol=1e-4)

    def test_weights_that_do_not_fit(self) -> None:
        flat, solid = self.pair()
        with pytest.raises(ValueError, match="this one is 2D"):
            inflate_state_dict(flat.state_dict(), flat)
        with pytest.raises(ValueError, match="this one is 2D"):
            reset_time_kernels(flat)
        with pytest.raises(ValueError, match="have no stages"):
            inflate_state_dict({k: v for k, v in flat.state_dict().items() if "gamma" not in k}, solid)
        wide = S4NDConvNeXt(64, **(TINY | {"dims": (12, 16, 20, 24)}))
        with pytest.raises(ValueError, match=r"but stem\.0\.weight is"):
            inflate_state_dict(wide.state_dict(), solid)


SHAPE = {"features_per_stage": (4, 8), "n_conv_per_stage": 1, "n_conv_per_stage_decoder": 1}


class TestUSegS4ND:
    @pytest.mark.parametrize("dims", [2, 3])
    def test_both_networks_train(self, dims: int) -> None:
        size = (16, 8, 12)[:dims]
        for model in (USegS4NDBot(dims, 1, 2, **SHAPE), USegS4NDEnc(dims, 1, 2, input_size=size, **SHAPE)):
            logits = model(image(*size, channels=1))
            assert logits.shape == (1, 2, *size)
            logits.square().sum().backward()
            kernels = {n: p for n, p in model.named_parameters() if ".kernel." in n}
            assert kernels
            assert all(p.grad is not None and p.grad.isfinite().all() for p in kernels.values())
            assert {n for n in kernels if not n.endswith(".C")} == model.no_weight_decay()

    def test_no_stage_is_tied_to_the_patch_size(self) -> None:
        model = USegS4NDEnc(3, 1, 2, input_size=8, **SHAPE)
        assert model.fixed_input_size is None
        assert model(image(16, 8, 12, channels=1)).shape == (1, 2, 16, 8, 12)

    def test_the_name_works_everywhere(self) -> None:
        torch.manual_seed(0)
        first = USegS4NDEnc(2, 1, 2, input_size=16, **SHAPE)
        second = UMambaEnc(2, 1, 2, input_size=16, mixer="s4nd", **SHAPE)
        second.load_state_dict(first.state_dict())
        x = image(16, 16, channels=1)
        assert torch.equal(first(x), second(x))

    def test_spacing_sets_the_rate_of_each_axis(self) -> None:
        model = USegS4NDBot(3, 1, 2, **SHAPE)
        model.set_spacing((5.0, 0.8, 0.8), (2.5, 0.8, 1.6))
        assert {m.rate for m in model.modules() if isinstance(m, S4ND)} == {(2.0, 1.0, 0.5)}
        one = (1.0, 1.0, 1.0)
        for bad in (0.0, -1.0, float("nan"), float("inf")):
            for spacing, reference in (((1.0, 1.0, bad), one), (one, (bad, 1.0, 1.0)), ((1.0, 1.0), one)):
                with pytest.raises(ValueError, match="one positive, finite value an axis"):
                    model.set_spacing(spacing, reference)
        assert {m.rate for m in model.modules() if isinstance(m, S4ND)} == {(2.0, 1.0, 0.5)}
