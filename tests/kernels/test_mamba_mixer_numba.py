"""The mixer's inference on a CPU, which works on the parameters as they are: against the layers in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ssmvision.kernels.mamba_mixer import passes
from ssmvision.kernels.mamba_mixer.numba_kernels import BLOCK
from ssmvision.layers.mamba import MambaMixer
from tests.kernels.mixers import tokens

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS: list[dict[str, Any]] = [
    {"d_state": 16, "bidirectional": True},
    {"d_state": 1, "d_conv": 1, "bias": True},
    {"d_state": 7, "d_conv": 2, "bidirectional": True, "merge": "sum", "conv_bias": False},
    {"d_state": 33, "d_conv": 8, "bidirectional": True, "bias": True, "dt_rank": 5, "layer_scale": 0.3},
]


def mixer(dim: int = 16, **options: Any) -> MambaMixer:
    torch.manual_seed(0)
    made = MambaMixer(dim, **options)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return made


@pytest.mark.parametrize("length", [1, BLOCK - 1, BLOCK + 1, 2 * BLOCK + 6])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_is_the_layers(options: dict[str, Any], length: int) -> None:
    made, x = mixer(**options), tokens(3, length, 16, dtype=torch.float32)
    with torch.no_grad():
        got = made(x)
        wanted = made.double()(x.double())
    assert (got - wanted).abs().max() <= 3e-6 * wanted.abs().max()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_a_number_is_not_hidden(bad: float) -> None:
    made, x = mixer(bidirectional=True), tokens(1, 40, 16, dtype=torch.float32).detach()
    x[0, 20, 3] = bad
    with torch.no_grad():
        assert not made(x)[0, 20].isfinite().any()


def test_no_token_and_no_sequence() -> None:
    made = mixer(bidirectional=True)
    with torch.no_grad():
        assert made(torch.zeros(0, 5, 16)).shape == (0, 5, 16)
        assert made(torch.zeros(2, 0, 16)).shape == (2, 0, 16)


def test_parameters_may_be_views() -> None:
    made, x = mixer(), tokens(2, 9, 16, dtype=torch.float32)
    with torch.no_grad():
        wanted = made(x)
        made.A_log.data = made.A_log.data.t().contiguous().t()
        made.conv1d.weight.data = made.conv1d.weight.data.transpose(0, 2).contiguous().transpose(0, 2)
        assert torch.equal(made(x), wanted)
        made.A_log.data += 1  # past autograd's back: nothing may be remembered from the call before
        assert not torch.equal(made(x), wanted)


@pytest.mark.parametrize(
    ("options", "dtype", "grad", "short"),
    [
        ({}, torch.float32, False, True),
        ({}, torch.float32, True, False),
        ({}, torch.float64, False, False),
        ({}, torch.bfloat16, False, False),
        ({"backend": "chunked", "fused": True}, torch.float32, False, False),
        ({"expand": 1.25}, torch.float32, False, False),  # 20 channels: not whole vectors
    ],
)
def test_which_calls_take_the_short_way(
    options: dict[str, Any], dtype: torch.dtype, grad: bool, short: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, real = [], passes.toolbox

    def toolbox(*arguments: Any) -> passes.Toolbox:
        tools = real(*arguments)

        def infer(*rest: Any) -> torch.Tensor:
            assert tools.infer is not None
            seen.append(rest)
            return tools.infer(*rest)

        return tools if tools.infer is None else tools._replace(infer=infer)

    monkeypatch.setattr(passes, "toolbox", toolbox)
    made = mixer(**options).to(dtype)
    with torch.set_grad_enabled(grad):
        assert made(torch.zeros(1, 4, 16, dtype=dtype)).shape == (1, 4, 16)
    assert bool(seen) == short
