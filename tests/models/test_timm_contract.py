"""What timm's own test suite asks of a model, asked of every model that we register."""

import copy
import pickle

import pytest
import timm
import torch
from timm.models import model_entrypoint

import ssmvision.models  # noqa: F401  (registers)

# Families, by the start of their names, may shrink a model: the contract is the same at any depth.
SHRINK = {
    "vim": {"depth": 2},
    "s4nd_convnext": {"depths": (1, 1, 1, 1), "dims": (8, 12, 16, 20), "d_state": 8},
    "s4nd_vit": {"depth": 2, "embed_dim": 24, "d_state": 8},
    "ssm_hier": {"depths": (1, 1, 1, 1), "dims": (8, 12, 16, 20), "mixer_args": {"d_state": 8}},
    "ssm_iso": {"depth": 2, "embed_dim": 24, "mixer_args": {"d_state": 8}},
    "vmamba": {"depths": (1, 1, 1, 1), "dims": (8, 12, 16, 20)},
}
# Differ from a smaller sibling in nothing but what is shrunk here, so that only their configuration is their own.
TWINS = {f"vmamba_{size}" for size in ("small", "base", "small_s2l15", "base_s2l15", "small_vanilla", "base_vanilla")}
TWINS |= {"ssm_hier_small", "ssm_iso_small"}
SIZE = 64


def family(name):
    return model_entrypoint(name).__module__


MODELS = [name for name in timm.list_models() if family(name).startswith("ssmvision.")]
FORMS = [name for name in MODELS if name not in TWINS]


def create(name, **kwargs):
    torch.manual_seed(0)
    shrink = next((settings for start, settings in SHRINK.items() if name.startswith(start)), {})
    return timm.create_model(name, **{"img_size": SIZE, "num_classes": 11} | shrink | kwargs)


def image(batch=2, channels=3, size=(SIZE, SIZE)):
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(1))


def test_the_vim_family_is_registered():
    assert {"vim_tiny", "vim_small", "vim_base", "vim_tiny_stride8", "vim_small_stride8"} <= set(MODELS)
    assert set(MODELS) >= TWINS


@pytest.mark.parametrize("name", FORMS)
class TestForwardAndBackward:
    def test_forward(self, name):
        model = create(name).eval()
        with torch.inference_mode():
            out = model(image())
        assert out.shape == (2, 11)
        assert out.isfinite().all()

    def test_every_parameter_gets_a_finite_gradient(self, name):
        model = create(name).train()
        model(image()).mean().backward()
        trained = {k: p.grad for k, p in model.named_parameters() if p.requires_grad}
        assert [k for k, grad in trained.items() if grad is None or not grad.isfinite().all()] == []
        assert [k for k, grad in trained.items() if grad is not None and grad.abs().max() == 0] == []

    def test_checkpointing_changes_nothing(self, name):
        model = create(name, drop_path_rate=0.2).train()
        results = []
        for enable in (False, True):
            model.set_grad_checkpointing(enable)
            model.zero_grad()
            torch.manual_seed(3)
            out = model(image())
            out.mean().backward()
            results.append([out.detach(), *(p.grad.clone() for p in model.parameters() if p.requires_grad)])
        for plain, recomputed in zip(*results, strict=True):
            torch.testing.assert_close(recomputed, plain, rtol=1e-4, atol=1e-5)

    def test_bfloat16_autocast_is_finite_and_near(self, name):
        model = create(name).eval()
        with torch.no_grad():
            exact = model(image())
            with torch.autocast("cpu", dtype=torch.bfloat16):
                low = model(image())
        assert low.isfinite().all()
        assert (low.float() - exact).abs().max() < 0.1 * exact.abs().max()


@pytest.mark.parametrize("name", MODELS)
class TestConfiguration:
    def test_default_cfg_names_what_the_model_has(self, name):
        model = create(name, num_classes=1000)
        cfg, state = model.default_cfg, model.state_dict()
        assert model.pretrained_cfg is cfg
        assert cfg["architecture"] == name
        assert f"{cfg['classifier']}.weight" in state
        assert cfg["first_conv"] is None or f"{cfg['first_conv']}.weight" in state
        assert model.get_classifier() is model.get_submodule(cfg["classifier"])
        assert (cfg["num_classes"], model.num_classes) == (1000, 1000)

    def test_head_is_removed_and_replaced(self, name):
        model = create(name).eval()
        tokens = model.forward_features(image())
        assert model.forward_head(tokens, pre_logits=True).shape == (2, model.head_hidden_size)
        model.reset_classifier(0)
        assert model.num_classes == 0
        assert model(image()).shape == (2, model.head_hidden_size)
        assert f"{model.default_cfg['classifier']}.weight" not in model.state_dict()
        model.reset_classifier(0, "")
        torch.testing.assert_close(model(image()), tokens)
        model.reset_classifier(4, "avg")
        assert model(image()).shape == (2, 4)
        assert create(name, num_classes=0)(image()).shape == (2, model.head_hidden_size)

    def test_parameter_groups_cover_the_model(self, name):
        model = create(name)
        from timm.optim import param_groups_layer_decay, param_groups_weight_decay

        parameters = {k: p for k, p in model.named_parameters() if p.requires_grad}
        assert set(model.no_weight_decay()) <= set(parameters)
        for groups in (param_groups_layer_decay(model, layer_decay=0.9), param_groups_weight_decay(model)):
            assert sum(len(group["params"]) for group in groups) == len(parameters)
        scales = {group["lr_scale"] for group in param_groups_layer_decay(model, layer_decay=0.9)}
        assert len(scales) >= 3

    @pytest.mark.parametrize("channels", [1, 4])
    def test_input_channels(self, name, channels):
        assert create(name, in_chans=channels)(image(channels=channels)).shape == (2, 11)

    def test_copies_and_pickles_compute_the_same(self, name):
        model = create(name).eval()
        expected = model(image())
        for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            torch.testing.assert_close(clone(image()), expected)

    def test_device_and_dtype_reach_every_parameter(self, name):
        model = create(name, device="meta", dtype=torch.float64)
        assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.float64)}


@pytest.mark.parametrize("name", FORMS)
class TestSizes:
    def test_non_square_input(self, name):
        assert create(name, img_size=(64, 96))(image(size=(64, 96))).shape == (2, 11)

    def test_dynamic_size_follows_the_input(self, name):
        fixed = create(name).eval()
        dynamic = create(name, dynamic_img_size=True).eval()
        dynamic.load_state_dict(fixed.state_dict())
        torch.testing.assert_close(dynamic(image()), fixed(image()))
        fixed.set_input_size((96, 64))
        torch.testing.assert_close(dynamic(image(size=(96, 64))), fixed(image(size=(96, 64))))

    def test_set_input_size_there_and_back_keeps_the_shapes(self, name):
        model = create(name)
        shapes = {k: v.shape for k, v in model.state_dict().items()}
        model.set_input_size((96, 128))
        assert model(image(size=(96, 128))).shape == (2, 11)
        model.set_input_size((SIZE, SIZE))
        assert {k: v.shape for k, v in model.state_dict().items()} == shapes


@pytest.mark.parametrize("name", FORMS)
class TestFeatures:
    def test_final_features_are_those_of_forward_features(self, name):
        model = create(name).eval()
        final, intermediates = model.forward_intermediates(image())
        assert torch.equal(final, model.forward_features(image()))
        assert len(intermediates) == len(model.feature_info)

    def test_shapes_follow_feature_info(self, name):
        model = create(name).eval()
        maps = model.forward_intermediates(image(size=(SIZE, SIZE)), intermediates_only=True)
        rows = model.forward_intermediates(image(), intermediates_only=True, output_fmt="NLC")
        for info, spatial, flat in zip(model.feature_info, maps, rows, strict=True):
            assert spatial.shape[:2] == (2, info["num_chs"])
            assert abs(spatial.shape[-1] - SIZE / info["reduction"]) <= 1
            torch.testing.assert_close(spatial.flatten(2).transpose(1, 2), flat)

    def test_dictionary_output_and_early_stop(self, name):
        model = create(name).eval()
        out = model.forward_intermediates(image(), indices=[0], output_dict=True, stop_early=True)
        assert set(out) == {"image_features", "image_intermediates"}
        assert len(out["image_intermediates"]) == 1
        everything = model.forward_intermediates(image(), intermediates_only=True)
        torch.testing.assert_close(out["image_intermediates"][0], everything[0])
        only = model.forward_intermediates(image(), indices=[0], output_dict=True, intermediates_only=True)
        assert set(only) == {"image_intermediates"}

    def test_class_tokens_are_split_off(self, name):
        model = create(name).eval()
        if not getattr(model, "num_class_tokens", 0):
            assert not any("token" in key for key in model.state_dict())
            return
        pairs = model.forward_intermediates(image(), norm=True, return_prefix_tokens=True, intermediates_only=True)
        patches, classes = model.split_tokens(model.forward_features(image()))
        torch.testing.assert_close(pairs[-1][0].flatten(2).transpose(1, 2), patches)
        torch.testing.assert_close(pairs[-1][1], classes)

    def test_features_only(self, name):
        model = create(name).eval()
        backbone = create(name, features_only=True, out_indices=(0, 1)).eval()
        state = {f"model.{k}": v for k, v in model.state_dict().items()}
        backbone.load_state_dict({k: state[k] for k in backbone.state_dict()})
        expected = model.forward_intermediates(image(), indices=[0, 1], intermediates_only=True)
        for got, wanted in zip(backbone(image()), expected, strict=True):
            torch.testing.assert_close(got, wanted)
        assert [f.shape[1] for f in expected] == backbone.feature_info.channels()

    def test_pruning_drops_the_later_blocks(self, name):
        model = create(name).eval()
        expected = model.forward_intermediates(image(), indices=[0], intermediates_only=True)
        before = sum(p.numel() for p in model.parameters())
        assert model.prune_intermediate_layers([0], prune_norm=True) == [0]
        assert sum(p.numel() for p in model.parameters()) < before
        torch.testing.assert_close(model.forward_intermediates(image(), indices=[0], intermediates_only=True), expected)
