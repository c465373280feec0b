"""What every scanning mixer and every reference promises: any size, any precision, one graph, clear refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ssmvision.layers.mixers import build_mixer

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ("s6", "ssd", "vssd", "hgrn", "biwkv", "attention", "window_attention", "dwconv")
DIM = 12
GRIDS = ((7,), (5, 3), (3, 2, 5))


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def build(name: str, spatial_dims: int, **options: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_mixer(name, DIM, spatial_dims, **options)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_odd_sizes_views_and_no_images(name: str, grid: tuple[int, ...]) -> None:
    mixer, x = build(name, len(grid)), normal(2, *grid, DIM)
    y = mixer(x)
    assert y.shape == x.shape
    view = normal(DIM, *grid[::-1], 2).permute(*range(len(grid) + 1, -1, -1))
    torch.testing.assert_close(mixer(view), mixer(view.contiguous()), rtol=1e-4, atol=1e-5)
    assert mixer(x[:0]).shape == x[:0].shape
    torch.testing.assert_close(mixer(x[1:]), y[1:], rtol=1e-4, atol=1e-5)
    assert mixer(normal(1, *(1,) * len(grid), DIM)).isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_follows_single(name: str) -> None:
    mixer, x = build(name, 2), normal(2, 5, 3, DIM)
    exact = mixer(x)
    with torch.autocast("cpu", torch.bfloat16):
        half = mixer(x)
    assert (half - exact).norm() < 0.02 * exact.norm()
    wanted = torch.autograd.grad(exact.sum(), tuple(mixer.parameters()))
    found = torch.autograd.grad(half.float().sum(), tuple(mixer.parameters()))
    for ours, theirs in zip(found, wanted, strict=True):
        assert (ours - theirs).norm() < 0.05 * theirs.norm() + 1e-2
    low = build(name, 2, dtype=torch.bfloat16)
    assert low(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("name", NAMES)
def test_one_graph(name: str) -> None:
    mixer, x = build(name, 2), normal(1, 4, 3, DIM)
    compiled = torch.compile(mixer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), mixer(x))


@pytest.mark.parametrize("name", NAMES)
def test_parameters_without_decay_exist(name: str) -> None:
    mixer = build(name, 3, device="meta")
    assert all(parameter.is_meta for parameter in mixer.parameters())
    listed = getattr(mixer, "no_weight_decay", set)()
    assert listed <= dict(mixer.named_parameters()).keys()
    assert bool(listed) == (name not in ("hgrn", "attention", "dwconv"))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("s6", {"routes": ("dhw",)}, "no route 'dhw' on a 2D grid"),
        ("s6", {"d_conv": 4}, "take an odd side"),
        ("ssd", {"routes": ()}, "routes is empty"),
        ("ssd", {"head_dim": 5}, "head_dim=5 does not divide 24"),
        ("vssd", {"head_dim": 8, "n_groups": 2}, "n_groups=2 does not divide 3 heads"),
        ("hgrn", {"lower_bound": 1.0}, "lower_bound=1.0"),
        ("biwkv", {"depth": 2.0}, "depth=2.0"),
        ("attention", {"head_dim": 0}, "head_dim=0"),
        ("window_attention", {"window": 0}, "window=0"),
        ("dwconv", {"kernel_size": 2}, "take an odd side"),
        ("dwconv", {"d_state": 2}, "no option 'd_state'"),
    ],
)
def test_refusals(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(name, 2, **options)
