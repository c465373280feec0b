"""VMamba against stored outputs of the official network, its checkpoints, sizes and options."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import timm
import torch
from torch import nn

from ssmvision.convert import convert_state_dict, load_official
from ssmvision.models import VMamba
from ssmvision.models.vmamba import checkpoint_filter_fn
from tests.parity_cases import ss2d, vmamba
from tests.parity_cases.common import filled_state, load_json

pytestmark = pytest.mark.usefixtures("one_thread")

GOLDEN = Path(__file__).parent.parent / "golden" / "vmamba"
CASES = {case["name"]: case for case in load_json(GOLDEN / "manifest.json")["cases"]}
# Of the official code's networks: parameters and state-dict keys.
OFFICIAL = {
    "vmamba_tiny": (30_249_064, 276),
    "vmamba_small": (49_012_840, 492),
    "vmamba_base": (86_614_504, 492),
    "vmamba_tiny_s2l5": (30_705_832, 222),
    "vmamba_small_s2l15": (50_147_752, 402),
    "vmamba_base_s2l15": (88_557_800, 402),
    "vmamba_tiny_vanilla": (22_893_448, 212),
    "vmamba_small_vanilla": (44_417_416, 446),
    "vmamba_base_vanilla": (76_254_056, 446),
}


class CfgNode(dict[str, Any]):
    """Pickles as yacs's configurations do: a dict with attributes, by the name of a class that is not installed."""

    __module__ = "yacs.config"

    def __init__(self, **settings: Any) -> None:
        super().__init__(settings)
        self.__dict__ |= {"__immutable__": True, "__deprecated_keys__": set()}


def build(**kwargs: Any) -> VMamba:
    torch.manual_seed(0)
    return VMamba(**{"depths": (1, 1), "dims": (8, 12), "num_classes": 3} | kwargs)


def image(*size: int) -> torch.Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


def test_the_folder_is_recognised() -> None:
    assert vmamba.matches(GOLDEN)
    assert not ss2d.matches(GOLDEN)
    assert not vmamba.matches(GOLDEN.parent / "ss2d")


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    comparisons = list(vmamba.run_case(GOLDEN, CASES[name]))
    assert len(comparisons) > len(CASES[name]["gradients"]["norms"]) + 5
    assert [c for c in comparisons if not c.passed] == []


@pytest.mark.parametrize("name", OFFICIAL)
def test_sizes_of_the_registered_models(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    assert type(model) is VMamba
    assert (sum(p.numel() for p in model.parameters()), len(model.state_dict())) == OFFICIAL[name]


class TestOfficialCheckpoints:
    def test_first_release_names(self) -> None:
        case = CASES["vanilla"]
        renames = {r"^patch_embed\.0": "patch_embed.proj", r"^patch_embed\.2": "patch_embed.norm", r"^classifier\.": ""}
        renames |= {r"(blocks\.\d)\.norm": r"\1.ln_1", r"\.op\.": ".self_attention."}
        old = {}
        for key, value in filled_state(case).items():
            for pattern, first_name in renames.items():
                key = re.sub(pattern, first_name, key)
            old[key] = value
        assert {"patch_embed.norm.bias", "layers.2.blocks.1.ln_1.weight", "norm.weight", "head.bias"} <= set(old)
        assert "layers.0.downsample.norm.weight" in old
        model = VMamba.from_official_kwargs(**case["config"])
        converted = convert_state_dict(model, {"model": old})
        expected = vmamba.build(case).state_dict()
        assert converted.keys() == expected.keys()
        assert all(torch.equal(converted[key], expected[key]) for key in expected)

    def test_linear_layers_stored_as_convolutions(self) -> None:
        case = CASES["second_cf"]
        state = filled_state(case)
        linear = (".in_proj.weight", ".out_proj.weight", ".fc1.weight", ".fc2.weight")
        stored = {k: v[:, :, None, None] if k.endswith(linear) else v for k, v in state.items()}
        model = vmamba.build(case)
        converted = convert_state_dict(model, stored)
        assert all(torch.equal(converted[k.removeprefix("classifier.")], v) for k, v in state.items())

    def test_averaged_weights_on_request(self) -> None:
        model = build()
        other = {k: v + 1 for k, v in model.state_dict().items()}
        checkpoint = {"model": model.state_dict(), "model_ema": other}
        for prefer, expected in ((False, model.state_dict()), (True, other)):
            got = checkpoint_filter_fn(checkpoint, model, prefer_ema=prefer)
            assert all(torch.equal(got[key], expected[key]) for key in expected)

    def test_weights_of_another_network_are_refused(self) -> None:
        with pytest.raises(ValueError, match="conv2d"):
            convert_state_dict(build(), filled_state(CASES["gated_patch"]))

    def test_whole_training_checkpoints_load_by_timm_and_by_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings = {"depths": (1, 1), "dims": (8, 12)}
        model = timm.create_model("vmamba_tiny", **settings)
        averaged = {k: v + 1 for k, v in model.state_dict().items()}
        official = {k if k.startswith(("patch", "layers")) else f"classifier.{k}": v for k, v in averaged.items()}
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "yacs", ModuleType("yacs"))
            patch.setitem(sys.modules, "yacs.config", ModuleType("yacs.config"))
            sys.modules["yacs.config"].CfgNode = CfgNode  # type: ignore[attr-defined]
            checkpoint = {"model": model.state_dict(), "model_ema": official, "config": CfgNode(lr=1e-3), "epoch": 264}
            torch.save(checkpoint, tmp_path / "official.pth")
        path = tmp_path / "official.pth"
        loaded = load_official(path)
        assert loaded["config"] == {"lr": 1e-3}
        assert type(loaded["config"]) is not CfgNode
        by_timm = timm.create_model(
            "vmamba_tiny",
            pretrained=True,
            pretrained_cfg_overlay={"url": path.as_uri()},
            cache_dir=str(tmp_path / "cache"),
            **settings,
        )
        by_timm_state = by_timm.state_dict()
        assert all(torch.equal(by_timm_state[key], value) for key, value in averaged.items())

    def test_pretrained_weights_are_known(self) -> None:
        for name in OFFICIAL:
            cfg = timm.get_pretrained_cfg(name)
            assert cfg is not None
            assert cfg.url.startswith("https://github.com/MzeroMiko/VMamba/releases/download/%23v")
            assert cfg.license == "mit"


class TestInputSizes:
    @pytest.mark.parametrize("size", [(1, 1), (5, 3), (31, 70)])
    def test_overlapping_convolutions_round_up(self, size: tuple[int, int]) -> None:
        model = build()
        maps = model.forward_intermediates(image(*size), intermediates_only=True)
        assert [tuple(m.shape[2:]) for m in maps] == [tuple(-(-n // s) for n in size) for s in (4, 8)]
        assert model(image(*size)).isfinite().all()

    def test_patches_round_down_and_merging_pads(self) -> None:
        model = build(stem="patch", downsample="merge")
        maps = model.forward_intermediates(image(23, 4), intermediates_only=True)
        assert [tuple(m.shape[2:]) for m in maps] == [(5, 1), (3, 1)]
        with pytest.raises(ValueError, match=r"at least 4 pixels, got \(2, 3, 3, 9\)"):
            model(image(3, 9))

    def test_nominal_size_is_recorded_only(self) -> None:
        model = build(img_size=96)
        before = model(image(32, 40))
        model.set_input_size((64, 32))
        assert model.img_size == (64, 32)
        torch.testing.assert_close(model(image(32, 40)), before)


class TestFeatures:
    def test_formats(self) -> None:
        model = build().eval()
        by_format = {
            fmt: model.forward_intermediates(image(24, 32), output_fmt=fmt, intermediates_only=True, norm=True)
            for fmt in ("NCHW", "NHWC", "NLC")
        }
        for first, last, rows in zip(*by_format.values(), strict=True):
            torch.testing.assert_close(first.permute(0, 2, 3, 1), last)
            torch.testing.assert_close(last.flatten(1, 2), rows)
        torch.testing.assert_close(by_format["NHWC"][-1], model.forward_features(image(24, 32)))
        with pytest.raises(ValueError, match="NHWC"):
            model.forward_intermediates(image(8, 8), output_fmt="NCWH")

    def test_pruned_networks_still_run(self) -> None:
        model = build(depths=(1, 1, 1), dims=(8, 12, 16))
        assert model.prune_intermediate_layers([1], prune_head=False) == [1]
        assert model(image(32, 32)).shape == (2, 4, 4, 12)
        model.reset_classifier(4, "max")
        assert model(image(32, 32)).shape == (2, 4)

    @pytest.mark.parametrize(("pool", "width"), [("avg", 12), ("max", 12), ("avgmax", 12), ("catavgmax", 24)])
    def test_pools(self, pool: str, width: int) -> None:
        model = build(global_pool=pool)
        features = model.forward_features(image(24, 32))
        assert features.shape == (2, 3, 4, 12)
        pooled = model.forward_head(features, pre_logits=True)
        assert pooled.shape == (2, model.head_hidden_size) == (2, width)
        mean, largest = features.mean((1, 2)), features.amax((1, 2))
        expected = {"avg": mean, "max": largest, "avgmax": (mean + largest) / 2}
        torch.testing.assert_close(pooled, expected.get(pool, torch.cat((mean, largest), 1)))
        model.reset_classifier(0, pool)
        torch.testing.assert_close(model(image(24, 32)), pooled)


class TestTraining:
    def test_stochastic_depth_grows_linearly(self) -> None:
        model = build(depths=(1, 2), drop_path_rate=0.4)
        blocks = [block for stage in model.layers for block in stage.blocks]
        assert [getattr(b.drop_path, "drop_prob", 0.0) for b in blocks] == pytest.approx([0.0, 0.2, 0.4])

    def test_linear_layers_start_as_published(self) -> None:
        model = build(dims=(32, 64))
        linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
        assert all(0.015 < m.weight.std() < 0.025 for m in linear if m.out_features > 3)
        assert all(bool((m.bias == 0).all()) for m in linear if m.bias is not None)

    def test_weight_decay_of_state_space_parameters(self) -> None:
        assert build().no_weight_decay() == set()
        names = build(ssm_weight_decay=False).no_weight_decay()
        assert {"layers.0.blocks.0.op.A_logs", "layers.1.blocks.0.op.dt_projs_bias"} <= names

    def test_layer_decay_follows_the_depth(self) -> None:
        from timm.optim import param_groups_layer_decay

        model = build(depths=(2, 1))
        scale = {
            id(p): group["lr_scale"]
            for group in param_groups_layer_decay(model, layer_decay=0.5)
            for p in group["params"]
        }
        order = ["patch_embed.0.weight", "layers.0.blocks.0.op.Ds", "layers.0.blocks.1.op.Ds"]
        order += ["layers.1.blocks.0.op.Ds", "head.weight"]
        scales = [scale[id(model.get_parameter(name))] for name in order]
        assert scales == sorted(set(scales))
        assert scale[id(model.get_parameter("layers.0.downsample.1.weight"))] == scales[2]
        assert scale[id(model.get_parameter("norm.weight"))] == scales[3]


class TestOptions:
    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"stem": "conv"}, "overlap, patch"),
            ({"downsample": "pool"}, "overlap, patch, merge"),
            ({"depths": (1, 1, 1)}, "one entry a stage"),
            ({"global_pool": "mean"}, "catavgmax"),
        ],
    )
    def test_wrong_settings_are_named(self, kwargs: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            build(**kwargs)

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"norm_layer": "BN"}, "BN"),
            ({"gmlp": True}, "gmlp"),
            ({"posembed": True}, "posembed"),
            ({"downsample_version": "none"}, "v1, v2, v3"),
            ({"depth": 3}, "depth"),
            ({"forward_type": "xv1a"}, "xv1a"),
        ],
    )
    def test_unsupported_official_arguments(self, kwargs: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            VMamba.from_official_kwargs(**{"forward_type": "v05_noz"} | kwargs)
        with pytest.raises(ValueError, match="forward_type"):
            VMamba.from_official_kwargs()

    def test_official_arguments(self) -> None:
        given = {"dims": 8, "depths": [1, 1], "use_checkpoint": True, "imgsize": 96, "forward_type": "v2_noz"}
        with torch.device("meta"):
            model = VMamba.from_official_kwargs(**given)
        assert [info["num_chs"] for info in model.feature_info] == [8, 16]
        assert [stage.blocks[0].op.gate for stage in model.layers] == ["none", "none"]
