"""The drop-in for `mamba_ssm`'s scan: every layout of B and C, real and complex A, against a loop written apart."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssmvision.ops.selective_scan_interface import mamba_inner_fn, selective_scan_fn, selective_scan_ref

LAYOUTS = ["constant", "variable", "groups"]


def naive(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None) -> Tensor:
    """B and C already (B, D, N, L)."""
    h = torch.zeros(u.shape[0], *A.shape, dtype=A.dtype)
    ys = []
    for t in range(u.shape[-1]):
        h = torch.exp(delta[..., t, None] * A) * h + (delta[..., t] * u[..., t])[..., None] * B[..., t]
        y = (h * C[..., t]).sum(-1)
        ys.append(2 * y.real if A.is_complex() else y)
    out = torch.stack(ys, -1)
    if D is not None:
        out = out + D[:, None] * u
    return out if z is None else out * F.silu(z)


def make_bc(layout: str, complex_: bool, batch: int, channels: int, n: int, length: int) -> tuple[Tensor, Tensor]:
    """B or C as the interface takes it, and as (B, D, N, L)."""
    dtype = torch.complex64 if complex_ else torch.float32
    if layout == "constant":
        t = torch.randn(channels, n, dtype=dtype)
        return t, t[None, :, :, None].expand(batch, channels, n, length)
    groups = 2 if layout == "groups" else 1
    wide = torch.randn(batch, groups, n, length, dtype=dtype)
    full = wide.repeat_interleave(channels // groups, 1)
    if complex_:
        wide = torch.view_as_real(wide).flatten(-2)
    return wide if groups > 1 else wide[:, 0], full


@pytest.mark.parametrize("complex_", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize(("b_layout", "c_layout"), list(itertools.product(LAYOUTS, LAYOUTS)))
def test_layouts(b_layout: str, c_layout: str, complex_: bool) -> None:
    torch.manual_seed(0)
    batch, channels, n, length = 2, 4, 3, 11
    A = -0.5 * torch.rand(channels, n, dtype=torch.complex64 if complex_ else torch.float32)
    (B, B_full), (C, C_full) = (make_bc(k, complex_, batch, channels, n, length) for k in (b_layout, c_layout))
    u, raw, z = (torch.randn(batch, channels, length) for _ in range(3))
    D, bias = torch.randn(channels), torch.rand(channels)
    leaves = [t.requires_grad_() for t in (u, raw, A, B, C, D, z, bias)]
    out, last = selective_scan_fn(u, raw, A, B, C, D, z, bias, True, True)
    expected = naive(u, F.softplus(raw + bias[:, None]), A, B_full, C_full, D, z)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    assert last.shape == (batch, channels, n)
    grads = torch.autograd.grad(out.square().sum(), leaves)
    ref = torch.autograd.grad(selective_scan_ref(u, raw, A, B, C, D, z, bias, True).square().sum(), leaves)
    for a, b in zip(grads, ref, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_inner_function_is_the_composition() -> None:
    torch.manual_seed(0)
    channels, rank, n, dim, length = 6, 2, 3, 5, 9
    xz = torch.randn(2, 2 * channels, length)
    taps, taps_bias = torch.randn(channels, 1, 3), torch.randn(channels)
    x_proj, dt_proj, out_proj = (
        torch.randn(rank + 2 * n, channels),
        torch.randn(channels, rank),
        torch.randn(dim, channels),
    )
    A, D, bias = -torch.rand(channels, n), torch.randn(channels), torch.rand(channels)
    got = mamba_inner_fn(xz, taps, taps_bias, x_proj, dt_proj, out_proj, None, A, D=D, delta_bias=bias)
    x, z = xz.chunk(2, 1)
    x = F.silu(F.conv1d(x, taps, taps_bias, groups=channels, padding=2)[..., :length])
    p = torch.einsum("bdl,rd->brl", x, x_proj)
    delta = F.softplus(torch.einsum("brl,dr->bdl", p[:, :rank], dt_proj) + bias[:, None])
    B, C = (p[:, None, rank + i * n : rank + (i + 1) * n].expand(-1, channels, -1, -1) for i in range(2))
    expected = torch.einsum("bdl,od->blo", naive(x, delta, A, B, C, D, z), out_proj)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 4, 8), (2, 4, 7), (4, 3), (2, 3, 8), (2, 3, 8)), r"\(2, 4, 8\) and \(2, 4, 7\)"),
        (((2, 4, 8), (2, 4, 8), (5, 3), (2, 3, 8), (2, 3, 8)), r"A must have shape \(4, N\), got \(5, 3\)"),
        (((2, 4, 8), (2, 4, 8), (4, 3), (2, 3, 3, 8), (2, 3, 8)), "3 and 1 groups, which must agree and divide 4"),
        (((2, 4, 8), (2, 4, 8), (4, 3), (2, 3, 9), (2, 3, 8)), r"B must have shape"),
    ],
)
def test_bad_shapes_are_named(shapes: tuple[tuple[int, ...], ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        selective_scan_fn(*(torch.zeros(s) for s in shapes))
