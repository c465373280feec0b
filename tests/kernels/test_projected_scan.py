"""The projected scan where no GPU is needed: its definition, its operator's rules, refusals and launch settings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ssmvision.kernels import registry
from ssmvision.kernels.cuda.availability import available
from ssmvision.kernels.projected_scan import config, projected_scan_nd, projected_scan_packed
from ssmvision.kernels.projected_scan.args import ProjectedRequest
from ssmvision.kernels.projected_scan.config import Size
from ssmvision.kernels.projected_scan.cuda import can_run
from ssmvision.kernels.projected_scan.lines import STEPS, lines_of, map_slots, saved_states, segment_steps
from ssmvision.kernels.projected_scan.op import OP, projected_scan
from ssmvision.kernels.routes import ROUTES, route_index
from ssmvision.kernels.selective_scan import selective_scan_nd

CROSS = ("row", "column", "row_reverse", "column_reverse")
HOPPER = 232448  # bytes of shared memory that a block may have


def make(
    grid: tuple[int, ...] = (4, 3),
    routes: int = 4,
    channels: int = 5,
    rank: int = 3,
    states: int = 2,
    dtype: torch.dtype = torch.float64,
    shared: bool = True,
) -> dict[str, Any]:
    g = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype).requires_grad_()

    apart = (2, routes, *grid)
    return {
        "x": rand(2, *grid, channels) if shared else rand(*apart, channels),
        "low": rand(*apart, rank),
        "dt_weight": rand(routes, channels, rank),
        "A": (-torch.rand(routes, channels, states, generator=g, dtype=torch.float64) - 0.1).requires_grad_(),
        "B": rand(*apart, states),
        "C": rand(*apart, states),
        "D": rand(routes, channels),
        "delta_bias": rand(routes, channels),
    }


def composed(t: dict[str, Any], routes: tuple[str, ...], merge: Any) -> Tensor:
    """The definition, written with the other public function."""
    delta = torch.einsum("bk...r,ker->bk...e", t["low"], t["dt_weight"])
    scanned = {n: t[n] for n in ("x", "A", "B", "C", "D", "delta_bias")}
    out = selective_scan_nd(delta=delta, **scanned, delta_softplus=True, routes=routes, merge=merge)
    assert isinstance(out, Tensor)
    return out


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("merge", ["sum", "mean", "none"])
@pytest.mark.parametrize(
    ("grid", "routes"),
    [((7,), ("forward", "backward")), ((4, 3), CROSS), ((5, 3), ("skip_odd_even", "row")), ((2, 3, 2), ("dwh",))],
)
def test_equals_the_scan_of_projected_steps(
    grid: tuple[int, ...], routes: tuple[str, ...], merge: Any, shared: bool
) -> None:
    t = make(grid, len(routes), shared=shared)
    got, want = projected_scan_nd(**t, routes=routes, merge=merge), composed(t, routes, merge)
    torch.testing.assert_close(got, want)
    weights = torch.cos(torch.arange(got.numel(), dtype=got.dtype)).view(got.shape)
    grads = torch.autograd.grad((got * weights).sum(), list(t.values()))
    for name, a, b in zip(t, grads, torch.autograd.grad((want * weights).sum(), list(t.values())), strict=True):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}")


def test_gradients_against_differences() -> None:
    t = make((2, 3), channels=2, rank=2, states=1)
    names = list(t)

    def run(*values: Tensor) -> Tensor:
        return projected_scan_nd(**dict(zip(names, values, strict=True)), routes=CROSS)

    assert torch.autograd.gradcheck(run, list(t.values()))


def packed(t: dict[str, Any]) -> Tensor:
    return torch.cat([t[n].movedim(1, -2) for n in ("low", "B", "C")], -1)


def test_packed_projections_give_the_same() -> None:
    t = make()
    got = projected_scan_packed(t["x"], packed(t), t["dt_weight"], t["A"], t["D"], t["delta_bias"], routes=CROSS)
    torch.testing.assert_close(got, projected_scan_nd(**t, routes=CROSS))


def test_skip_and_bias_may_be_absent() -> None:
    t = make() | {"D": None, "delta_bias": None}
    torch.testing.assert_close(projected_scan_nd(**t, routes=CROSS), composed(t, CROSS, "sum"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_inputs_are_computed_in_float32(dtype: torch.dtype) -> None:
    t = make(channels=8, dtype=dtype)
    wide = {name: value.detach().double() for name, value in t.items()}
    got, want = projected_scan_nd(**t, routes=CROSS), composed(wide, CROSS, "sum")
    assert got.dtype == dtype
    assert (got.double() - want).norm() / want.norm() < 2e-3
    grads = torch.autograd.grad(got.float().sum(), list(t.values()))
    assert [g.dtype for g in grads] == [v.dtype for v in t.values()]


def test_autocast_changes_nothing() -> None:
    t = make(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = projected_scan_nd(**t, routes=CROSS)
    assert torch.equal(inside, projected_scan_nd(**t, routes=CROSS))


def test_operator_rules() -> None:
    t = make(dtype=torch.float32)
    args = (t["x"], packed(t).detach().requires_grad_(), t["dt_weight"], t["A"], t["D"], t["delta_bias"])
    torch.library.opcheck(projected_scan, (*args, ",".join(CROSS), "sum", True, "auto"))


def test_second_derivative_and_vmap_are_refused() -> None:
    t = make(dtype=torch.float32)
    out = projected_scan_nd(**t, routes=CROSS)
    (grad,) = torch.autograd.grad(out.sum(), t["x"], create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        torch.autograd.grad(grad.sum(), t["low"])
    still = {name: value.detach() for name, value in t.items()}
    with pytest.raises(NotImplementedError, match="fold the mapped axis"):
        torch.vmap(lambda x: projected_scan_nd(**(still | {"x": x}), routes=CROSS))(
            still["x"].expand(3, -1, -1, -1, -1)
        )


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("dt_weight", torch.zeros(4, 6, 3), r"dt_weight must have shape \(4, 5, 3\)"),
        ("A", torch.zeros(4, 5), "A and dt_weight must be"),
        ("B", torch.zeros(2, 4, 4, 3, 1), r"B must have shape \(2, 4, 4, 3, 2\)"),
        ("low", torch.zeros(2, 4, 3), "low must be"),
        ("D", torch.zeros(5), r"D must have shape \(4, 5\)"),
        ("x", torch.zeros(2, 4, 5), "x must have shape"),
    ],
)
def test_wrong_shapes_are_named(name: str, value: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        projected_scan_nd(**(make() | {name: value.double()}), routes=CROSS)


def test_wrong_routes_merge_and_types_are_named() -> None:
    t = make()
    with pytest.raises(ValueError, match="unknown route 'up'"):
        projected_scan_nd(**t, routes=("up", *CROSS[1:]))
    with pytest.raises(ValueError, match="needs a 3D grid"):
        projected_scan_nd(**t, routes=("dhw", *CROSS[1:]))
    with pytest.raises(ValueError, match="merge must be"):
        projected_scan_nd(**t, routes=CROSS, merge="max")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="C must be a real floating-point tensor"):
        projected_scan_nd(**(t | {"C": t["C"].long()}), routes=CROSS)
    with pytest.raises(ValueError, match="has no backend 'triton'"):
        projected_scan_nd(**t, routes=CROSS, backend="triton")


def test_choice_is_explained() -> None:
    reasons = registry.explain(OP, ProjectedRequest())
    assert reasons == {"cuda": "cpu is not a CUDA device", "composition": None}
    assert registry.choose(OP, ProjectedRequest()).name == "composition"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"shared": False}, "one x for all routes"),
        ({"merge": "none"}, "merges the routes"),
        ({"states": 16}, "1, 2 or 4 states, not 16"),
        ({"rank": 65}, "ranks 1 to 64, not 65"),
        ({"channels": 20}, "multiple of 8 channels, not 20"),
        ({"routes": ("forward",) * 9}, "at most 8 routes, not 9"),
        ({"routes": ("skip_odd_odd",), "grid": (4, 4)}, "skip_odd_odd of the grid"),
        ({"grid": (200, 200)}, "40000 positions do not fit"),
    ],
)
def test_what_the_kernels_do_not_take(monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], reason: str) -> None:
    from ssmvision.kernels.projected_scan import cuda

    monkeypatch.setattr(cuda, "available", lambda device: None)
    monkeypatch.setattr(cuda, "_shared_limit", lambda device: HOPPER)
    taken = {"device": "cuda:0", "routes": CROSS, "grid": (56, 56), "channels": 192, "rank": 6}
    assert can_run(ProjectedRequest(**taken)) is None  # type: ignore[arg-type]
    told = can_run(ProjectedRequest(**(taken | change)))  # type: ignore[arg-type]
    assert told is not None
    assert reason in told


def test_availability_comes_first() -> None:
    assert can_run(registry.Request("cuda:0")) == available("cuda:0")
    assert (
        can_run(registry.Request("cuda:0", torch.float64)) == "computes in float32, so torch.float64 is left to others"
    )


@pytest.mark.parametrize("grid", [(1,), (9,), (1, 1), (1, 5), (5, 1), (7, 4), (4, 6), (3, 2, 4), (2, 1, 3)])
def test_lines_visit_what_the_route_visits(grid: tuple[int, ...]) -> None:
    found, slots = 0, set()
    for name, (dims, _) in ROUTES.items():
        lines = lines_of(name, grid) if dims in (0, len(grid)) else None
        if lines is None:
            continue
        line, step = (v.ravel() for v in np.meshgrid(range(lines.number), range(lines.length), indexing="ij"))
        visited = lines.base + line * lines.line + step * lines.step
        assert np.array_equal(visited, route_index(name, grid)), name
        places = lines.slot_base + line * lines.slot_line + step * lines.slot_step
        assert 0 <= places.min() <= places.max() < map_slots(grid)
        slots.add(tuple(places[np.argsort(visited)]))
        found += 1
    assert found >= (2 if len(grid) == 1 else 4)
    assert len(slots) == 1  # all routes agree where in the map a position is
    assert len(set(slots.pop())) == int(np.prod(grid))


def test_skipping_routes_have_no_lines() -> None:
    assert lines_of("skip_even_even", (4, 4)) is None
    assert segment_steps(("row", "skip_even_even"), (4, 4), 1) == saved_states(("skip_even_even",), (4, 4), 1) == 0
    assert segment_steps(("row",), (4, 4), 3) == 0


@pytest.mark.parametrize(("width", "steps"), [(56, 7), (28, 7), (14, 7), (7, 7), (64, 7), (8, 5), (5, 5)])
def test_segments_waste_few_steps(width: int, steps: int) -> None:
    assert segment_steps(CROSS, (width, width), 1) == steps
    assert saved_states(CROSS, (width, width), 1) == width * -(-width // steps)


@pytest.mark.parametrize("states", [1, 2, 4])
@pytest.mark.parametrize("rank", [1, 6, 12, 24, 48, 64])
@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("width", [1, 7, 14, 28, 33, 56])
def test_cuts_fit_and_cover(width: int, half: bool, rank: int, states: int) -> None:
    grid = (width, width)
    segments, steps = saved_states(CROSS, grid, states), segment_steps(CROSS, grid, states)
    assert steps in STEPS[states]
    size = Size(map_slots(grid), segments, steps, rank, states, half)
    for backward, choose in ((False, config.forward_pass), (True, config.backward_pass)):
        cut = choose(size, HOPPER)
        if cut is None:
            assert width == 56  # 200 KiB of the map itself, and the weights of a long rank beside it
            assert rank > 12 or states > 1
            continue
        assert cut.warps * 32 <= cut.threads
        assert cut.rounds * cut.warps * config.SEGMENTS >= segments
        assert (cut.rounds - 1) * cut.warps * config.SEGMENTS < segments
        # No link is written again within the rounds that warps may be apart, and a round takes the one's before it.
        assert cut.kept >= min(cut.rounds, 2)
        assert cut.kept >= cut.rounds or cut.apart < cut.kept
        assert all(n > 0 and n & (n - 1) == 0 for n in (cut.kept, cut.apart))
        assert config.shared_bytes(size, backward, cut) <= HOPPER


@pytest.mark.parametrize(("width", "rank", "channels"), [(56, 6, 96), (28, 12, 192), (14, 24, 384), (7, 48, 768)])
def test_blocks_take_several_small_images(width: int, rank: int, channels: int) -> None:
    size = Size(map_slots((width, width)), saved_states(CROSS, (width, width), 1), 7, rank, 1, True)
    for backward, choose in ((False, config.forward_pass), (True, config.backward_pass)):
        cut = choose(size, HOPPER)
        assert cut is not None
        counts = [
            config.images_per_block(
                size, cut, HOPPER, backward=backward, batch=batch, tiles=channels // config.TILE, processors=132
            )
            for batch in (1, 128)
        ]
        assert counts[0] == 1
        assert (counts[1] > 1) == (width < 28)
        assert config.shared_bytes(size, backward, cut, counts[1]) <= HOPPER


def test_images_beyond_shared_memory_have_no_cut() -> None:
    assert config.forward_pass(Size(4160, 640, 7, 6, 1, True), HOPPER) is None
    assert config.backward_pass(Size(3192, 448, 7, 6, 1, True), 166912) is None
