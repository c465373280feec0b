"""Every backend of the selective scan against autograd through the defining loop, in float64."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from ssmvision.kernels import registry
from ssmvision.kernels.selective_scan import selective_scan, selective_scan_nd, tiles
from ssmvision.kernels.selective_scan.args import ScanArgs
from ssmvision.kernels.selective_scan.config import ChunkedConfig
from ssmvision.kernels.selective_scan.op import OP, scan
from ssmvision.kernels.selective_scan.reference import selective_scan_nd_reference

WIDE = registry.Request(dtype=torch.float64)
BACKENDS = [name for name, reason in registry.explain(OP, WIDE).items() if reason is None]
SKIP = ("skip_even_even", "skip_odd_even", "skip_even_odd", "skip_odd_odd")
CROSS = ("row", "column", "row_reverse", "column_reverse")

# grid, routes: one step, less than a chunk, several chunks with a tail, skip grids of different lengths, 3D.
GEOMETRIES = [
    ((1,), ("forward",)),
    ((9,), ("forward", "backward")),
    ((150,), ("forward", "backward")),
    ((7, 9), CROSS),
    ((13, 11), SKIP),
    ((13, 11), ("skip_odd_odd", "row")),
    ((3, 4, 5), ("dhw", "whd_reverse", "inter_slice")),
]


def make(
    grid: tuple[int, ...],
    k: int,
    *,
    batch: int = 2,
    e: int = 3,
    n: int = 4,
    shared: bool = False,
    extras: bool = True,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> dict[str, Any]:
    g = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    x_shape = (batch, *grid, e) if shared else (batch, k, *grid, e)
    tensors: dict[str, Any] = {
        "x": rand(*x_shape),
        "delta": rand(batch, k, *grid, e),
        "A": -3 * rand(k, e, n).abs(),
        "B": rand(batch, k, *grid, n),
        "C": rand(batch, k, *grid, n),
        "D": rand(k, e) if extras else None,
        "z": rand(batch, *grid, e) if extras else None,
        "delta_bias": rand(k, e) if extras else None,
    }
    return {name: None if t is None else t.requires_grad_() for name, t in tensors.items()}


def definition(tensors: dict[str, Any], routes: tuple[str, ...], merge: str) -> tuple[Tensor, Tensor]:
    """Autograd through the loop, outside the operator."""
    t, delta = tensors, tensors["delta"]
    grid = tuple(delta.shape[2:-1])
    flat = {n: t[n].flatten(2, -2) for n in ("delta", "B", "C")}
    x, z = t["x"], t["z"]
    x = x.flatten(1 if x.dim() < delta.dim() else 2, -2)
    if z is not None:
        z = z.flatten(1, -2)
        z = z.unsqueeze(1) if merge == "none" else z
    args = ScanArgs(
        x, flat["delta"], t["A"], flat["B"], flat["C"], t["D"], z, t["delta_bias"], True, routes, grid, merge
    )
    out, last = selective_scan_nd_reference(args)
    return out.unflatten(-2, grid), last


def gradients(out: Tensor, last: Tensor, tensors: dict[str, Any]) -> list[Tensor]:
    """Of a loss that weighs every output and last state differently."""
    loss = sum((t * torch.cos(torch.arange(t.numel(), dtype=t.dtype)).view(t.shape)).sum() for t in (out, last))
    return list(torch.autograd.grad(loss, [t for t in tensors.values() if t is not None]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("merge", ["sum", "mean", "none"])
@pytest.mark.parametrize(("grid", "routes"), GEOMETRIES, ids=lambda v: "x".join(map(str, v)))
def test_matches_definition(grid: tuple[int, ...], routes: tuple[str, ...], merge: Any, backend: str) -> None:
    for shared, extras in itertools.product((False, True), repeat=2):
        tensors = make(grid, len(routes), shared=shared, extras=extras)
        got = selective_scan_nd(
            **tensors, delta_softplus=True, return_last_state=True, routes=routes, merge=merge, backend=backend
        )
        expected = definition(tensors, routes, merge)
        for a, b in zip((*got, *gradients(*got, tensors)), (*expected, *gradients(*expected, tensors)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("elements", [1, 40, 10_000])
def test_every_tiling_gives_the_same(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks side by side or one by one, batch entries together or apart: the cut is not visible in the result."""
    tensors = make((200,), 2, batch=3)
    routes = ("forward", "backward")
    expected = definition(tensors, routes, "sum")
    expected = (*expected, *gradients(*expected, tensors))
    for config in (
        ChunkedConfig(64, 1, 1, elements),
        ChunkedConfig(70, 10**6, elements, 30),
        ChunkedConfig(128, 10**6, 90, 10**6),
    ):
        monkeypatch.setattr(tiles, "chunked_config", lambda device, config=config: config)
        got = selective_scan_nd(
            **tensors, delta_softplus=True, return_last_state=True, routes=routes, backend="chunked"
        )
        for a, b in zip((*got, *gradients(*got, tensors)), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_split_sequence_continues_from_its_state() -> None:
    """exp(delta A) of the second half times the first half's last state, plus the second half alone, is the whole."""
    tensors = make((100,), 1, extras=False)
    whole = selective_scan_nd(**tensors, return_last_state=True, routes=("forward",))[1]
    halves = []
    for part in (slice(0, 37), slice(37, None)):
        cut = {n: t[:, :, part] if n in ("x", "delta", "B", "C") else t for n, t in tensors.items()}
        halves.append(selective_scan_nd(**cut, return_last_state=True, routes=("forward",))[1])
    delta, A = tensors["delta"], tensors["A"]
    decay = torch.exp(delta[:, :, 37:].sum(2).unsqueeze(-1) * A)
    torch.testing.assert_close(decay * halves[0] + halves[1], whole, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3])
def test_extreme_steps_and_decays_stay_finite_and_right(scale: float) -> None:
    """dt from 1e-6 to 1e3, A down to -1e3, odd length: float32 against the definition in float64."""
    tensors = make((131,), 1, extras=False, dtype=torch.float32)
    with torch.no_grad():
        tensors["delta"] = (tensors["delta"].abs() * scale).requires_grad_()
        tensors["A"] = (tensors["A"] * 300).requires_grad_()
    wide = {n: None if t is None else t.detach().double().requires_grad_() for n, t in tensors.items()}
    results = []
    for group in (tensors, wide):
        got = selective_scan_nd(**group, return_last_state=True, routes=("backward",))
        results.append((*got, *gradients(*got, group)))
    for narrow, exact in zip(*results, strict=True):
        assert torch.isfinite(narrow).all()
        assert (narrow - exact).abs().max() <= 1e-5 * exact.abs().max() + 1e-30


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_computes_in_float32(dtype: torch.dtype) -> None:
    """Only inputs and the output are rounded: the result equals the float32 scan of the same rounded inputs."""
    low = make((90,), 2, dtype=dtype)
    wide = {n: None if t is None else t.detach().float().requires_grad_() for n, t in low.items()}
    routes = ("forward", "backward")
    got = selective_scan_nd(**low, delta_softplus=True, routes=routes)
    expected = selective_scan_nd(**wide, delta_softplus=True, routes=routes)
    assert got.dtype == dtype
    torch.testing.assert_close(got, expected.to(dtype), rtol=0, atol=0)
    assert all(g.dtype == dtype for g in torch.autograd.grad(got.sum(), [t for t in low.values() if t is not None]))


def test_autocast_changes_nothing() -> None:
    tensors = make((70,), 1, dtype=torch.float32)
    plain = selective_scan_nd(**tensors, delta_softplus=True, routes=("forward",))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = selective_scan_nd(**tensors, delta_softplus=True, routes=("forward",))
    torch.testing.assert_close(inside, plain, rtol=0, atol=0)


def test_noncontiguous_zero_batch_and_empty_grid() -> None:
    tensors = make((20,), 1, extras=False)
    x = tensors["x"]
    strided = torch.empty(2, 3, 20, 1, dtype=x.dtype).permute(0, 3, 2, 1)
    strided.copy_(x.detach())
    others = {n: t for n, t in tensors.items() if n != "x"}
    torch.testing.assert_close(
        selective_scan_nd(strided, **others, routes=("forward",)),
        selective_scan_nd(x, **others, routes=("forward",)),
    )
    for empty in (make((20,), 1, batch=0), make((0,), 1)):
        out = selective_scan_nd(**empty, delta_softplus=True, routes=("forward",))
        assert out.numel() == 0
        out.sum().backward()
        assert not empty["A"].grad.any()


def test_gradcheck() -> None:
    tensors = make((70,), 1, batch=1, e=2, n=2)
    names = list(tensors)

    def f(*values: Tensor) -> Any:
        kwargs: Any = dict(zip(names, values, strict=True))
        return selective_scan_nd(**kwargs, delta_softplus=True, return_last_state=True, routes=("backward",))

    assert torch.autograd.gradcheck(f, tuple(tensors.values()), fast_mode=True)


def test_training_memory_holds_no_state_per_token() -> None:
    """What autograd keeps beyond the inputs: entry states, N E of them per 64 tokens."""
    tensors = make((1280,), 1, batch=1, e=8, n=16, dtype=torch.float32)
    kept: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        kept[t.data_ptr()] = t.numel()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        selective_scan_nd(**tensors, delta_softplus=True, routes=("forward",))
    inputs = sum(t.numel() for t in tensors.values() if t is not None)
    assert sum(kept.values()) <= inputs + (1280 // 64 + 1) * 8 * 16 + 1280 * 8  # entry states, and y before the gate


def test_two_runs_are_bitwise_equal() -> None:
    tensors = make((300,), 2, dtype=torch.float32)
    runs = []
    for _ in range(2):
        out, last = selective_scan_nd(
            **tensors, delta_softplus=True, return_last_state=True, routes=("forward", "backward")
        )
        runs.append([out, last, *gradients(out, last, tensors)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_opcheck() -> None:
    for dtype, merge, extras in ((torch.float32, "sum", True), (torch.bfloat16, "none", False)):
        tensors = make((5, 7), 4, dtype=dtype, extras=extras)
        args = (*tensors.values(), True, ",".join(SKIP), merge, True, "auto")
        assert set(torch.library.opcheck(scan, args).values()) == {"SUCCESS"}


def test_compiles_whole_and_once_for_all_lengths() -> None:
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    routes = ("forward", "backward")

    def f(tensors: dict[str, Any]) -> Tensor:
        out = selective_scan_nd(**tensors, delta_softplus=True, routes=routes, merge="mean")
        assert isinstance(out, Tensor)
        return out.sin().sum()

    compiled = torch.compile(f, backend=counter, fullgraph=True, dynamic=True)
    for length in (70, 130, 33):
        tensors = make((length,), 2, dtype=torch.float32)
        leaves = [t for t in tensors.values() if t is not None]
        grads = [torch.autograd.grad(fn(tensors), leaves) for fn in (compiled, f)]
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b)
    assert counter.frame_count == 1


def test_second_derivative_is_refused() -> None:
    tensors = make((8,), 1, extras=False)
    out = selective_scan_nd(**tensors, routes=("forward",))
    (first,) = torch.autograd.grad(out.square().sum(), [tensors["x"]], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative; drop create_graph=True"):
        first.sum().backward()


def test_vmap_is_refused() -> None:
    tensors = make((8,), 1, extras=False)
    x = tensors.pop("x")
    with pytest.raises(NotImplementedError, match="no vmap rule; fold the mapped axis"):
        torch.vmap(lambda t: selective_scan_nd(t, **tensors, routes=("forward",)))(x[None])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"A": torch.zeros(1, 3, 5)}, r"B must have shape \(2, 1, 8, 5\).*got \(2, 1, 8, 4\)"),
        ({"x": torch.zeros(2, 9, 3, dtype=torch.float64)}, r"x must have shape .* got \(2, 9, 3\)"),
        ({"routes": ("spiral",)}, "unknown route 'spiral'; choose from forward"),
        ({"routes": ("row",)}, "'row' needs a 2D grid"),
        ({"merge": "max"}, "merge must be 'sum', 'mean' or 'none', got 'max'"),
        ({"z": torch.zeros(2, 1, 8, 3)}, r"z must have shape \(2, 8, 3\)"),
        ({"backend": "warp"}, "selective_scan has no backend 'warp'; choose from"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], message: str) -> None:
    call: dict[str, Any] = {**make((8,), 1), "routes": ("forward",), "merge": "sum", **change}
    with pytest.raises(ValueError, match=message):
        selective_scan_nd(**call)


def test_integer_input_is_a_type_error() -> None:
    tensors = make((8,), 1) | {"x": torch.zeros(2, 8, 3, dtype=torch.long)}
    with pytest.raises(TypeError, match=r"x must be a real floating-point tensor, got torch\.int64"):
        selective_scan_nd(**tensors, routes=("forward",))


def test_environment_forces_and_forbids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSMVISION_BACKEND", "reference")
    assert registry.choose(OP, registry.Request()).name == "reference"
    assert registry.choose(OP, registry.Request(), "chunked").name == "chunked"
    monkeypatch.setenv("SSMVISION_BACKEND", "-reference,-chunked,-numba")
    with pytest.raises(
        registry.NoBackendError, match=r"chunked: forbidden by SSMVISION_BACKEND=-reference,-chunked,-nu"
    ):
        registry.choose(OP, registry.Request())


def test_slow_backend_speaks_up_once() -> None:
    code = (
        "import torch; from ssmvision.ops import selective_scan;"
        "a = torch.rand(1, 2, 5); A = -torch.rand(2, 3); B = torch.rand(1, 3, 5);"
        "[selective_scan(a, a, A, B, B) for _ in range(3)]"
    )
    environment = os.environ | {"SSMVISION_BACKEND": "-chunked,-numba"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("runs on the slow backend 'reference'") == 1


def test_1d_matches_nd() -> None:
    tensors = make((40,), 1, extras=True)
    t: Any = tensors
    flat = selective_scan(
        t["x"][:, 0].transpose(1, 2),
        t["delta"][:, 0].transpose(1, 2),
        t["A"][0],
        t["B"][:, 0].transpose(1, 2),
        t["C"][:, 0].transpose(1, 2),
        t["D"][0],
        t["z"].transpose(1, 2),
        t["delta_bias"][0],
        True,
    )
    assert isinstance(flat, Tensor)
    expected = selective_scan_nd(**tensors, delta_softplus=True, routes=("forward",))
    torch.testing.assert_close(flat.transpose(1, 2), expected)


def test_backward_runs_where_the_forward_did(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saved states are the forward's backend's own."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"x": (1, 9, 4), "delta": (1, 1, 9, 4), "A": (1, 4, 3), "B": (1, 1, 9, 3), "C": (1, 1, 9, 3)}
    tensors = {name: torch.randn(*shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    tensors = {name: (-t.abs() if name in "A" else t).requires_grad_() for name, t in tensors.items()}

    def gradients(during_backward: str) -> tuple[torch.Tensor, ...]:
        monkeypatch.setenv("SSMVISION_BACKEND", "reference")
        out = selective_scan_nd(**tensors, delta_softplus=True, routes="forward")
        monkeypatch.setenv("SSMVISION_BACKEND", during_backward)
        return torch.autograd.grad(out.sin().sum(), list(tensors.values()))  # type: ignore[union-attr]

    for moved, stayed in zip(gradients("chunked"), gradients("reference"), strict=True):
        assert torch.equal(moved, stayed)
