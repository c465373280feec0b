"""The scanning mixers against loops written from their papers' equations, in one dimension and float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmvision.layers.gated_recurrence import gated_recurrence
from ssmvision.layers.mixers import build_mixer
from ssmvision.layers.mixers.biwkv import bi_wkv, q_shift
from ssmvision.layers.mixers.vssd import noncausal_ssd
from ssmvision.layers.ss2d import SS2D

pytestmark = pytest.mark.usefixtures("one_thread")

F64 = torch.float64
DIM = 6


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def mixer(name: str, spatial_dims: int = 1, dim: int = DIM, **options: Any) -> Any:
    """With every parameter away from its start, so that none is without effect."""
    torch.manual_seed(0)
    built = build_mixer(name, dim, spatial_dims, **options).double()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return built


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def along(steps: Tensor, reverse: bool, walk: Callable[[Tensor], Tensor]) -> Tensor:
    """A walk over (B, L, ...), from the end if `reverse`."""
    return walk(steps.flip(1)).flip(1) if reverse else walk(steps)


def s6_loop(m: Any, x: Tensor) -> Tensor:
    u, z = m.in_proj(x).chunk(2, -1)
    u = F.silu(m.conv.conv(u.transpose(1, 2))).transpose(1, 2)
    total = torch.zeros_like(u)
    for k, reverse in enumerate((False, True)):
        A, D = -m.A_logs.unflatten(0, (2, -1))[k].exp(), m.Ds.unflatten(0, (2, -1))[k]

        def walk(u: Tensor, k: int = k, A: Tensor = A, D: Tensor = D) -> Tensor:
            state, ys = torch.zeros(len(u), *A.shape, dtype=F64), []
            for u_t in u.unbind(1):
                low, B, C = (u_t @ m.x_proj_weight[k].T).split((m.dt_rank, m.d_state, m.d_state), -1)
                delta = F.softplus(low @ m.dt_projs_weight[k].T + m.dt_projs_bias[k]).unsqueeze(-1)
                state = (delta * A).exp() * state + delta * B.unsqueeze(1) * u_t.unsqueeze(-1)
                ys.append((state * C.unsqueeze(1)).sum(-1) + D * u_t)
            return torch.stack(ys, 1)

        total = total + along(u, reverse, walk)
    return m.out_proj(m.out_norm(total) * F.silu(z))


def heads(m: Any, x: Tensor, layers: int) -> tuple[Tensor, ...]:
    """z; u (B, L, H, P); delta (B, L, K, H); B and C (B, L, K, N)."""
    inner, states = m.d_inner, layers * m.d_state
    z, u, dt = m.in_proj(x).split((inner, inner + 2 * states, layers * m.heads), -1)
    u = F.silu(m.conv.conv(u.transpose(1, 2))).transpose(1, 2)
    u, B, C = u.split((inner, states, states), -1)
    delta = F.softplus(dt.unflatten(-1, (layers, -1)) + m.dt_bias)
    return z, u.unflatten(-1, (m.heads, -1)), delta, *(t.unflatten(-1, (layers, -1)) for t in (B, C))


def ssd_loop(m: Any, x: Tensor) -> Tensor:
    z, u, delta, B, C = heads(m, x, 2)
    y = torch.zeros_like(u)
    for k, reverse in enumerate((False, True)):
        order = range(x.shape[1])
        state = torch.zeros(len(x), m.heads, m.d_state, m.head_dim, dtype=F64)
        for t in reversed(order) if reverse else order:
            step = delta[:, t, k, :, None, None]
            state = (-step * m.A_log[k, :, None, None].exp()).exp() * state
            state = state + step * B[:, t, k, None, :, None] * u[:, t, :, None, :]
            read = torch.einsum("bn,bhnp->bhp", C[:, t, k], state) + m.D[k, :, None] * u[:, t]
            y = y.index_add(1, torch.tensor([t]), read.unsqueeze(1) / 2)
    return m.out_proj(rms(y.flatten(2) * F.silu(z), m.norm.weight))


def vssd_loop(m: Any, x: Tensor) -> Tensor:
    z, u, delta, B, C = heads(m, x, 1)
    weight = delta[:, :, 0] * m.A_log[0].exp()
    scores = torch.einsum("bin,bjn->bij", C[:, :, 0], B[:, :, 0])
    y = torch.einsum("bij,bjh,bjhp->bihp", scores, weight, u) + m.D[0, :, None] * u
    return m.out_proj(m.norm(y.flatten(2)) * z)


def hgrn_loop(m: Any, x: Tensor) -> Tensor:
    candidate, forget, gate = m.in_proj(x).chunk(3, -1)
    f, i = m.lower_bound + (1 - m.lower_bound) * torch.sigmoid(forget), F.silu(candidate)
    mean = torch.zeros_like(i)
    for order in (range(x.shape[1]), reversed(range(x.shape[1]))):
        state = torch.zeros_like(i[:, 0])
        for t in order:
            state = f[:, t] * state + (1 - f[:, t]) * i[:, t]
            mean = mean.index_add(1, torch.tensor([t]), state.unsqueeze(1) / 2)
    return m.out_proj(rms(mean, m.norm.weight) * F.silu(gate))


def bi_wkv_sums(k: Tensor, v: Tensor, w: Tensor, u: Tensor) -> Tensor:
    places = torch.arange(k.shape[1])
    distance = (places[:, None] - places).abs().unsqueeze(-1)
    exponent = torch.where(distance > 0, -(distance - 1) * w / k.shape[1], u) + k.unsqueeze(1)
    return (exponent.exp() * v.unsqueeze(1)).sum(2) / exponent.exp().sum(2)


def biwkv_loop(m: Any, x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    before, after = F.pad(x[:, :-1, :half], (0, 0, 1, 0)), F.pad(x[:, 1:, half:], (0, 0, 0, 1))
    shifted = torch.cat([before, after], -1)
    k = m.key(m.mix_k * x + (1 - m.mix_k) * shifted)
    v = m.value(m.mix_v * x + (1 - m.mix_v) * shifted)
    r = m.receptance(m.mix_r * x + (1 - m.mix_r) * shifted)
    return m.out_proj(torch.sigmoid(r) * m.key_norm(bi_wkv_sums(k, v, m.decay, m.bonus)))


CASES: dict[str, tuple[str, Callable[[Any, Tensor], Tensor], dict[str, Any]]] = {
    "s6": ("s6", s6_loop, {"d_state": 3, "dt_rank": 2}),
    "ssd": ("ssd", ssd_loop, {"d_state": 3, "head_dim": 4}),
    "vssd": ("vssd", vssd_loop, {"d_state": 3, "head_dim": 4}),
    "hgrn": ("hgrn", hgrn_loop, {"lower_bound": 0.3}),
    "hgrn from zero": ("hgrn", hgrn_loop, {"lower_bound": 0.0, "expand": 2}),
    "biwkv": ("biwkv", biwkv_loop, {}),
    "biwkv normed": ("biwkv", biwkv_loop, {"key_norm": True, "depth": 0.5}),
}


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_the_equations(case: str) -> None:
    name, loop, options = CASES[case]
    built, x = mixer(name, **options), normal(2, 7, DIM).requires_grad_()
    found, expected = built(x), loop(built, x)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    inputs, weights = (x, *built.parameters()), normal(*found.shape, seed=2)
    for ours, theirs in zip(*(torch.autograd.grad(y, inputs, weights) for y in (found, expected)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def test_s6_on_a_plane_is_ss2d() -> None:
    built, layer = mixer("s6", 2, d_state=2), SS2D(DIM, d_state=2).double()
    weights = {name.replace("conv.conv.", "conv2d."): value for name, value in built.state_dict().items()}
    # VMamba's order of routes has both directions of rows and columns together.
    assert built.routes == ("row", "column", "row_reverse", "column_reverse")
    layer.load_state_dict(weights)
    x = normal(2, 3, 5, DIM)
    torch.testing.assert_close(built(x), layer(x), rtol=0, atol=0)


def swap_directions(built: nn.Module) -> None:
    """Each route with the parameters of its reverse, and the convolution mirrored."""
    half = len(built.routes) // 2  # type: ignore[arg-type]
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if name == "conv.conv.weight":
                parameter.copy_(parameter.flip(tuple(range(2, parameter.dim()))))
            elif name in ("A_logs", "Ds"):
                parameter.copy_(parameter.unflatten(0, (2 * half, -1)).roll(half, 0).flatten(0, 1))
            elif name.split(".")[0] in ("x_proj_weight", "dt_projs_weight", "dt_projs_bias"):
                parameter.copy_(parameter.roll(half, 0))


@pytest.mark.parametrize("grid", [(7,), (3, 4), (2, 3, 4)], ids=str)
def test_s6_of_a_turned_map_is_s6_with_its_directions_exchanged(grid: tuple[int, ...]) -> None:
    built, x = mixer("s6", len(grid), d_state=2), normal(1, *grid, DIM)
    axes = tuple(range(1, x.dim() - 1))
    expected = built(x).flip(axes)
    assert not torch.allclose(built(x.flip(axes)), expected)
    swap_directions(built)
    torch.testing.assert_close(built(x.flip(axes)), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("grid", [(7,), (3, 4), (2, 3, 4)], ids=str)
def test_hgrn_knows_no_direction(grid: tuple[int, ...]) -> None:
    """Its routes share their gates. Not so a map with one of several axes mirrored: that is another walk."""
    built, x = mixer("hgrn", len(grid)), normal(1, *grid, DIM)
    axes = tuple(range(1, x.dim() - 1))
    torch.testing.assert_close(built(x.flip(axes)), built(x).flip(axes), rtol=1e-10, atol=1e-12)
    rolled = (0, *axes[1:], axes[0], x.dim() - 1)
    torch.testing.assert_close(built(x.permute(rolled)), built(x).permute(rolled), rtol=1e-10, atol=1e-12)


def test_vssd_knows_no_order() -> None:
    x, m, B, C = normal(2, 3, 4, 2, 5), normal(2, 3, 4, 2), normal(2, 3, 4, 1, 3), normal(2, 3, 4, 1, 3, seed=2)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    shuffled = (t.flatten(1, 2)[:, order] for t in (x, m, B, C))
    torch.testing.assert_close(noncausal_ssd(*shuffled), noncausal_ssd(x, m, B, C).flatten(1, 2)[:, order])


@pytest.mark.parametrize("decay", [0.0, 1e-35, 1e-12, 1e-3, 1.0, 700.0])
def test_gated_recurrence_from_open_to_closed_gates(decay: float) -> None:
    x, decays = normal(1, 5, 2).requires_grad_(), torch.full((1, 1, 5, 2), decay, dtype=F64, requires_grad=True)
    found = gated_recurrence(x, decays, routes=("forward",))
    torch.testing.assert_close(gated_recurrence(x, decays[:, 0], routes=("forward",)), found, rtol=0, atol=0)
    state, states = torch.zeros(1, 2, dtype=F64), []
    for t in range(5):
        state = torch.exp(-decays[:, 0, t]) * state - torch.expm1(-decays[:, 0, t]) * x[:, t]
        states.append(state)
    expected = torch.stack(states, 1)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-29)
    inputs = (x, decays) if decay > 1e-30 else (x,)  # below, a gate counts as open
    for ours, theirs in zip(*(torch.autograd.grad(y.sum(), inputs) for y in (found, expected)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_bi_wkv_is_mirrored_with_its_sequence() -> None:
    k, v, w, u = normal(2, 9, 3), normal(2, 9, 3, seed=2), normal(3, seed=3), normal(3, seed=4)
    torch.testing.assert_close(bi_wkv(k.flip(1), v.flip(1), w, u), bi_wkv(k, v, w, u).flip(1))


def test_bi_wkv_takes_any_keys_and_decays() -> None:
    """Where sums of exponentials overflow or vanish, it is a mean of values still, and the right one."""
    v, w = normal(1, 50, 4), torch.tensor([-900.0, 900.0, 5000.0, 0.0], dtype=F64)
    k, u = 800 * normal(1, 50, 4, seed=2), torch.tensor([300.0, -300.0, 0.0, 1e4], dtype=F64)
    places = torch.arange(50)
    distance = (places[:, None] - places).abs().unsqueeze(-1)
    exponent = torch.where(distance > 0, -(distance - 1) * w / 50, u) + k.unsqueeze(1)
    expected = (exponent.softmax(2) * v.unsqueeze(1)).sum(2)
    k.requires_grad_()
    found = bi_wkv(k, v, w, u)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    assert torch.autograd.grad(found.sum(), k)[0].isfinite().all()


def test_bi_wkv_of_many_positions_in_single_precision() -> None:
    k, v, w, u = normal(1, 4096, 4), normal(1, 4096, 4, seed=2), 8 * normal(4, seed=3), normal(4, seed=4)
    exact = bi_wkv(k, v, w, u)
    single = bi_wkv(*(t.float() for t in (k, v, w, u)))
    torch.testing.assert_close(single.double(), exact, rtol=0, atol=2e-5)


def test_q_shift_moves_a_share_of_the_channels_to_each_side() -> None:
    x = normal(1, 3, 4, 9)
    y = q_shift(x)
    zeros = torch.zeros(1, 3, 1, 2, dtype=F64)
    torch.testing.assert_close(y[..., :2], torch.cat([zeros, x[:, :, :-1, :2]], 2))
    torch.testing.assert_close(y[..., 2:4], torch.cat([x[:, :, 1:, 2:4], zeros], 2))
    torch.testing.assert_close(y[..., 4:6], F.pad(x[:, :-1, :, 4:6], (0, 0, 0, 0, 1, 0)))
    torch.testing.assert_close(y[..., 6:8], F.pad(x[:, 1:, :, 6:8], (0, 0, 0, 0, 0, 1)))
    torch.testing.assert_close(y[..., 8], x[..., 8])
    torch.testing.assert_close(q_shift(x[..., :3]), x[..., :3])
