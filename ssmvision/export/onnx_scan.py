"""The selective scan as ONNX's `Scan`, from standard operators only.

All routes of one length walk side by side in one `Scan`, whose body advances the whole state by a step. In ONNX Runtime
that is faster than scanning chunks side by side and mending their entry states afterwards, which computes more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript import opset20 as op
from torch.onnx._internal.exporter._torchlib.ops.hop import call_op

from ssmvision.export.routes import axis_order
from ssmvision.kernels.routes import route_index

__all__ = ["OPSET", "selective_scan"]

OPSET = 20
FLOAT = ir.TensorType(ir.DataType.FLOAT)
BACKWARDS = np.array([np.iinfo(np.int64).min])


def constant(value: Any) -> Any:
    """A graph's constant."""
    return op.Constant(value=ir.tensor(np.asarray(value)))


def integers(*values: int) -> Any:
    """A constant list of integers."""
    return constant(np.array(values, dtype=np.int64))


class Sizes:
    """A tensor's axes, known numbers where the graph fixes them and read from the tensor where not."""

    def __init__(self, value: Any) -> None:
        self.value, self.known = value, [d if isinstance(d, int) else None for d in value.shape]
        self._shape: Any = None

    def __getitem__(self, axis: int) -> Any:
        """A list of the axis' size."""
        known = self.known[axis]
        if known is not None:
            return integers(known)
        if self._shape is None:
            self._shape = op.Shape(self.value)
        return op.Gather(self._shape, integers(axis % len(self.known)), axis=0)


def reshaped(t: Any, *sizes: Any) -> Any:
    """To a shape of lists, -1 for what is left."""
    return op.Reshape(t, op.Concat(*[integers(s) if isinstance(s, int) else s for s in sizes], axis=0))


def flipped(t: Any) -> Any:
    """The first axis backwards."""
    return op.Slice(t, integers(-1), constant(BACKWARDS), integers(0), integers(-1))


class Walk:
    """One route's way through maps (B, *grid, F), there and back.

    Args:
        route: its name.
        delta: (B, K, *grid, E), for its sizes.
    """

    def __init__(self, route: str, delta: Sizes) -> None:
        self.sizes, self.dims = delta, len(delta.known) - 3
        self.order = axis_order(route, self.dims)
        self.index: Any = None
        if self.order is None:
            grid = delta.known[2:-1]
            if any(size is None for size in grid):
                raise ValueError(f"route {route!r} leaves positions out, so that height and width must be fixed")
            self.index = route_index(route, tuple(int(size or 0) for size in grid)).astype(np.int64)

    @property
    def length(self) -> int | None:
        """Steps; None: all positions."""
        return None if self.index is None else len(self.index)

    def there(self, t: Any, features: int) -> Any:
        """(B, *grid, F) -> (L, B, F) in scan order."""
        batch, last = 0, self.dims + 1
        if self.order is not None:
            turned = op.Transpose(t, perm=[*(1 + axis for axis in self.order.axes), batch, last])
            walked = reshaped(turned, -1, self.sizes[0], features)
            return flipped(walked) if self.order.reverse else walked
        turned = op.Transpose(t, perm=[*range(1, last), batch, last])
        return op.Gather(reshaped(turned, -1, self.sizes[0], features), constant(self.index), axis=0)

    def back(self, y: Any, features: int) -> Any:
        """(L, B, F) -> (B, *grid, F), zero where the route does not pass."""
        if self.order is not None:
            y = flipped(y) if self.order.reverse else y
            grid = [self.sizes[2 + axis] for axis in self.order.axes]
            home = [self.order.axes.index(axis) for axis in range(self.dims)]
            return op.Transpose(reshaped(y, *grid, self.sizes[0], features), perm=[self.dims, *home, self.dims + 1])
        grid = [int(size or 0) for size in self.sizes.known[2:-1]]
        places = np.full(int(np.prod(grid)), len(self.index), dtype=np.int64)
        places[self.index] = np.arange(len(self.index))
        padded = op.Pad(y, integers(0, 0, 0, 1, 0, 0))  # a row of zeros for positions that are not visited
        whole = reshaped(op.Gather(padded, constant(places), axis=0), *grid, self.sizes[0], features)
        return op.Transpose(whole, perm=[self.dims, *range(self.dims), self.dims + 1])


_bodies = 0


def body(rates: Any) -> Any:
    """One step of all routes: state (B, K, E, N); step sizes and inputs (B, K, E); B and C (B, K, N)."""
    global _bodies
    _bodies += 1
    prefix = f"selective_scan_{_bodies}_"
    nodes: list[Any] = []
    names = ("state", "step", "input", "into", "onto")
    state, step, given, into, onto = (ir.Value(name=prefix + name, type=FLOAT) for name in names)

    def node(kind: str, *inputs: Any) -> Any:
        made = ir.Node("", kind, list(inputs), num_outputs=1)
        made.outputs[0].name, made.outputs[0].type = f"{prefix}{len(nodes)}", FLOAT
        nodes.append(made)
        return made.outputs[0]

    last, before = integers(-1), integers(-2)
    decay = node("Exp", node("Mul", node("Unsqueeze", step, last), rates))
    entering = node("Mul", node("Unsqueeze", given, last), node("Unsqueeze", into, before))
    after = node("Add", node("Mul", decay, state), entering)
    y = node("Squeeze", node("MatMul", after, node("Unsqueeze", onto, last)), last)
    opsets = {"": OPSET}
    return ir.Graph(
        [state, step, given, into, onto], [after, y], nodes=nodes, name=prefix + "body", opset_imports=opsets
    )


def stacked(parts: Sequence[Any]) -> Any:
    """L, B, F of each route -> (L, B, K, F)."""
    apart = [op.Unsqueeze(part, integers(2)) for part in parts]
    return apart[0] if len(apart) == 1 else op.Concat(*apart, axis=2)


def of_route(t: Any, k: int) -> Any:
    """(B, K, ...) -> (B, ...)."""
    return op.Squeeze(op.Slice(t, integers(k), integers(k + 1), integers(1)), integers(1))


def scan_group(walks: Sequence[Walk], numbers: Sequence[int], inputs: dict[str, Any], n_state: int) -> tuple[Any, Any]:
    """Scans routes of equal length side by side.

    Args:
        walks: the routes.
        numbers: their places among all routes.
        inputs: x (B, *grid, E) or (B, K, *grid, E), dt (B, K, *grid, E), B, C (B, K, *grid, N), A (K, E, N).
        n_state: N.

    Returns:
        y (L, B, k, E), and the last states (B, k, E, N).
    """
    channels = inputs["channels"]

    def walked(name: str, features: int) -> Any:
        t, shared = inputs[name], name == "x" and inputs["shared"]
        return stacked(
            [w.there(t if shared else of_route(t, k), features) for w, k in zip(walks, numbers, strict=True)]
        )

    dt, into, onto = walked("dt", channels), walked("B", n_state), walked("C", n_state)
    given = op.Mul(dt, walked("x", channels))
    rates = op.Gather(inputs["A"], integers(*numbers), axis=0)
    size = op.Concat(walks[0].sizes[0], integers(len(numbers), channels, n_state), axis=0)
    start = op.ConstantOfShape(size, value=ir.tensor(np.zeros(1, np.float32)))
    last, y = call_op("Scan", start, dt, given, into, onto, _num_outputs=2, body=body(rates), num_scan_inputs=4)
    return y, last


def selective_scan(
    x: Any,
    delta: Any,
    A: Any,
    B: Any,
    C: Any,
    D: Any,
    z: Any,
    delta_bias: Any,
    delta_softplus: bool,
    routes: str,
    merge: str,
    save_states: bool,
    backend: str,
) -> tuple[Any, Any, Any, Any]:
    """Translation of `ssmvision::selective_scan`; what it would keep for a backward is empty.

    Raises:
        ValueError: a route leaves positions out of a grid whose size the graph does not fix.
    """
    names, sizes = routes.split(","), Sizes(delta)
    dims, (_, channels, n_state) = len(sizes.known) - 3, A.shape
    shared = len(x.shape) < len(sizes.known)
    dt = delta
    if delta_bias is not None:
        dt = op.Add(dt, op.Reshape(delta_bias, integers(1, len(names), *[1] * dims, channels)))
    dt = op.Softplus(dt) if delta_softplus else dt
    inputs = {"x": x, "dt": dt, "B": B, "C": C, "A": A, "shared": shared, "channels": channels}
    walks = [Walk(name, sizes) for name in names]
    results, lasts = [None] * len(names), [None] * len(names)
    for length in dict.fromkeys(w.length for w in walks):
        numbers = [k for k, w in enumerate(walks) if w.length == length]
        y, last = scan_group([walks[k] for k in numbers], numbers, inputs, n_state)
        for place, k in enumerate(numbers):
            part = op.Squeeze(op.Slice(y, integers(place), integers(place + 1), integers(2)), integers(2))
            results[k] = walks[k].back(part, channels)
            lasts[k] = op.Slice(last, integers(place), integers(place + 1), integers(1))
    out = merged(results, walks, inputs, D, merge, sizes)
    if z is not None:
        out = op.Mul(out, op.Mul(z, op.Sigmoid(z)))
    empty = constant(np.zeros(0, np.float32))
    return out, op.Concat(*lasts, axis=1), empty, empty


def merged(
    results: Sequence[Any], walks: Sequence[Walk], inputs: dict[str, Any], D: Any, merge: str, sizes: Sizes
) -> Any:
    """Routes' results (B, *grid, E) with the skip D x of the positions that they visit, joined."""
    parts = []
    for k, (result, walk) in enumerate(zip(results, walks, strict=True)):
        if D is None:
            parts.append(result)
            continue
        x = inputs["x"] if inputs["shared"] else of_route(inputs["x"], k)
        skip = op.Mul(x, op.Squeeze(op.Slice(D, integers(k), integers(k + 1), integers(0)), integers(0)))
        if walk.index is not None:
            grid = [int(size or 0) for size in sizes.known[2:-1]]
            visited = np.zeros(int(np.prod(grid)), np.float32)
            visited[walk.index] = 1
            skip = op.Mul(skip, constant(visited.reshape(1, *grid, 1)))
        parts.append(op.Add(result, skip))
    if merge == "none":
        return op.Concat(*[op.Unsqueeze(part, integers(1)) for part in parts], axis=1)
    total = parts[0]
    for part in parts[1:]:
        total = op.Add(total, part)
    return op.Mul(total, constant(np.float32(1 / len(parts)))) if merge == "mean" and len(parts) > 1 else total
