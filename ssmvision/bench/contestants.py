"""What `ssmvision bench scan --device cuda` times: our scan, its peers as their networks run it, and the definition.

All of them start from the same values. Peers get them in their own layout (B, E, L), so that no conversion is timed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ssmvision.bench.shapes import Shape
from ssmvision.kernels.projected_scan import projected_scan_packed
from ssmvision.kernels.routes import route_index
from ssmvision.kernels.selective_scan import selective_scan_nd

__all__ = ["Contestant", "Inputs", "VMambaOps", "composed", "make_inputs", "mamba", "ours", "vmamba"]

Inputs = dict[str, Tensor]


@dataclass
class Contestant:
    """One implementation, ready to run.

    Attributes:
        name: for the table.
        forward: computes the result.
        leaves: tensors that a training step differentiates, by name.
        dout: the result's gradient in a training step, in the result's layout and dtype.
        to_map: brings a result into the layout (B, *grid, E).
    """

    name: str
    forward: Callable[[], Tensor]
    leaves: Inputs
    dout: Tensor = field(repr=False)
    to_map: Callable[[Tensor], Tensor] = lambda out: out

    def training(self) -> tuple[Tensor, ...]:
        """Forward and backward; the gradients in the order of `leaves`."""
        return torch.autograd.grad(self.forward(), list(self.leaves.values()), self.dout)


def make_inputs(shape: Shape, dtype: torch.dtype, device: torch.device | str) -> Inputs:
    """Random values in our layout: A as Mamba starts it (-1 to -N), steps around softplus(-3) = 0.05.

    Keys are the arguments of `selective_scan_nd`, "dout" (gradient of the result), and for a shape with projections
    "x_proj" (K (R + 2 N), E) and "dt_weight" (K, E, R) in place of "delta", "B" and "C".
    """
    generator = torch.Generator(device).manual_seed(0)
    k, channels, states, rank = len(shape.routes), shape.channels, shape.states, shape.rank
    one, each = (shape.batch, *shape.grid), (shape.batch, k, *shape.grid)

    def rand(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device).to(dtype)

    inputs = {"x": rand(*(one if shape.shared else each), channels), "dout": rand(*one, channels)}
    if rank:
        inputs["x_proj"] = rand(k * (rank + 2 * states), channels) / channels**0.5
        inputs["dt_weight"] = rand(k, channels, rank) / rank**0.5
    else:
        inputs |= {"delta": rand(*each, channels), "B": rand(*each, states), "C": rand(*each, states)}
    if shape.gate:
        inputs["z"] = rand(*one, channels)
    decay = torch.arange(1, states + 1, dtype=torch.float32, device=device)
    inputs["A"] = -decay.expand(k, channels, -1).clone()
    inputs["D"] = torch.ones(k, channels, device=device)
    inputs["delta_bias"] = torch.full((k, channels), -3.0, device=device)
    return inputs


def ours(shape: Shape, inputs: Inputs, backend: str = "auto") -> Contestant:
    """`selective_scan_nd`, or with projections one matrix product and `projected_scan_packed`."""
    leaves = _leaves(inputs)

    def scan() -> Tensor:
        return _scan(leaves, shape, backend)

    def core() -> Tensor:
        rows = _projected(leaves["x"], leaves["x_proj"], shape)
        weights = (leaves[name] for name in ("dt_weight", "A", "D", "delta_bias"))
        return projected_scan_packed(leaves["x"], rows, *weights, routes=shape.routes, backend=backend)

    return Contestant("ssmvision", core if shape.rank else scan, leaves, inputs["dout"])


def composed(shape: Shape, inputs: Inputs, backend: str) -> Contestant:
    """The same by `selective_scan_nd` alone, steps computed before it."""
    if not shape.rank:
        return ours(shape, inputs, backend)
    leaves = _leaves(inputs)

    def core() -> Tensor:
        rows = _projected(leaves["x"], leaves["x_proj"], shape).movedim(-2, 1)
        low, B, C = rows.split((shape.rank, shape.states, shape.states), -1)
        delta = torch.einsum("bk...r,ker->bk...e", low, leaves["dt_weight"])
        given = {name: leaves[name] for name in ("x", "A", "D", "delta_bias")}
        return _scan({**given, "delta": delta, "B": B, "C": C}, shape, backend)

    return Contestant(backend, core, leaves, inputs["dout"])


def _scan(given: Inputs, shape: Shape, backend: str) -> Tensor:
    out = selective_scan_nd(**given, delta_softplus=True, routes=shape.routes, backend=backend)  # type: ignore[arg-type]
    assert isinstance(out, Tensor)
    return out


def _leaves(inputs: Inputs) -> Inputs:
    return {name: value.detach().requires_grad_() for name, value in inputs.items() if name != "dout"}


def _projected(x: Tensor, weight: Tensor, shape: Shape) -> Tensor:
    """Low-rank steps, B and C side by side, (B, *grid, K, R + 2 N), by one product."""
    rows: Tensor = F.linear(x, weight).unflatten(-1, (len(shape.routes), -1))
    return rows


def _sequence(t: Tensor, shape: Shape, route: str) -> Tensor:
    """(B, *grid, E) -> (B, E, L) in the order of a route, copied."""
    index = torch.tensor(route_index(route, shape.grid), device=t.device)
    return t.flatten(1, -2).index_select(1, index).transpose(1, 2).contiguous()


def mamba(shape: Shape, inputs: Inputs, scan: Callable[..., Tensor]) -> Contestant:
    """mamba_ssm's scan as Vim (one sequence both ways) and its 3D followers use it.

    The network brings the input (and the gate) into each route's order by permuting and flipping, scans, and brings
    the results back to add them: all that is timed. Steps, B and C are computed from the permuted input, so they come
    in the route's order.
    """
    parts: Inputs = {}
    for k, route in enumerate(shape.routes):
        if not shape.shared or k == 0:
            parts[f"x{k}"] = _channels_first(inputs["x"] if shape.shared else inputs["x"][:, k])
        for name in ("delta", "B", "C"):
            parts[f"{name}{k}"] = _sequence(inputs[name][:, k], shape, route)
        parts |= {f"{name}{k}": inputs[name][k].clone() for name in ("A", "D", "delta_bias")}
    if shape.gate:
        parts["z"] = _channels_first(inputs["z"])
    leaves = _leaves(parts)

    def forward() -> Tensor:
        total: Tensor | None = None
        for k, route in enumerate(shape.routes):
            x = _reorder(leaves["x0" if shape.shared else f"x{k}"], route, shape.grid)
            z = _reorder(leaves["z"], route, shape.grid) if shape.gate else None
            given = (leaves[f"{name}{k}"] for name in ("delta", "A", "B", "C", "D"))
            y = _restore(scan(x, *given, z, leaves[f"delta_bias{k}"], True), route, shape.grid)
            total = y if total is None else total + y
        assert total is not None
        return total

    dout = _channels_first(inputs["dout"])
    return Contestant("mamba_ssm", forward, leaves, dout, lambda out: out.movedim(1, -1))


def _channels_first(t: Tensor) -> Tensor:
    return t.movedim(-1, 1).contiguous()


def _axes(route: str) -> tuple[tuple[int, ...] | None, bool]:
    """Order in which a route nests the axes of a volume (None: as they are), and whether it runs backward."""
    name = route.removesuffix("_reverse")
    order = None if name in ("forward", "backward", "dhw") else tuple("dhw".index(axis) for axis in name)
    return order, route == "backward" or route.endswith("_reverse")


def _reorder(t: Tensor, route: str, grid: tuple[int, ...]) -> Tensor:
    """(B, E, *grid) -> (B, E, L) along a route, by the permutation and flip that a network would write."""
    order, backward = _axes(route)
    if order is not None:
        t = t.permute(0, 1, *(2 + axis for axis in order))
    t = t.flatten(2)
    return t.flip(-1) if backward else t


def _restore(y: Tensor, route: str, grid: tuple[int, ...]) -> Tensor:
    """Undo `_reorder`."""
    order, backward = _axes(route)
    y = y.flip(-1) if backward else y
    nesting = order or tuple(range(len(grid)))
    on_grid: Tensor = y.unflatten(2, tuple(grid[axis] for axis in nesting))
    return on_grid if order is None else on_grid.permute(0, 1, *(2 + order.index(axis) for axis in range(len(grid))))


@dataclass(frozen=True)
class VMambaOps:
    """VMamba's operators: `csm_triton.cross_scan_fn`, `csm_triton.cross_merge_fn` and `csms6s.selective_scan_fn`."""

    cross_scan: Callable[..., Tensor]
    cross_merge: Callable[..., Tensor]
    scan: Callable[..., Tensor]


def vmamba(shape: Shape, inputs: Inputs, ops: VMambaOps) -> Contestant:
    """VMamba's cross scan, grouped scan with float32 output and cross merge, as its SS2D block calls them.

    With projections also its two grouped 1 x 1 convolutions, the form of its second release.
    """
    k, (height, width), batch = len(shape.routes), shape.grid, shape.batch
    parts = {"x": _channels_first(inputs["x"])}
    parts |= {name: inputs[name].flatten(0, 1).clone() for name in ("A", "D", "delta_bias")}
    if shape.rank:
        parts["x_proj"] = inputs["x_proj"].unsqueeze(-1).clone()
        parts["dt_weight"] = inputs["dt_weight"].flatten(0, 1).unsqueeze(-1).clone()
    else:
        for name in ("delta", "B", "C"):
            routes = [_sequence(inputs[name][:, i], shape, route) for i, route in enumerate(shape.routes)]
            parts[name] = torch.cat(routes, 1) if name == "delta" else torch.stack(routes, 1)
    leaves = _leaves(parts)

    def forward() -> Tensor:
        xs = ops.cross_scan(leaves["x"], in_channel_first=True, out_channel_first=True, scans=0).flatten(1, 2)
        if shape.rank:
            rows = F.conv1d(xs, leaves["x_proj"], groups=k).unflatten(1, (k, -1))
            low, B, C = (t.contiguous() for t in rows.split((shape.rank, shape.states, shape.states), 2))
            delta = F.conv1d(low.flatten(1, 2), leaves["dt_weight"], groups=k)
        else:
            delta, B, C = leaves["delta"], leaves["B"], leaves["C"]
        ys = ops.scan(xs, delta, leaves["A"], B, C, leaves["D"], leaves["delta_bias"], True, True)
        ys = ys.view(batch, k, -1, height, width)
        out: Tensor = ops.cross_merge(ys, in_channel_first=True, out_channel_first=True, scans=0)
        return out

    def to_map(out: Tensor) -> Tensor:
        on_grid: Tensor = out.unflatten(-1, (height, width))
        return on_grid.movedim(1, -1)

    dout = inputs["dout"].flatten(1, 2).transpose(1, 2).float().contiguous()
    return Contestant("VMamba", forward, leaves, dout, to_map)
