"""FusionMamba's inference copy: the same function, in narrower weights where asked, and no way back to training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ssmvision.layers.fusion_scan import SubgridScan
from ssmvision.models import FusionMamba

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL: dict[str, Any] = {"depths": (1, 2), "depths_decoder": (1, 1), "dims": (16, 32)}


def make(**settings: Any) -> FusionMamba:
    torch.manual_seed(0)
    net = FusionMamba(**{**SMALL, **settings})
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("learnable_mask"):
                parameter.uniform_(0.5, 2)
    return net.eval()


def images(height: int, width: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.rand(2, 1, height, width, generator=generator).to(dtype) for _ in range(2))  # type: ignore[return-value]


def added(net: FusionMamba, x1: Tensor, x2: Tensor) -> Tensor:
    """What the network adds to the images, which weights of any precision would otherwise hide in."""
    with torch.no_grad():
        return (net(x1, x2) - 2 * (x1 + x2)).double()


@pytest.mark.parametrize("settings", [{}, {"gate": "official"}, {"faithful": True}, {"d_state": 4}])
def test_same_function_in_float64(settings: dict[str, Any]) -> None:
    net = make(**settings).double()
    x1, x2 = images(16, 24, torch.float64)
    torch.testing.assert_close(added(net.for_inference(torch.float64), x1, x2), added(net, x1, x2))


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2), (torch.float16, 2.5e-3)])
def test_rounding(dtype: torch.dtype, limit: float) -> None:
    net, (x1, x2) = make(), images(37, 22)
    exact = added(make().double(), x1.double(), x2.double())
    found = added(net.for_inference(dtype), x1, x2)
    assert (found - exact).norm() <= limit * exact.norm()


def test_images_keep_their_precision() -> None:
    fast, (x1, x2) = make().for_inference(torch.bfloat16), images(16, 16)
    with torch.no_grad():
        fast.final_conv.weight.zero_()
        out = fast(x1, x2)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, 2 * (x1 + x2) + fast.final_conv.bias)


def test_weights_are_narrow_and_the_scans_constants_wide() -> None:
    fast = make().for_inference(torch.float16)
    dtypes = {name: value.dtype for name, value in fast.state_dict().items()}
    wide = {name for name, dtype in dtypes.items() if dtype == torch.float32}
    assert {name.rsplit(".", 1)[1] for name in wide if name.startswith(("layers", "Cross"))} == {
        "A",
        "Ds",
        "dt_projs_bias",
    }
    assert {name.partition(".")[0] for name in wide} >= {"patch_embed1", "final_up", "final_conv"}
    assert not any(parameter.requires_grad for parameter in fast.parameters())


def test_the_network_itself_stays_as_it_was() -> None:
    net = make().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert not net.for_inference(torch.bfloat16).training
    assert net.training
    after = net.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    net(*images(8, 8)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_a_copy_of_a_copy_is_the_same() -> None:
    fast = make().for_inference()
    x1, x2 = images(16, 8)
    assert torch.equal(added(fast.for_inference(), x1, x2), added(fast, x1, x2))


def test_ranks_are_filled_up_for_matrix_units() -> None:
    scans = [module for module in make().for_inference().modules() if isinstance(module, SubgridScan)]
    assert scans
    for scan in scans:
        assert scan.dt_rank == 8 == scan.dt_projs_weight.shape[2]
        assert scan.x_proj_weight.shape[1] == 8 + 2 * scan.d_state


def test_stream_of_residuals_stays_wide_under_autocast() -> None:
    net, (x1, x2) = make(), images(16, 16)
    seen: list[torch.dtype] = []
    for stage in (*net.layers, *net.layers_up):
        stage.register_forward_hook(lambda module, inputs, out: seen.append(out.dtype))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        net(x1, x2)
    assert set(seen) == {torch.float32}
