"""CoupledSSM against its recurrence, and as FusionMamba's fusion."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ssmvision.hub.arguments import arguments_of
from ssmvision.layers.coupled_ssm import CoupledFusion, CoupledSSM, coupled_scan, rotation
from ssmvision.models import FusionMamba

pytestmark = pytest.mark.usefixtures("one_thread")


def arguments(streams: int, routes: tuple[str, ...], grid: tuple[int, ...] = (7,)) -> dict[str, Any]:
    """Of `coupled_scan`, with 2 images, 3 channels and 2 states."""
    torch.manual_seed(0)
    count, pairs = len(routes), streams * (streams - 1) // 2
    like: dict[str, Any] = {"dtype": torch.float64}
    return {
        "u": torch.randn(2, streams, *grid, 3, **like),
        "delta": torch.rand(2, count, *grid, 3, **like),
        "A": -torch.rand(count, streams, 3, 2, **like) - 0.1,
        "angles": torch.randn(count, pairs, 3, **like),
        "B": torch.randn(2, count, streams, *grid, 2, **like),
        "C": torch.randn(2, count, *grid, 2, **like),
        "routes": routes,
    }


def loop(u: Tensor, delta: Tensor, A: Tensor, angles: Tensor, B: Tensor, C: Tensor, routes: tuple[str, ...]) -> Tensor:
    """h^m_t = a^m h^m_{t-1} + delta B^m u^m + sum over m' != m of s^{m m'} h^{m'}_{t-1}, step by step."""
    batch, streams, length, width = u.shape
    out = torch.zeros_like(u)
    for k, route in enumerate(routes):
        for e in range(width):
            turn = rotation(angles[k, :, e], streams)
            for n in range(A.shape[-1]):
                h = u.new_zeros(batch, streams)
                for t in range(length) if route == "forward" else reversed(range(length)):
                    decays = torch.exp(delta[:, k, t, e, None] * A[k, :, e, n])
                    transition = torch.einsum("mj,bj,oj->bmo", turn, decays, turn)
                    own = torch.diagonal(transition, dim1=1, dim2=2)
                    coupling = transition - torch.diag_embed(own)
                    drive = delta[:, k, t, e, None] * B[:, k, :, t, n] * u[:, :, t, e]
                    h = own * h + drive + torch.einsum("bmo,bo->bm", coupling, h)
                    out[:, :, t, e] += C[:, k, t, n, None] * h
    return out


@pytest.mark.parametrize("streams", [2, 3])
def test_scan_is_the_coupled_recurrence(streams: int) -> None:
    given = arguments(streams, ("forward", "backward"))
    tensors = [value.requires_grad_() for value in given.values() if isinstance(value, Tensor)]
    got, wanted = coupled_scan(**given), loop(**given)
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)
    weight = torch.randn_like(got)
    pairs = zip(*(torch.autograd.grad((y * weight).sum(), tensors) for y in (got, wanted)), strict=True)
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)


def test_rotations_are_orthogonal() -> None:
    turn = rotation(torch.randn(6, 5, dtype=torch.float64), 4).movedim(-1, 0)
    torch.testing.assert_close(turn @ turn.mT, torch.eye(4, dtype=torch.float64).expand(5, 4, 4))


def test_without_angles_streams_are_alone_and_with_them_see_the_others_past() -> None:
    given = arguments(2, ("forward",))
    other = given["u"].clone()
    other[:, 1, 3] += 1.0
    alone = given | {"angles": torch.zeros_like(given["angles"])}
    torch.testing.assert_close(coupled_scan(**alone)[:, 0], coupled_scan(**(alone | {"u": other}))[:, 0])
    change = (coupled_scan(**given) - coupled_scan(**(given | {"u": other})))[:, 0].abs().amax((0, 2))
    assert change[:4].max() < 1e-12  # the present is coupled from the next step on
    assert change[4:].min() > 1e-4


@pytest.mark.parametrize(("dims", "grid"), [(1, (5,)), (2, (5, 3)), (3, (3, 2, 5))])
def test_layer_on_any_map(dims: int, grid: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = CoupledSSM(6, dims, streams=3, d_state=2)
    maps = [torch.randn(2, *grid, 6) for _ in range(3)]
    out = layer(*maps)
    assert [y.shape for y in out] == [m.shape for m in maps]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = layer(*maps)
    for y, exact in zip(low, out, strict=True):
        assert (y - exact).abs().max() < 0.05 * exact.abs().max()
    sum(y.float().square().sum() for y in low).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in layer.parameters())
    spread = [m.movedim(-1, 1).contiguous().movedim(1, -1) for m in maps]
    torch.testing.assert_close(layer(*spread), out)
    assert [y.shape[0] for y in layer(*(m[:0] for m in maps))] == [0] * 3
    assert set(layer.no_weight_decay()) <= set(dict(layer.named_parameters()))


def test_mirrored_maps_give_mirrored_results() -> None:
    torch.manual_seed(0)
    layer = CoupledSSM(4, 1, d_state=2).double()
    with torch.no_grad():
        for name in ("dt_weight", "dt_bias", "A_log", "angles"):
            parameter = getattr(layer, name)
            parameter[1] = parameter[0]
        for proj in (layer.joint_proj, *layer.B_projs):
            proj.weight.view(2, -1, proj.weight.shape[1])[1] = proj.weight.view(2, -1, proj.weight.shape[1])[0]
        for conv in layer.convs:
            conv.conv.weight.copy_((conv.conv.weight + conv.conv.weight.flip(2)) / 2)
    maps = [torch.randn(1, 6, 4, dtype=torch.float64) for _ in range(2)]
    mirrored = layer(*(m.flip(1) for m in maps))
    torch.testing.assert_close([y.flip(1) for y in mirrored], list(layer(*maps)))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="streams=1: coupling needs at least two"):
        CoupledSSM(4, 2, streams=1)
    with pytest.raises(ValueError, match="expected 2 maps of one shape"):
        CoupledSSM(4, 1)(torch.zeros(1, 5, 4), torch.zeros(1, 6, 4))


def test_fusion_mamba_with_coupled_states_on_ct_and_mri() -> None:
    torch.manual_seed(0)
    small: dict[str, Any] = {"depths": (1, 1), "depths_decoder": (1, 1), "dims": (8, 16), "d_state": 2}
    net = FusionMamba(**small, fusion_block="coupled")
    ct, mri = torch.rand(2, 1, 1, 256, 256)
    fused = net(mri, ct)
    assert fused.shape == (1, 1, 256, 256)
    fused.square().mean().backward()
    block = net.Cross_block["1"]
    assert isinstance(block, CoupledFusion)
    assert all(p.grad is not None and p.grad.any() for p in block.parameters())
    again = FusionMamba(**arguments_of(net))
    again.load_state_dict(net.state_dict())
    image = torch.rand(1, 1, 30, 17)
    torch.testing.assert_close(again.eval()(image, image.flip(2)), net.eval()(image, image.flip(2)))
    fast = net.for_inference(torch.bfloat16)
    torch.testing.assert_close(fast(image, image.flip(2)), net(image, image.flip(2)), rtol=0.05, atol=0.05)
    for settings, words in (
        ({"fusion_block": "cupled"}, "fusion_block='cupled': choose from 'dffm', 'coupled'"),
        ({"fusion_block": "coupled", "faithful": True}, "the published network has fusion_block='dffm'"),
        ({"fusion_block": "coupled", "gate": "official"}, "gate='official' belongs to fusion_block='dffm'"),
    ):
        with pytest.raises(ValueError, match=words):
            FusionMamba(**settings)
