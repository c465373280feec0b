"""FusionMamba: the published network number for number, and what ours does better."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.utils.flop_counter import FlopCounterMode

from ssmvision import convert_state_dict
from ssmvision.kernels.selective_scan import selective_scan_nd
from ssmvision.kernels.subgrids import join_subgrids, split_subgrids
from ssmvision.layers.fusion_attention import BiAttention
from ssmvision.layers.fusion_patch import PatchExpanding
from ssmvision.layers.fusion_scan import ESS2D, CrossModalScan
from ssmvision.models import FusionMamba
from tests.parity_cases import fusion
from tests.parity_cases.common import filled_state, load_json

pytestmark = pytest.mark.usefixtures("one_thread")

GOLDEN = Path(__file__).parent.parent / "golden" / "fusion"
CASES = {case["name"]: case for case in load_json(GOLDEN / "manifest.json")["cases"]}
SMALL: dict[str, Any] = {"depths": (1, 2), "depths_decoder": (1, 1), "dims": (8, 16), "drop_path_rate": 0.0}
SKIP = ("skip_even_even", "skip_odd_even", "skip_even_odd", "skip_odd_odd")


def make(**settings: Any) -> FusionMamba:
    torch.manual_seed(0)
    return FusionMamba(**{**SMALL, **settings})


def images(height: int, width: int, batch: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.rand(batch, 1, height, width, generator=generator) for _ in range(2))  # type: ignore[return-value]


def official(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A case's published weights and its arrays."""
    with np.load(GOLDEN / CASES[name]["npz"]) as stored:
        arrays = {key: torch.from_numpy(value) for key, value in stored.items()}
    return filled_state(load_json(GOLDEN / CASES[name]["state"])), arrays


@pytest.fixture(scope="module")
def comparisons() -> dict[str, list[Any]]:
    assert fusion.matches(GOLDEN)
    by_case: dict[str, list[Any]] = {name: [] for name in CASES}
    for comparison in fusion.run(GOLDEN):
        by_case[comparison.case].append(comparison)
    return by_case


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str, comparisons: dict[str, list[Any]]) -> None:
    assert len(comparisons[name]) >= len(CASES[name]["outputs"])
    assert [c for c in comparisons[name] if not c.passed] == []


def multiply_adds(net: FusionMamba) -> float:
    """In units of 10^9, of one 256x256 pair."""
    x = torch.zeros(1, 1, 256, 256, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(x, x)
    return counter.get_total_flops() / 2e9


# parameters of the published network and of ours with gate "own" and "official"; multiply-adds of ours (10^9)
@pytest.mark.parametrize(
    ("build", "state", "sizes", "work"),
    [
        (FusionMamba, "default_64x64", (225_419_541, 163_819_456, 162_271_168), 44.1),
        (FusionMamba.tiny, "tiny", (141_934_037, 101_567_616, 100_019_328), 22.8),
    ],
)
def test_published_sizes_and_stated_savings(build: Any, state: str, sizes: Any, work: Any) -> None:
    with torch.device("meta"):
        nets = [build(faithful=True), build(), build(gate="official")]
    assert tuple(sum(p.numel() for p in net.parameters()) for net in nets) == sizes
    expected = {t["key"]: tuple(t["shape"]) for t in load_json(GOLDEN / f"{state}.state.json")["tensors"]}
    assert {key: tuple(value.shape) for key, value in nets[0].state_dict().items()} == expected
    assert round(multiply_adds(nets[1]), 1) == work


@pytest.mark.parametrize("name", ["reduced", "reduced_dstate8"])
def test_official_weights_without_dead_tensors_give_the_published_output(name: str) -> None:
    state, arrays = official(name)
    net = fusion.network(CASES[name]["config"], faithful=False, gate="official").eval()
    converted = convert_state_dict(net, {"model": {f"module.{key}": value for key, value in state.items()}})
    net.load_state_dict(converted)
    assert not [key for key in converted if "base_mask" in key or "lastconv" in key or key.startswith("Cross_block.0.")]
    with torch.no_grad():
        out = net(arrays["in.x1"], arrays["in.x2"])
    torch.testing.assert_close(out, arrays["out"], rtol=1e-3, atol=5e-4)


def test_official_weights_on_own_gates_load_with_a_warning() -> None:
    state, _ = official("reduced")
    net = fusion.network(CASES["reduced"]["config"], faithful=False)
    with pytest.warns(UserWarning, match="never trained"):
        converted = convert_state_dict(net, state)
    net.load_state_dict(converted)
    key = "Cross_block.2.self_attention_cross.in_proj2.weight"
    assert torch.equal(net.state_dict()[key], state[key])


def test_own_weights_convert_to_themselves_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    for gate in ("own", "official"):
        net = make(gate=gate)
        converted = convert_state_dict(net, net.state_dict())
        assert all(torch.equal(converted[key], value) for key, value in net.state_dict().items())
    assert not [w for w in recwarn if issubclass(w.category, UserWarning)]


def test_a_mask_that_is_not_constant_is_refused() -> None:
    state = make(faithful=True).state_dict()
    key = "layers.1.blocks.0.conv_branch.base_mask"
    state[key] = state[key].clone()
    state[key][0, 0, 0, 0] = 0.5
    with pytest.raises(ValueError, match=r"layers\.1\.blocks\.0\.conv_branch\.base_mask is not all ones"):
        convert_state_dict(make(), state)
    assert convert_state_dict(make(faithful=True), state)[key][0, 0, 0, 0] == 0.5


def test_weights_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit this FusionMamba"):
        convert_state_dict(make(depths=(2, 2), gate="official"), make(faithful=True).state_dict())


def test_every_parameter_of_ours_learns() -> None:
    for gate in ("own", "official"):
        net = make(gate=gate)
        net(*images(24, 16)).square().sum().backward()
        assert [k for k, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_unused_parameters_of_the_faithful_network_get_no_gradient() -> None:
    net = make(faithful=True)
    net(*images(24, 16)).square().sum().backward()
    without = {k for k, p in net.named_parameters() if p.grad is None and p.requires_grad}
    assert without == {
        k for k, p in net.named_parameters() if p.requires_grad and (k.startswith("Cross_block.0.") or "lastconv" in k)
    }
    grad = net.get_parameter("Cross_block.1.self_attention_cross.in_proj2.weight").grad
    assert grad is not None
    assert grad[:32].any()
    assert not grad[32:].any()


def test_second_gate_is_the_second_maps() -> None:
    torch.manual_seed(0)
    scan = CrossModalScan(8)
    x1, x2 = torch.randn(2, 1, 4, 6, 8).unbind(0)
    with torch.no_grad():
        scan.in_proj2.weight[:16] = scan.in_proj1.weight[:16]
        swapped = CrossModalScan(8)
        swapped.load_state_dict(scan.state_dict())
        swapped.in_proj1.weight.copy_(scan.in_proj2.weight)
        swapped.in_proj2.weight.copy_(scan.in_proj1.weight)
    torch.testing.assert_close(scan(x1, x2), swapped(x2, x1))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 2), (8, 16), (23, 17)])
def test_any_size(size: tuple[int, int]) -> None:
    net = make().eval()
    x1, x2 = images(*size, batch=2)
    padding = [(0, 0), (0, 0), *[(0, -n % net.stride) for n in size]]
    with torch.no_grad():
        out = net(x1, x2)
        whole = net(*(torch.from_numpy(np.pad(x.numpy(), padding, mode="reflect")) for x in (x1, x2)))
    assert out.shape == x1.shape
    assert torch.equal(out, whole[..., : size[0], : size[1]])


@pytest.mark.parametrize("size", [(5, 7), (6, 7), (1, 3), (4, 4)])
def test_subgrid_scan_is_the_scan_along_skip_routes(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    scan = ESS2D(8, d_state=4)
    u = torch.randn(2, *size, 16)
    padded = F.pad(u, (0, 0, 0, size[1] % 2, 0, size[0] % 2))
    projected = torch.einsum("bhwe,kce->bkhwc", padded, scan.x_proj_weight)
    low, B, C = projected.split([1, 4, 4], -1)
    whole = selective_scan_nd(
        padded,
        torch.einsum("bkhwr,ker->bkhwe", low, scan.dt_projs_weight),
        -scan.A_logs.exp().unflatten(0, (4, -1)),
        B,
        C,
        scan.Ds.unflatten(0, (4, -1)),
        delta_bias=scan.dt_projs_bias,
        delta_softplus=True,
        routes=SKIP,
    )
    assert isinstance(whole, Tensor)
    torch.testing.assert_close(join_subgrids(scan._scan(split_subgrids(u)), size), whole[:, : size[0], : size[1]])


@pytest.mark.parametrize("size", [(5, 7), (6, 4), (1, 1)])
def test_subgrids_and_back(size: tuple[int, int]) -> None:
    x = torch.randn(2, *size, 3)
    parts = split_subgrids(x)
    assert torch.equal(parts[:, 1, : size[0] // 2], x[:, 1::2, ::2][:, :, : parts.shape[3]])
    assert torch.equal(join_subgrids(parts, size), x)


def test_batch_entries_do_not_mix() -> None:
    net = make().eval()
    x1, x2 = images(16, 24, batch=3)
    with torch.no_grad():
        together = net(x1, x2)
        alone = torch.cat([net(x1[i : i + 1], x2[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_grad_checkpointing_changes_no_gradient() -> None:
    net = make()
    grads = []
    for enable in (False, True):
        net.set_grad_checkpointing(enable)
        net.zero_grad()
        net(*images(16, 16)).square().sum().backward()
        grads.append([p.grad for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_drop_path_rises_in_the_encoder_and_falls_in_the_decoder() -> None:
    net = make(depths=(1, 2), depths_decoder=(2, 1), drop_path_rate=0.2)
    rates = [
        [getattr(block.drop_path, "drop_prob", 0.0) for stage in stages for block in stage.blocks]
        for stages in (net.layers, net.layers_up)
    ]
    assert rates == [[0.0, 0.1, 0.2], [0.2, 0.1, 0.0]]


def test_precisions() -> None:
    net = make().eval()
    x1, x2 = images(16, 16)
    with torch.no_grad():
        exact = net.double()(x1.double(), x2.double())
        single = net.float()(x1, x2)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = net(x1, x2)
    torch.testing.assert_close(single.double(), exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mixed.double(), exact, rtol=0.02, atol=0.02)


def test_compiles_whole() -> None:
    net = make(depths=(1, 1)).eval()
    counter = CompileCounter()
    compiled = torch.compile(net, backend=counter, fullgraph=True, dynamic=False)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*images(37, 52)), net(*images(37, 52)))
    assert counter.frame_count == 1


def test_no_weight_decay_names_parameters() -> None:
    net = make()
    names = net.no_weight_decay()
    assert names <= dict(net.named_parameters()).keys()
    assert {name.rsplit(".", 1)[1] for name in names} == {"A_logs", "Ds", "dt_projs_bias"}
    assert len(names) == 3 * sum(isinstance(m, ESS2D | CrossModalScan) for m in net.modules())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dims": (8, 24)}, "must start with a multiple of 8 and double"),
        ({"dims": (12, 24)}, "must start with a multiple of 8 and double"),
        ({"depths": (1, 1, 1)}, "as many stages, got 3, 2 and 2"),
        ({"gate": "none"}, "choose from 'own', 'official'"),
        ({"faithful": True, "gate": "own"}, "faithful=False"),
        ({"faithful": True, "d_state": 8}, "fusion_d_state"),
    ],
)
def test_contradicting_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_images_that_do_not_fit() -> None:
    x1, x2 = images(16, 20)
    net = make()
    with pytest.raises(ValueError, match=r"one shape, got \(1, 1, 16, 20\) and \(1, 1, 16, 8\)"):
        net(x1, x2[..., :8])
    with pytest.raises(ValueError, match=r"\(B, 1, H, W\)"):
        net(x1.expand(1, 3, 16, 20), x2.expand(1, 3, 16, 20))
    with pytest.raises(ValueError, match="16x0 pixels"):
        net(x1[..., :0], x2[..., :0])
    with pytest.raises(TypeError, match="uint8"):
        net((x1 * 255).byte(), x2)
    with pytest.raises(ValueError, match="multiples of 8 pixels, got 16x20"):
        make(faithful=True)(x1, x2)


@pytest.mark.parametrize(
    ("layer", "message"), [(lambda: BiAttention(4), "reduction"), (lambda: PatchExpanding(3), "3")]
)
def test_layers_too_narrow(layer: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layer()


def test_published_start() -> None:
    net = make()
    scan = net.get_submodule("layers.0.blocks.0.op")
    assert isinstance(scan, ESS2D)
    steps = F.softplus(scan.dt_projs_bias)
    assert steps.min() >= 0.99e-4
    assert steps.max() <= 0.101
    assert torch.allclose(scan.A_logs.exp()[5], torch.arange(1.0, 17.0))
    linears = [m for m in net.modules() if isinstance(m, nn.Linear) and m.bias is not None]
    assert linears
    assert not any(m.bias.any() for m in linears)
