"""Mixers of long convolutions against loops written from their papers' equations, and what holds in N dimensions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssmvision.kernels.s4nd.linear_system import impulse_response
from ssmvision.layers.mixers import build_mixer
from ssmvision.layers.s4nd import set_rate
from ssmvision.layers.s4nd_states import LRUStates, S5States, StateKernel

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL: dict[str, dict[str, Any]] = {
    "s4d": {"d_state": 8, "dt_min": 0.1},
    "dss": {"d_state": 8, "dt_min": 0.1},
    "ema": {"d_state": 4},
    "s5": {"d_state": 8, "dt_min": 0.1},
    "lru": {"d_state": 4},
    "tnn": {"rpe_width": 5, "rpe_layers": 2},
    "liquid_s4": {"d_state": 8, "dt_min": 0.5, "degree": 3},
    "hyena": {"filter_width": 6, "bands": 2, "reference": 9},
}
WIDTH = 3


def mixer(name: str, axes: int, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return build_mixer(name, WIDTH, axes, **(SMALL[name] | options)).double()


def core(name: str, axes: int, **options: Any) -> Any:
    return mixer(name, axes, gate="none", **options).core


def image(*grid: int, batch: int = 2, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, *grid, WIDTH, generator=generator, dtype=torch.float64)


def complexes(t: Tensor) -> Tensor:
    return torch.view_as_complex(t.detach().contiguous())


def recurrence(decay: Tensor, inputs: Tensor) -> Tensor:
    """The states x_k = decay x_{k-1} + inputs_k of (L, ...), one after the other."""
    states, x = [], torch.zeros_like(inputs[0])
    for v in inputs:
        x = decay * x + v
        states.append(x)
    return torch.stack(states)


def s4d_loop(layer: Any, u: Tensor) -> Tensor:
    """Zero-order hold of x' = A x + B u, y = 2 Re(C x) + D u, for every feature."""
    k = layer.kernel[0]
    dt, A = torch.exp(k.inv_dt), -torch.exp(k.A_real) - 1j * k.A_imag
    decay = torch.exp(dt * A)
    B = (decay - 1) / A * complexes(k.B)[0]
    x = recurrence(decay, B * u.unsqueeze(-1))
    return 2 * (complexes(k.C)[0] * x).sum(-1).real + layer.D[0] * u


def dss_loop(layer: Any, u: Tensor) -> Tensor:
    """Proposition 1: K_k = w (e^z - 1) / x e^{zk}, x = A (e^{zL} - 1), with the authors' 1 / x = x* / (x x* + 1e-7)."""
    k, length = layer.kernel[0], len(u)
    A = -torch.exp(k.A_real) - 1j * k.A_imag
    z = torch.exp(k.inv_dt) * A
    x = A * (torch.exp(z * length) - 1)
    weight = complexes(k.C)[0] * complexes(k.B)[0] * (torch.exp(z) - 1) * x.conj() / (x.abs() ** 2 + 1e-7)
    taps = [(weight * torch.exp(z * t)).sum(-1).real for t in range(length)]
    y = [sum(taps[t - j] * u[j] for j in range(t + 1)) for t in range(length)]
    return torch.stack(y) + layer.D[0] * u


def ema_loop(layer: Any, u: Tensor) -> Tensor:
    """Equation 2 of Mega: h_t = a o (beta u_t) + (1 - a o d) o h_{t-1}, y_t = eta^T h_t / sqrt(N)."""
    k = layer.kernel[0]
    a, d = torch.sigmoid(k.delta)[..., 0], torch.sigmoid(k.alpha)[..., 0]
    h = recurrence(1 - a * d, a * k.beta[..., 0] * u.unsqueeze(-1))
    return (k.gamma * h).sum(-1) / math.sqrt(k.gamma.shape[-1]) + layer.D[0] * u


def state_loop(layer: Any, u: Tensor, decay: Tensor, gain: Tensor) -> Tensor:
    x = recurrence(decay, gain * (u.to(decay.dtype) @ complexes(layer.B).t()))
    return (x @ complexes(layer.C).t()).real + layer.D * u


def s5_loop(layer: Any, u: Tensor) -> Tensor:
    """Equations 2 and 6 of S5; the layer's C is twice the paper's, of which half the states are stored."""
    k = layer.states.kernel[0]
    A = -torch.exp(k.A_real) + 1j * k.A_imag
    decay = torch.exp(torch.exp(k.log_dt) * A)
    return state_loop(layer, u, decay, (decay - 1) / A)


def lru_loop(layer: Any, u: Tensor) -> Tensor:
    """Equations 5 and 7 of LRU."""
    k = layer.states.kernel[0]
    decay = torch.exp(-torch.exp(k.nu_log) + 1j * torch.exp(k.theta_log))
    torch.testing.assert_close(torch.exp(k.gamma_log), torch.sqrt(1 - decay.abs() ** 2))  # as initialized
    return state_loop(layer, u, decay, torch.exp(k.gamma_log))


def liquid_s4_loop(layer: Any, u: Tensor) -> Tensor:
    """The terms of neighbouring inputs, a recurrence x_k = A_bar x_{k-1} + B_bar^p u_k ... u_{k-p+1} for every p."""
    k = layer.kernel[0]
    dt, A = torch.exp(k.inv_dt), -torch.exp(k.A_real) - 1j * k.A_imag
    decay = torch.exp(dt * A)
    B, y, product = (decay - 1) / A * complexes(k.B)[0], layer.D[0] * u, u
    for degree in range(1, layer.channels + 1):
        x = recurrence(decay, B**degree * product.unsqueeze(-1))
        y = y + 2 * (complexes(k.C)[0] * x).sum(-1).real
        shifted = torch.cat((torch.zeros(degree, u.shape[1], dtype=u.dtype), u))[: len(u)]
        product = product * shifted
    return y


def tnn_loop(layer: Any, u: Tensor) -> Tensor:
    """Equations 7 and 9 of TNN, entry by entry of the Toeplitz matrix; the MLP as listed in its appendix."""
    k, length = layer.kernel[0], len(u)
    first, *blocks = k.network
    y = []
    for i in range(length):
        total = torch.zeros_like(u[0])
        for j in range(length if layer.bidirectional else i + 1):
            x = first.weight[:, 0] * (i - j) + first.bias
            for norm, linear in zip(blocks[::3], blocks[2::3], strict=True):
                x = (x - x.mean()) / torch.sqrt(x.var(correction=0) + norm.eps)
                x = linear.weight @ torch.relu(norm.weight * x + norm.bias) + linear.bias
            total = total + 0.99 ** abs(i - j) * x * u[j]
        y.append(total)
    return torch.stack(y)


def hyena_loop(layer: Any, u: Tensor) -> Tensor:
    """The filter of section 3.3, lag by lag: 1 % of the window is left at 1.5 (first feature) to 0.3 references."""
    k, length = layer.kernel[0], len(u)
    decay = math.log(100) / torch.tensor([1.5, 2 / (1 / 1.5 + 1 / 0.3), 0.3], dtype=u.dtype)
    y = []
    for i in range(length):
        total = layer.D[0] * u[i]
        for j in range(length if layer.bidirectional else i + 1):
            t = (i - j) / 9
            turns = [2 * math.pi * f * t for f in (1e-4, 1.0)]
            x = torch.tensor([t, *map(math.cos, turns), *(-math.sin(a) for a in turns)], dtype=u.dtype)
            for linear in k.network.hidden:
                x = torch.sin(10 * (linear.weight @ x + linear.bias))
            total = total + (torch.exp(-abs(t) * decay) + 0.05) * (k.network.out.weight @ x) * u[j]
        y.append(total)
    return torch.stack(y)


LOOPS = {
    **{"s4d": s4d_loop, "dss": dss_loop, "ema": ema_loop, "s5": s5_loop, "lru": lru_loop},
    **{"liquid_s4": liquid_s4_loop, "tnn": tnn_loop, "hyena": hyena_loop},
}


class TestEquations:
    @pytest.mark.parametrize("name", LOOPS)
    def test_one_direction_is_the_papers_recurrence(self, name: str) -> None:
        layer, u = core(name, 1, bidirectional=False), image(13, batch=1).requires_grad_()
        expected, got = LOOPS[name](layer, u[0]), layer(u)[0]
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
        weight = image(13, batch=1, seed=2)[0]
        wanted = torch.autograd.grad((expected * weight).sum(), [u, *layer.parameters()], allow_unused=True)
        grads = torch.autograd.grad((got * weight).sum(), [u, *layer.parameters()])
        for name_, grad, want in zip(["u", *dict(layer.named_parameters())], grads, wanted, strict=True):
            if want is not None:
                torch.testing.assert_close(grad, want, rtol=1e-8, atol=1e-8, msg=name_)

    def test_liquid_s4_is_exact_where_only_neighbours_meet(self) -> None:
        layer, u = core("liquid_s4", 1, bidirectional=False), torch.zeros(1, 9, WIDTH, dtype=torch.float64)
        u[0, 2:4] = image(2, batch=1)[0]
        k = layer.kernel[0]
        A = -torch.exp(k.A_real) - 1j * k.A_imag
        decay = torch.exp(torch.exp(k.inv_dt) * A)
        B, x, y = (decay - 1) / A * complexes(k.B)[0], 0, []
        for v in u[0].unsqueeze(-1):
            x = (decay + B * v) * x + B * v
            y.append(2 * (complexes(k.C)[0] * x).sum(-1).real + layer.D[0] * v[:, 0])
        torch.testing.assert_close(layer(u)[0], torch.stack(y), rtol=1e-10, atol=1e-10)

    @pytest.mark.parametrize("name", ["tnn", "hyena"])
    def test_both_directions_are_one_function_of_the_signed_lag(self, name: str) -> None:
        layer, u = core(name, 1), image(7, batch=1)
        torch.testing.assert_close(layer(u)[0], LOOPS[name](layer, u[0]), rtol=1e-10, atol=1e-10)


def flipped(name: str, layer: Any) -> None:
    """Changes a layer's parameters so that its kernels run the other way along the first axis."""
    kernel = (layer.states if hasattr(layer, "states") else layer).kernel[0]
    if name in ("s4d", "dss"):
        kernel.C.copy_(kernel.C.roll(1, 0))
    elif name == "ema":
        for parameter in kernel.parameters():
            parameter.copy_(parameter.roll(WIDTH, 0))
    elif name in ("s5", "lru"):  # the first direction has the output matrix C, the second C diag(w)
        turn = complexes(kernel.turn)
        layer.C.copy_(torch.view_as_real(complexes(layer.C) * turn))
        kernel.turn.copy_(torch.view_as_real(1 / turn))
    elif name == "tnn":
        kernel.network[0].weight.neg_()
    else:  # the position itself and its sines are odd
        kernel.network.hidden[0].weight[:, [0, 3, 4]] *= -1


class TestDimensions:
    @pytest.mark.parametrize("name", [name for name in LOOPS if name != "liquid_s4"])
    def test_flips_exchange_the_directions(self, name: str) -> None:
        options = {} if name in ("tnn", "hyena") else {"symmetric_center": True}
        layer, other, u = core(name, 2, **options), core(name, 2, **options), image(4, 5)
        with torch.no_grad():
            flipped(name, other)
        torch.testing.assert_close(other(u.flip(1)).flip(1), layer(u), rtol=1e-9, atol=1e-9)
        assert not torch.allclose(layer(u.flip(1)).flip(1), layer(u))

    @pytest.mark.parametrize("states", [S5States, LRUStates])
    def test_recurrence_of_complex_states(self, states: type[StateKernel]) -> None:
        options: dict[str, Any] = (
            {"A": torch.complex(-torch.rand(5) - 0.1, torch.randn(5))} if states is S5States else {}
        )
        kernel = states(5, 1, 4, **options).double()
        torch.testing.assert_close(impulse_response(kernel.system(), 9), kernel(9), rtol=1e-10, atol=1e-12)

    def test_states_run_along_every_axis_in_turn(self) -> None:
        layer, u = core("lru", 3, bidirectional=False), image(3, 4, 2, batch=1)
        x = u[0].to(torch.complex128) @ complexes(layer.B).t()
        for axis, k in enumerate(layer.states.kernel):
            decay = torch.exp(-torch.exp(k.nu_log) + 1j * torch.exp(k.theta_log))
            x = recurrence(decay, torch.exp(k.gamma_log) * x.movedim(axis, 0)).movedim(0, axis)
        expected = (x @ complexes(layer.C).t()).real + layer.D * u[0]
        torch.testing.assert_close(layer(u)[0], expected, rtol=1e-10, atol=1e-10)

    def test_sampling_rate_and_band_of_s5(self) -> None:
        """A smooth image on a grid twice as fine is filtered into the same picture."""
        layer = core("s5", 1, dt_min=0.01, dt_max=0.1)
        layer.D.data.zero_()
        fine = torch.exp(-((torch.arange(256.0).double() - 120) ** 2) / 640)[None, :, None] * torch.ones(WIDTH)
        whole = layer(fine)
        set_rate(layer, 2.0)
        half = layer(fine[:, ::2])
        assert (whole[:, ::2] - half).abs().max() < 0.01 * whole.abs().max()
        limited = core("s5", 1, bandlimit=1e-9)
        assert torch.equal(limited(fine), limited.D * fine)

    def test_one_graph(self) -> None:
        module, x = mixer("s5", 2), image(3, 4)
        compiled = torch.compile(module, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x), module(x))

    @pytest.mark.parametrize("name", LOOPS)
    def test_axes_exchange_with_their_kernels(self, name: str) -> None:
        module, other = mixer(name, 2, gate="none"), mixer(name, 2, gate="none")
        systems = next(m for m in other.modules() if hasattr(m, "kernel")).kernel
        first, second = (dict(systems[i].state_dict()) for i in (0, 1))
        first, second = ({k: v.clone() for k, v in state.items()} for state in (first, second))
        systems[0].load_state_dict(second)
        systems[1].load_state_dict(first)
        x = image(5, 7)
        torch.testing.assert_close(other(x.transpose(1, 2)).transpose(1, 2), module(x), rtol=1e-9, atol=1e-9)
        assert not torch.allclose(other(x), module(x))

    def test_hyena_over_the_whole_grid(self) -> None:
        layer, u = core("hyena", 2, full_nd=True), image(3, 4, batch=1)
        flat = u[0].flatten(0, 1)
        places = torch.cartesian_prod(torch.arange(3.0), torch.arange(4.0)).double()
        t = (places[:, None] - places) / 9
        decay = math.log(100) * torch.linspace(1 / 1.5, 1 / 0.3, WIDTH, dtype=u.dtype)
        kernel = layer.network(t) * (torch.exp(-t.norm(dim=-1, keepdim=True) * decay) + 0.05)
        expected = torch.einsum("ijh,jh->ih", kernel, flat) + layer.D * flat
        torch.testing.assert_close(layer(u)[0].flatten(0, 1), expected, rtol=1e-10, atol=1e-10)
        coarse = layer(u)
        set_rate(layer, 2.0)
        assert not torch.allclose(layer(u), coarse)
        with pytest.raises(
            ValueError, match="full_nd=True has no option 'trank'; besides its own it has bidirectional"
        ):
            build_mixer("hyena", WIDTH, 2, full_nd=True, trank=2)

    @pytest.mark.parametrize("axes", [1, 2, 3])
    @pytest.mark.parametrize("name", LOOPS)
    def test_any_size_and_memory(self, name: str, axes: int) -> None:
        module = mixer(name, axes)
        x = image(*(4, 1, 5)[:axes])
        y = module(x)
        assert y.shape == x.shape
        strided = x.transpose(0, -1).contiguous().transpose(0, -1)
        torch.testing.assert_close(module(strided), y)
        assert module(x[:0]).shape == x[:0].shape

    @pytest.mark.parametrize("name", LOOPS)
    def test_half_precision(self, name: str) -> None:
        module = mixer(name, 2).float()
        x = image(6, 5).float()
        full = module(x)
        with torch.autocast("cpu", torch.bfloat16):
            y = module(x)
        y.float().square().sum().backward()
        assert (y - full).norm() < 0.02 * full.norm()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
        half = module.to(torch.bfloat16)(x.bfloat16())
        assert half.dtype == torch.bfloat16
        assert (half - full).norm() < 0.1 * full.norm()
