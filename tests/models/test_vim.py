"""What Vision Mamba does beyond timm's contract: official keys, counts, initialisation, class tokens, resampling."""

import math

import pytest
import timm
import torch
from torch import nn

import ssmvision.models
from ssmvision.layers.class_token import class_token_rows, insert_class_tokens, split_class_tokens
from ssmvision.layers.mamba import MambaMixer
from ssmvision.layers.norm import LayerNorm, RMSNorm
from ssmvision.layers.pos_embed import resample_pos_embed
from ssmvision.models import VisionMamba
from ssmvision.models.vim import checkpoint_filter_fn, default_cfgs
from ssmvision.models.vim_official import OFFICIAL_MODELS

PARAMETERS = {
    "vim_tiny": (7_148_008, 6_955_008),
    "vim_small": (25_796_584, 25_411_584),
    "vim_base": (97_598_440, 96_829_440),
    "vim_tiny_stride8": (7_250_344, 7_057_344),
    "vim_small_stride8": (26_001_256, 25_616_256),
}


def small(**kwargs):
    torch.manual_seed(0)
    return VisionMamba(**{"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 32, "num_classes": 5} | kwargs)


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts_and_keys_are_the_official_ones(name):
    model = timm.create_model(name, device="meta")
    assert count(model) == PARAMETERS[name][0]
    assert len(model.state_dict()) == 415
    model.reset_classifier(0)
    assert count(model) == PARAMETERS[name][1]


def test_every_official_name_builds():
    counts = {count(VisionMamba.from_official_kwargs(**kwargs, device="meta")) for kwargs in OFFICIAL_MODELS.values()}
    assert counts == {both[0] for both in PARAMETERS.values()}


def test_mixer_keys_are_the_official_ones_in_order():
    keys = [k.removeprefix("layers.0.") for k in small().state_dict() if k.startswith("layers.0.")]
    weights = ["conv1d.weight", "conv1d.bias", "x_proj.weight", "dt_proj.weight", "dt_proj.bias"]
    expected = ["A_log", "D", "A_b_log", "D_b", "in_proj.weight", *weights]
    expected += [w.replace(".", "_b.", 1) for w in weights] + ["out_proj.weight"]
    assert keys == [f"mixer.{k}" for k in expected] + ["norm.weight"]


def test_pretrained_configuration():
    for name in PARAMETERS:
        cfg = default_cfgs[name].default
        assert cfg.hf_hub_id.startswith("hustvl/Vim-")
        assert cfg.hf_hub_filename.endswith("acc.pth")
        assert (cfg.mean, cfg.std) == (timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD)
        assert (cfg.crop_pct, cfg.interpolation, cfg.input_size) == (0.875, "bicubic", (3, 224, 224))
        assert cfg.license
        assert cfg.origin_url
        assert cfg.paper_ids == "arXiv:2401.09417"
        assert any("non-commercial" in note for note in cfg.notes)


class TestInitialisation:
    def test_scan_parameters(self):
        mixer = small(embed_dim=64).layers[0].mixer
        rows = torch.log(torch.arange(1.0, 17.0)).expand(128, 16)
        for name, value in {"A_log": rows, "A_b_log": rows, "D": torch.ones(128), "D_b": torch.ones(128)}.items():
            torch.testing.assert_close(getattr(mixer, name).detach(), value)
        step = nn.functional.softplus(mixer.dt_proj.bias.detach())
        assert step.min() >= 1e-4
        assert step.max() <= 0.1 + 1e-6
        assert step.std() > 0.01
        assert mixer.dt_proj_b.bias.abs().max() == 0
        for linear in (mixer.dt_proj, mixer.dt_proj_b):
            assert 0.8 * 4**-0.5 < linear.weight.abs().max() <= 4**-0.5

    def test_backward_steps_may_start_like_the_forward_ones(self):
        mixer = small(mixer_args={"backward_dt_init": "mamba"}).layers[0].mixer
        assert nn.functional.softplus(mixer.dt_proj_b.bias.detach()).max() <= 0.1 + 1e-6

    def test_stem_tokens_head_and_output_projection(self):
        model = small(embed_dim=64, depth=4, num_classes=500)
        for weight in (model.pos_embed, model.head.weight):
            assert weight.std().item() == pytest.approx(0.02, rel=0.15)
        assert 0.01 < model.cls_token.std() < 0.04
        assert model.patch_embed.proj.weight.std().item() == pytest.approx((3 * 64) ** -0.5, rel=0.1)
        assert model.patch_embed.proj.bias.abs().max() == 0
        assert model.head.bias.abs().max() == 0
        bound = math.sqrt(1 / 128) / math.sqrt(4)
        largest = model.layers[0].mixer.out_proj.weight.abs().max().item()
        assert 0.95 * bound < largest <= bound
        assert model.layers[0].mixer.conv1d.bias.abs().max() > 0.1


class TestForward:
    @pytest.mark.parametrize("kind", ["middle", "first", "double", "none"])
    def test_class_tokens_sit_where_they_should(self, kind):
        model = small(class_token=kind, global_pool="avg").eval()
        model.pos_embed.data.zero_()
        for i, name in enumerate(model.class_token_names):
            getattr(model, name).data.fill_(100.0 + i)
        tokens = model.embed(torch.zeros(2, 3, 32, 32))
        expected = {"middle": [8], "first": [0], "double": [0, 17], "none": []}[kind]
        assert (tokens[0, :, 0] > 50).nonzero().flatten().tolist() == expected
        assert list(model.class_token_rows(tokens.shape[1])) == expected
        patches, classes = model.split_tokens(tokens)
        assert patches.shape == (2, 16, 32)
        assert patches.abs().max() < 50
        assert classes.shape == (2, len(expected), 32)
        assert (classes > 50).all()

    def test_position_row_of_the_middle_belongs_to_the_class_token(self):
        model = small().eval()
        before = model.embed(torch.zeros(1, 3, 32, 32))
        model.pos_embed.data[:, 8] += 1
        changed = (model.embed(torch.zeros(1, 3, 32, 32)) - before).abs().amax(-1)[0] > 0.5
        assert changed.nonzero().flatten().tolist() == [8]

    @pytest.mark.parametrize(("pool", "rows"), [("token", [8]), ("avg", [*range(8), *range(9, 17)]), ("last", [16])])
    def test_pooling(self, pool, rows):
        model = small(global_pool=pool)
        tokens = torch.randn(2, 17, 32)
        torch.testing.assert_close(model.forward_head(tokens, pre_logits=True), tokens[:, rows].mean(1))

    def test_pooling_of_logits_and_no_pooling(self):
        tokens = torch.randn(2, 17, 32)
        model = small(global_pool="max_logits")
        torch.testing.assert_close(model.forward_head(tokens), model.head(tokens).amax(1))
        assert small(global_pool="").forward_head(tokens).shape == (2, 17, 5)

    def test_shared_directions_reverse_the_convolved_sequence(self):
        torch.manual_seed(0)
        mixer = MambaMixer(8, d_state=4, bidirectional=True, shared_directions=True, merge="sum").double()
        single = MambaMixer(8, d_state=4).double()
        mixer.A_b_log.data += 0.3
        single.load_state_dict({k: v for k, v in mixer.state_dict().items() if k != "A_b_log"})
        tokens = torch.randn(2, 7, 8, dtype=torch.float64)
        forward, backward = mixer.scan(tokens, merge="none").unbind(1)
        torch.testing.assert_close(forward, single.scan(tokens))
        x, z = single.in_proj(tokens).chunk(2, -1)
        u, low, B, C = single._project(x, "forward")
        state, expected = torch.zeros(2, 16, 4, dtype=torch.float64), []
        for t in reversed(range(7)):
            step = nn.functional.softplus(low[:, t] + single.dt_proj.bias).unsqueeze(-1)
            decay = torch.exp(-step * mixer.A_b_log.exp())
            state = decay * state + step * B[:, t, None] * u[:, t, :, None]
            expected.insert(0, (state * C[:, t, None]).sum(-1) + single.D * u[:, t])
        torch.testing.assert_close(backward, torch.stack(expected, 1) * nn.functional.silu(z))

    def test_flipping_input_and_swapping_directions_is_a_symmetry(self):
        torch.manual_seed(0)
        mixer = MambaMixer(16, bidirectional=True)
        swapped = MambaMixer(16, bidirectional=True)
        names = {"A_log": "A_b_log", "A_b_log": "A_log"}
        for k in ("D", "conv1d.weight", "conv1d.bias", "x_proj.weight", "dt_proj.weight", "dt_proj.bias"):
            back = "D_b" if k == "D" else k.replace(".", "_b.", 1)
            names |= {k: back, back: k}
        swapped.load_state_dict({names.get(k, k): v for k, v in mixer.state_dict().items()})
        tokens = torch.randn(2, 9, 16)
        torch.testing.assert_close(swapped(tokens.flip(1)).flip(1), mixer(tokens), atol=1e-5, rtol=1e-5)

    def test_residual_stream_stays_float32_in_low_precision(self):
        model = small().to(torch.bfloat16)
        hidden, residual = model.layers[0](torch.randn(1, 17, 32, dtype=torch.bfloat16))
        assert (hidden.dtype, residual.dtype) == (torch.bfloat16, torch.float32)
        assert model(torch.randn(1, 3, 32, 32, dtype=torch.bfloat16)).dtype == torch.bfloat16
        plain = small(residual_in_fp32=False).to(torch.bfloat16)
        assert plain.layers[0](torch.randn(1, 17, 32, dtype=torch.bfloat16))[1].dtype == torch.bfloat16

    def test_drop_path_rates_grow_linearly_to_the_full_rate(self):
        model = small(depth=4, drop_path_rate=0.3)
        rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in model.layers]
        assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])
        assert small(depth=1, drop_path_rate=0.3).layers[0].drop_path.drop_prob == 0.3

    def test_dropped_mixers_leave_the_embedding(self):
        model = small(depth=3, drop_path_rate=1.0)
        model.layers[1].drop_path.drop_prob = 1.0
        model.layers[0].drop_path = model.layers[1].drop_path
        image = torch.randn(2, 3, 32, 32)
        torch.testing.assert_close(model.forward_features(image), model.norm_f(model.embed(image)))

    @pytest.mark.parametrize(
        ("norm", "own", "theirs"), [("rms", RMSNorm, nn.RMSNorm), ("layer", LayerNorm, nn.LayerNorm)]
    )
    def test_norms_compute_in_the_inputs_precision(self, norm, own, theirs):
        x = torch.randn(4, 16)
        ours, reference = own(16, eps=1e-5), theirs(16, eps=1e-5)
        torch.testing.assert_close(ours(x), reference(x))
        low = ours.to(torch.bfloat16)(x)
        torch.testing.assert_close(low, reference(x).to(torch.bfloat16), atol=0, rtol=0)


class TestResampling:
    def test_class_row_moves_to_the_new_middle(self):
        rows = torch.zeros(1, 17, 4)
        rows[:, 8] = 7.0
        moved = resample_pos_embed(rows, (4, 4), (6, 5), "middle")
        assert moved.shape == (1, 31, 4)
        assert (moved[0, :, 0] != 0).nonzero().flatten().tolist() == [15]
        official = resample_pos_embed(rows, (4, 4), (6, 5), "middle", rule="official")
        assert (official[0, :, 0] != 0).sum() > 1

    @pytest.mark.parametrize("kind", ["middle", "first", "double", "none"])
    def test_split_undoes_insert(self, kind):
        patches = torch.randn(2, 9, 3)
        rows = class_token_rows(kind, 9)
        tokens = tuple(torch.randn(1, 1, 3) for _ in rows)
        back, classes = split_class_tokens(insert_class_tokens(patches, tokens, rows), rows)
        assert torch.equal(back, patches)
        assert torch.equal(classes, torch.cat([t.expand(2, -1, -1) for t in tokens] or [patches[:, :0]], 1))

    def test_smooth_embedding_keeps_its_shape_on_a_finer_grid(self):
        ramp = torch.linspace(0, 1, 8).view(1, 8, 1).expand(8, 8, 1).reshape(1, 64, 1)
        moved = resample_pos_embed(ramp, (8, 8), (16, 16), "none").view(16, 16)
        torch.testing.assert_close(moved[6, 4:12], torch.linspace(-1 / 28, 1 + 1 / 28, 16)[4:12], atol=0.01, rtol=0)

    def test_wrong_row_count_is_named(self):
        with pytest.raises(ValueError, match="20 rows, a 4x4 grid with 1 class token"):
            resample_pos_embed(torch.zeros(1, 20, 4), (4, 4), (5, 5))
        with pytest.raises(ValueError, match="bilinear"):
            resample_pos_embed(torch.zeros(1, 17, 4), (4, 4), (5, 5), rule="bilinear")

    def test_set_input_size_changes_grid_kernel_and_features(self):
        model = small()
        model.set_input_size((48, 64))
        assert model(torch.randn(1, 3, 48, 64)).shape == (1, 5)
        model.set_input_size((48, 64), patch_size=16)
        assert model.patch_embed.stride == (16, 16)
        assert model.patch_embed.grid_size == (3, 4)
        assert model.pos_embed.shape[1] == 13
        assert model.feature_info[0]["reduction"] == 16
        assert model(torch.randn(1, 3, 48, 64)).shape == (1, 5)
        with pytest.raises(ValueError, match="stride"):
            small(stride=4).set_input_size(patch_size=5)

    def test_overlapping_patches_keep_their_overlap(self):
        model = small(stride=4)
        model.set_input_size(patch_size=16)
        assert model.patch_embed.stride == (8, 8)
        assert model.patch_embed.grid_size == (3, 3)

    def test_weights_move_to_another_size_and_patch(self):
        source, target = small(), small(img_size=(48, 64), patch_size=16)
        state = checkpoint_filter_fn({"model": source.state_dict(), "epoch": 3}, target)
        target.load_state_dict(state)
        assert target(torch.randn(1, 3, 48, 64)).shape == (1, 5)
        plain = checkpoint_filter_fn(source.state_dict(), small())
        assert all(torch.equal(plain[k], v) for k, v in source.state_dict().items())

    def test_stride_8_grid_of_224_is_recognised(self):
        model = timm.create_model("vim_tiny_stride8", depth=1)
        assert model._source_grid(729) == (27, 27)
        assert model.patch_embed.grid_size == (27, 27)

    def test_non_square_source_needs_its_grid(self):
        state = small(img_size=(32, 24)).state_dict()
        with pytest.raises(ValueError, match="source_grid"):
            checkpoint_filter_fn(state, small())
        moved = small().convert_official_state_dict(state, source_grid=(4, 3))
        assert moved["pos_embed"].shape == (1, 17, 32)


class TestPretrained:
    def test_official_checkpoint_loads_through_timm(self):
        source = timm.create_model("vim_tiny", depth=2, img_size=64)
        overlay = {"state_dict": {"model": source.state_dict(), "model_ema": {}, "epoch": 299}}
        kwargs = {"pretrained": True, "pretrained_cfg_overlay": overlay, "depth": 2}
        model = timm.create_model("vim_tiny", **kwargs, in_chans=1, num_classes=5, img_size=96)
        assert torch.equal(model.layers[1].mixer.A_b_log, source.layers[1].mixer.A_b_log)
        summed = source.patch_embed.proj.weight.sum(1, keepdim=True)
        torch.testing.assert_close(model.patch_embed.proj.weight.detach(), summed.detach())
        assert model(torch.randn(1, 1, 96, 96)).shape == (1, 5)

    def test_base_takes_the_averaged_weights(self):
        source = timm.create_model("vim_base", depth=1, img_size=32)
        ema = {k: v + 1 for k, v in source.state_dict().items()}
        overlay = {"state_dict": {"model": source.state_dict(), "model_ema": ema}}
        model = timm.create_model("vim_base", pretrained=True, pretrained_cfg_overlay=overlay, depth=1, img_size=32)
        assert torch.equal(model.head.bias, ema["head.bias"])


class TestOptions:
    def test_official_options_map(self):
        model = VisionMamba.from_official_kwargs(
            img_size=32, depth=1, embed_dim=32, channels=2, num_classes=3, bimamba_type="v1", init_layer_scale=0.1,
            if_cls_token=False, final_pool_type="none", rms_norm=False, norm_epsilon=1e-6, drop_rate=0.2,
            ssm_cfg={"d_conv": 3, "expand": 1, "conv_bias": False, "bias": True, "dt_rank": 5}, d_state=8,
        )  # fmt: skip
        mixer = model.layers[0].mixer
        assert mixer.conv1d.bias is None
        assert mixer.conv1d.kernel_size == (3,)
        assert mixer.in_proj.bias is not None
        assert (mixer.merge, mixer.d_inner, mixer.dt_rank, mixer.A_b_log.shape) == ("sum", 32, 5, (32, 8))
        assert mixer.gamma.tolist() == pytest.approx([0.1] * 32)
        assert not hasattr(mixer, "conv1d_b")
        assert (model.global_pool, model.class_token, model.norm_f.eps) == ("last", "none", 1e-6)
        assert model.pos_drop.p == 0.2
        assert isinstance(model.norm_f, nn.LayerNorm)
        assert model.eval()(torch.randn(1, 2, 32, 32)).shape == (1, 3)

    @pytest.mark.parametrize(
        "kwargs",
        [
            {"if_devide_out": True},
            {"if_rope": True},
            {"if_bidirectional": True},
            {"flip_img_sequences_ratio": 0.5},
            {"bimamba_type": "v3"},
            {"final_pool_type": "median"},
            {"ssm_cfg": {"use_fast_path": False}},
            {"ssm_cfg": {"dt_init": "constant"}},
        ],
    )
    def test_what_cannot_be_built_is_refused_by_name(self, kwargs):
        name = next(iter(kwargs))
        with pytest.raises(ValueError, match=name):
            VisionMamba.from_official_kwargs(**kwargs)

    @pytest.mark.parametrize(
        ("kwargs", "told"),
        [
            ({"class_token": "last"}, "class_token='last'"),
            ({"class_token": "none"}, "needs a class token"),
            ({"global_pool": "mean"}, "global_pool='mean'"),
            ({"norm": "batch"}, "norm='batch'"),
            ({"pos_embed": "rope"}, "pos_embed='rope'"),
            ({"img_size": 4}, "smaller than one 8x8 patch"),
        ],
    )
    def test_bad_options_are_named(self, kwargs, told):
        with pytest.raises(ValueError, match=told):
            small(**kwargs)

    def test_bad_inputs_are_named(self):
        with pytest.raises(ValueError, match="dynamic_img_size"):
            small()(torch.randn(1, 3, 40, 32))
        with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
            small()(torch.randn(1, 1, 32, 32))
        with pytest.raises(ValueError, match="NHWC"):
            small().forward_intermediates(torch.randn(1, 3, 32, 32), output_fmt="NHWC")

    def test_no_position_embedding(self):
        model = small(pos_embed="none", dynamic_img_size=True)
        assert "pos_embed" not in model.state_dict()
        assert model(torch.randn(1, 3, 40, 48)).shape == (1, 5)

    def test_weight_decay_exclusions(self):
        assert small(class_token="double").no_weight_decay() == {"pos_embed", "cls_token_head", "cls_token_tail"}
        excluded = small(ssm_weight_decay=False).no_weight_decay()
        assert {"layers.1.mixer.A_b_log", "layers.0.mixer.D", "pos_embed"} <= excluded
        assert excluded <= set(small().state_dict())


def test_models_package_lists_the_network():
    assert ssmvision.models.VisionMamba is VisionMamba
