"""Slab streaming against the whole convolution."""

from __future__ import annotations

import pytest
import torch

from ssmvision.kernels.s4nd import long_conv_nd
from ssmvision.kernels.s4nd.streaming import slab_operators, stream_axis, stream_slab
from ssmvision.layers.s4nd_diagonal import S4DKernel
from ssmvision.layers.s4nd_dplr import S4Kernel
from ssmvision.layers.s4nd_ema import EMAKernel

LENGTH = 17
KERNELS = {
    "zoh": lambda: S4DKernel(3, 8, 2, init="legs", dt_min=0.1, dt_max=0.5),
    "bilinear": lambda: S4DKernel(3, 8, 2, init="diag-lin", disc="bilinear", dt_min=0.1, dt_max=0.5),
    "s4": lambda: S4Kernel(3, 8, 2, l_max=LENGTH, dt_min=0.1, dt_max=0.5),
    "ema": lambda: EMAKernel(3, 4),
}


@pytest.mark.parametrize("slab", [1, 4, 17])
@pytest.mark.parametrize("anticausal", [False, True])
@pytest.mark.parametrize("name", KERNELS)
def test_slabs_give_the_whole(name: str, anticausal: bool, slab: int) -> None:
    torch.manual_seed(0)
    kernel = KERNELS[name]().double()
    u = torch.randn(2, 3, LENGTH, 2, 3, dtype=torch.float64)
    taps, centers = [kernel(LENGTH)], [0, 0, 0]
    if anticausal:
        taps, centers = [taps[0].flip(-1)], [LENGTH, 0, 0]
    one = torch.ones(*taps[0].shape[:2], 1, dtype=torch.float64)
    with torch.no_grad():
        expected = long_conv_nd(u, [taps[0], one, one], centers=centers)
        slabs = list(u.split(slab, 2))
        pieces = list(stream_axis(slabs[::-1] if anticausal else slabs, kernel.system(LENGTH), anticausal=anticausal))
    got = torch.cat(pieces[::-1] if anticausal else pieces, 3)
    torch.testing.assert_close(got, expected)


def test_a_state_carries_on_where_it_stopped() -> None:
    system = KERNELS["zoh"]().double().system()
    u = torch.randn(1, 3, 8, dtype=torch.float64)
    whole, after = stream_slab(u, None, slab_operators(system, 8))
    half = slab_operators(system, 4)
    first, state = stream_slab(u[:, :, :4], None, half)
    second, last = stream_slab(u[:, :, 4:], state, half)
    torch.testing.assert_close(torch.cat((first, second), -1), whole)
    torch.testing.assert_close(last, after)


def test_slabs_of_another_length_are_refused() -> None:
    system = KERNELS["ema"]().system()
    with pytest.raises(ValueError, match="slabs of 4 positions, got 3"):
        stream_slab(torch.zeros(1, 3, 3), None, slab_operators(system, 4))
    with pytest.raises(ValueError, match="delay must be 0 or 1"):
        slab_operators(system, 4, delay=2)
