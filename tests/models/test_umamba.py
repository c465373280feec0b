"""U-Mamba networks as users meet them: shapes, switches, mixers, precision, errors."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from ssmvision.layers.mamba import MambaMixer
from ssmvision.layers.mamba_layer import MambaLayer
from ssmvision.layers.mixers import Mixer, mixer_names, register_mixer, resolve_mixer
from ssmvision.layers.unet_blocks import residual_stage
from ssmvision.models.umamba import UMambaBot, UMambaEnc

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = {2: (16, 24), 3: (4, 8, 16)}
SMALL: dict[str, Any] = {"features_per_stage": [4, 8, 12], "n_conv_per_stage": 2}
TINY: dict[str, Any] = {"features_per_stage": [4, 8], "n_conv_per_stage": 1, "n_conv_per_stage_decoder": 1}
EVERY = [(net, dims) for net in (UMambaBot, UMambaEnc) for dims in (2, 3)]


def make(net: type[UMambaBot] | type[UMambaEnc], dims: int, **settings: Any) -> Any:
    torch.manual_seed(0)
    if net is UMambaEnc:
        settings.setdefault("input_size", SIZES[dims])
    return net(dims, 1, 2, **{**SMALL, **settings})


def image(dims: int, size: tuple[int, ...] | None = None, batch: int = 1) -> Tensor:
    return torch.randn(batch, 1, *(size or SIZES[dims]), generator=torch.Generator().manual_seed(1))


class Scale(nn.Module):
    """A mixer on tokens or grids that tells its input's shape and dtype."""

    def __init__(self, dim: int, spatial_dims: int | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.spatial_dims = spatial_dims
        self.seen: list[tuple[torch.Size, torch.dtype]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((x.shape, x.dtype))
        weight = self.weight if self.spatial_dims is None else self.weight.view(-1, *[1] * self.spatial_dims)
        return x * weight


@pytest.mark.parametrize(("net", "dims"), EVERY)
def test_shapes_and_deep_supervision(net: Any, dims: int) -> None:
    model, x = make(net, dims, deep_supervision=True), image(dims, batch=2)
    outputs = model(x)
    assert [tuple(o.shape) for o in outputs] == [(2, 2, *SIZES[dims]), (2, 2, *(n // 2 for n in SIZES[dims]))]
    model.deep_supervision = False
    single = model(x)
    assert torch.equal(single, outputs[0])
    single.sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is None} == {
        "decoder.seg_layers.0.weight",
        "decoder.seg_layers.0.bias",
    }


def test_defaults() -> None:
    with torch.device("meta"):
        model = UMambaBot(3, 1, 2)
    assert model.shape.features == (32, 64, 128, 256, 320, 320)
    assert model.shape.divisor == (32, 32, 32)
    assert model(torch.zeros(1, 1, 32, 32, 64, device="meta")).shape == (1, 2, 32, 32, 64)
    assert not model.deep_supervision


@pytest.mark.parametrize(("net", "dims"), EVERY)
def test_the_twin_is_the_same_network_without_mixing(net: Any, dims: int) -> None:
    model, twin = make(net, dims), make(net, dims, mixer="none")
    state = model.state_dict()
    rest = {key: value for key, value in state.items() if "mamba" not in key}
    assert twin.state_dict().keys() == rest.keys() != state.keys()
    twin.load_state_dict(rest)
    for module in model.modules():
        if isinstance(module, MambaLayer):
            module.forward = lambda t: t  # type: ignore[method-assign, assignment]
    assert torch.equal(twin(image(dims)), model(image(dims)))


def test_twin_of_enc_runs_at_any_size() -> None:
    twin = make(UMambaEnc, 3, mixer="none", input_size=(8, 8, 8))
    assert twin.fixed_input_size is None
    assert twin(image(3, (4, 8, 16))).shape == (1, 2, 4, 8, 16)


def test_2d_and_3d_differ_as_published() -> None:
    flat, volume = make(UMambaEnc, 2), make(UMambaEnc, 3)
    assert [isinstance(layer, MambaLayer) for layer in flat.encoder.mamba_layers] == [True, False, True]
    assert all(isinstance(layer, MambaLayer) for layer in volume.encoder.mamba_layers)
    assert flat.decoder.stages[-1][0].conv1.in_channels == 4
    assert volume.decoder.stages[-1][0].conv1.in_channels == 8


def test_mixer_as_callable_sees_tokens_in_c_order() -> None:
    layer = MambaLayer(3, mixer=lambda dim: nn.Identity())
    x = image(3, (2, 3, 4)).expand(1, 3, 2, 3, 4)
    x = x + torch.arange(3.0).view(1, 3, 1, 1, 1) ** 2
    tokens = torch.nn.functional.layer_norm(x.flatten(2).transpose(1, 2), (3,))
    assert torch.allclose(layer(x).flatten(2).transpose(1, 2), tokens, atol=1e-6)


def test_callable_and_grid_mixers_in_networks() -> None:
    tokens = make(UMambaEnc, 3, mixer=Scale, input_size=(8, 8, 8))
    tokens(image(3, (8, 8, 8)))
    layers = tokens.encoder.mamba_layers
    assert [layer.mamba.seen[0][0] for layer in layers] == [(1, 512, 4), (1, 64, 8), (1, 12, 8)]
    grid = make(UMambaEnc, 3, mixer=Mixer(Scale, layout="grid"), input_size=(8, 8, 8))
    assert grid.fixed_input_size is None
    grid(image(3))
    assert grid.encoder.mamba_layers[2].mamba.seen[0][0] == (1, 12, 1, 2, 4)
    grid_layer = MambaLayer(5, mixer=Mixer(Scale, layout="grid"), spatial_dims=2)
    x = torch.randn(2, 5, 3, 4)
    assert torch.allclose(grid_layer(x), nn.functional.layer_norm(x.movedim(1, -1), (5,)).movedim(-1, 1), atol=1e-6)


def test_named_mixers() -> None:
    model = make(UMambaBot, 2, mixer="mamba_bidirectional")
    assert model(image(2)).shape == (1, 2, *SIZES[2])
    assert "mamba_layer.mamba.A_b_log" in model.no_weight_decay()
    with pytest.raises(ValueError, match=r"'mambo' is unknown; choose from mamba, .*none"):
        make(UMambaBot, 2, mixer="mambo")
    with pytest.raises(ValueError, match="taken"):
        register_mixer("mamba", MambaMixer)
    with pytest.raises(TypeError, match="int"):
        resolve_mixer(3)  # type: ignore[arg-type]
    assert "none" in mixer_names()


def test_a_mixer_that_changes_the_shape_is_refused() -> None:
    layer = MambaLayer(4, mixer=lambda dim: nn.Flatten(1))
    with pytest.raises(ValueError, match=r"Flatten turned \(1, 6, 4\) into \(1, 24\)"):
        layer(torch.zeros(1, 4, 2, 3))
    with pytest.raises(ValueError, match="Identity"):
        MambaLayer(4, mixer="none")
    with pytest.raises(ValueError, match="grid"):
        MambaLayer(4, channel_token=True, mixer=Mixer(Scale, "grid"))


def test_layer_has_no_residual() -> None:
    layer: Any = MambaLayer(4)
    nn.init.zeros_(layer.mamba.out_proj.weight)
    assert torch.count_nonzero(layer(torch.randn(1, 4, 2, 3))) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channel_token", [False, True])
def test_layer_computes_in_float32_under_autocast(dtype: torch.dtype, channel_token: bool) -> None:
    layer: Any = MambaLayer(6, channel_token, mixer=Scale)
    x = torch.randn(2, 6, 2, 3, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(x)
    assert out.dtype == dtype
    assert layer.mamba.seen[0][1] == torch.float32
    assert layer.double()(x.double()).dtype == torch.float64
    assert layer.mamba.seen[1][1] == torch.float64


@pytest.mark.parametrize("dims", [2, 3])
def test_norms_are_pytorchs_without_a_view(dims: int) -> None:
    torch.manual_seed(0)
    block: Any = residual_stage(2, 4, (3,) * dims, 2)
    plain: Any = copy.deepcopy(block)
    kinds = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
    for module in plain.modules():
        if isinstance(module, kinds[dims]):
            module.__class__ = kinds[dims]
    x = torch.randn(2, 2, *(4, 6, 5)[:dims], requires_grad=True)
    results = []
    for net in (block, plain):
        out = net(x)
        results.append((out, *torch.autograd.grad(out.square().sum(), [x, *net.parameters()])))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    norm = block[0].norm1
    assert not norm(block[0].conv1(x))._is_view()
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        norm(torch.zeros(1, 4, *(1,) * dims))


@pytest.mark.parametrize("channel_token", [False, True])
@pytest.mark.parametrize("mixer", ["mamba", "mamba_bidirectional"])
@pytest.mark.parametrize("fused", [False, True])
def test_recomputing_layer_keeps_only_its_map(channel_token: bool, mixer: str, fused: bool) -> None:
    torch.manual_seed(0)
    layer: Any = MambaLayer(24 if channel_token else 6, channel_token, mixer).double()
    layer.mamba.fused = fused
    x = torch.randn(2, 6, 4, 6, dtype=torch.float64, requires_grad=True)
    own = {id(p) for p in (x, *layer.parameters())}
    # Packed weights, and every token's step sizes (low rank), B and C may be kept beside the map.
    columns = len(layer.mamba.routes) * (layer.mamba.dt_rank + 2 * layer.mamba.d_state)
    little = sum(p.numel() for p in layer.parameters()) + columns * x.numel() // layer.dim
    results = []
    for layer.recompute in (False, True):
        kept: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            out = layer(x)
        more = sum(t.numel() for t in kept if id(t) not in own and t._base is not x)
        assert (more <= little) == layer.recompute
        assert out.is_contiguous()
        results.append((out, *torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])))
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-12) for a, b in zip(*results, strict=True))
    with torch.no_grad():
        assert torch.allclose(layer(x), results[0][0], rtol=1e-10, atol=1e-12)


def test_recomputing_layer_in_low_precision() -> None:
    """The map's dtype comes back, whether the mixer follows autocast or not, and gradients have the parameters'."""
    torch.manual_seed(0)
    layer: Any = MambaLayer(8, recompute=True)
    layer.mamba.fused = True
    x = torch.randn(2, 8, 3, 4)
    exact = layer(x)
    for layer.autocast in (False, True):
        low = x.bfloat16().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = layer(low)
        grads = torch.autograd.grad(out.float().square().sum(), [low, *layer.parameters()])
        assert [g.dtype for g in grads] == [torch.bfloat16, *(p.dtype for p in layer.parameters())]
        assert out.dtype == torch.bfloat16
        assert 0 < (out - exact).abs().max() < 0.05


def test_layer_follows_autocast_where_asked() -> None:
    torch.manual_seed(0)
    layer: Any = MambaLayer(8, autocast=True)
    x = torch.randn(1, 8, 2, 3)
    exact = layer(x)
    products: list[torch.dtype] = []
    layer.mamba.in_proj.register_forward_hook(lambda _, args, out: products.append(out.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(x)
    assert (products, out.dtype) == ([torch.bfloat16], torch.float32)
    assert 0 < (out - exact).abs().max() < 0.05


@pytest.mark.parametrize(("net", "dims"), EVERY)
def test_bfloat16_autocast_trains(net: Any, dims: int) -> None:
    model, x = make(net, dims, **TINY), image(dims)
    full = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(x)
    mixed.float().square().mean().backward()
    assert mixed.dtype == torch.bfloat16
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert (mixed - full).norm() < 0.25 * full.norm()


@pytest.mark.parametrize("net", [UMambaBot, UMambaEnc])
def test_a_network_cast_to_bfloat16_runs(net: Any) -> None:
    model = make(net, 2).to(torch.bfloat16)
    assert model(image(2).to(torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize(("net", "dims"), EVERY)
def test_grad_checkpointing_changes_nothing(net: Any, dims: int) -> None:
    model, x = make(net, dims).double(), image(dims).double().requires_grad_()
    calls = []
    for module in model.modules():
        if isinstance(module, MambaLayer):
            module.register_forward_pre_hook(lambda *_: calls.append(1))
    grads = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        out = model(x)
        grads.append(torch.autograd.grad(out.square().sum(), [x, model.encoder.stem[0].conv1.weight]))
        grads[-1] = (out.detach(), *grads[-1])
    layers = sum(isinstance(m, MambaLayer) for m in model.modules())
    assert len(calls) == 3 * layers
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-12) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize(("net", "dims"), [(UMambaBot, 3), (UMambaEnc, 2)])
def test_compiles_into_one_graph_for_all_sizes(net: Any, dims: int) -> None:
    size = {"input_size": (16, 16)} if net is UMambaEnc else {}
    model = make(net, dims, **TINY, **size, deep_supervision=True)
    counter: Any = CompileCounter()  # type: ignore[no-untyped-call]
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
    for shape in ((16, 8, 12)[-dims:], (12, 10, 8)[-dims:]):
        x = image(dims, shape)
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(compiled(x), model(x), strict=True))
    assert counter.frame_count == 1


def test_channel_token_stages_tie_enc_to_its_input_size() -> None:
    model = make(UMambaEnc, 3, input_size=(8, 8, 8))
    assert model.fixed_input_size == (8, 8, 8)
    assert model.encoder.mamba_layers[2].norm.normalized_shape == (8,)
    with pytest.raises(ValueError, match=r"cannot run size \(4, 8, 16\).*input_size=\(8, 8, 8\)"):
        model(image(3))
    with pytest.raises(ValueError, match=r"30 voxels \(channel tokens\), got a map of 24 voxels \(2, 3, 4\)"):
        MambaLayer(30, channel_token=True)(torch.zeros(1, 2, 2, 3, 4))
    tie = make(UMambaEnc, 3, features_per_stage=[4, 8, 16], input_size=(8, 8, 16))
    assert tie.encoder.mamba_layers[2].channel_token is True
    above = make(UMambaEnc, 3, features_per_stage=[4, 8, 15], input_size=(8, 8, 16))
    assert above.encoder.mamba_layers[2].channel_token is False
    assert above(image(3, (8, 8, 8))).shape == (1, 2, 8, 8, 8)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((8, 10, 16), r"\(8, 10, 16\) must be divisible by the strides' product \(4, 4, 4\); pad it to \(8, 12, 16\)"),
        ((4, 4, 4), "one voxel at the bottleneck"),
        ((8, 16), "3 spatial axes"),
    ],
)
def test_sizes_that_do_not_fit(size: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(UMambaBot, 3)(image(3, size))
    with pytest.raises(ValueError, match=message):
        make(UMambaEnc, 3, input_size=size)


def test_strides_per_axis_scale_the_divisor() -> None:
    model = make(UMambaBot, 3, strides=[1, (1, 2, 2), (2, 2, 1)], kernel_sizes=[(1, 3, 3), 3, 5])
    assert model.shape.divisor == (2, 4, 2)
    assert model(image(3, (6, 4, 2))).shape == (1, 2, 6, 4, 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"features_per_stage": [4, 8], "strides": [1, 2, 2]}, "strides 3"),
        ({"kernel_sizes": 2}, "odd"),
        ({"n_conv_per_stage": 0}, "at least 1"),
        ({"n_conv_per_stage_decoder": [1, 1, 1]}, "needs 2 entries, got 3"),
        ({"features_per_stage": [4]}, "at least 2 stages"),
        ({"strides": [1, (2, 2), 2]}, r"strides\[1\] needs 3 entries"),
    ],
)
def test_contradicting_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(UMambaBot, 3, **settings)
    with pytest.raises(ValueError, match="2 or 3"):
        UMambaBot(1, 1, 2)


def test_initialisation_is_the_published_one() -> None:
    torch.manual_seed(0)
    model: Any = UMambaBot(2, 1, 2, features_per_stage=[16, 128])
    conv = model.encoder.stages[1][0].conv2
    expected = (2 / (1 + 0.01**2) / (128 * 9)) ** 0.5
    assert abs(conv.weight.std().item() / expected - 1) < 0.01
    assert torch.count_nonzero(conv.bias) == 0
    mixer = model.mamba_layer.mamba
    assert torch.allclose(mixer.A_log, torch.log(torch.arange(1.0, 17)).expand(256, 16))
    step = nn.functional.softplus(mixer.dt_proj.bias)
    assert step.min() >= 0.99e-3
    assert step.max() <= 0.101
    bound = 128**-0.5  # nn.Linear's own start, not Kaiming's for a slope of 0.01
    assert mixer.in_proj.weight.abs().max() <= bound


def test_no_weight_decay_names_parameters() -> None:
    model = make(UMambaEnc, 2)
    names = model.no_weight_decay()
    assert names <= dict(model.named_parameters()).keys()
    assert "encoder.mamba_layers.2.mamba.A_log" in names
    assert len(names) == 6
