"""The projected scan's `torch.library` operators: schema, fake, autograd and autocast rules, and the backend table."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ssmvision.kernels import registry
from ssmvision.kernels.operators import define_operator
from ssmvision.kernels.projected_scan import composition, cuda
from ssmvision.kernels.projected_scan.args import ProjectedArgs, ProjectedRequest
from ssmvision.kernels.projected_scan.lines import saved_states
from ssmvision.kernels.selective_scan.args import compute_dtype

__all__ = ["OP", "projected_scan", "request_of"]

OP = "projected_scan"

registry.register(OP, registry.Backend("cuda", 30, cuda.can_run, cuda.forward, cuda.backward))
registry.register(
    OP, registry.Backend("composition", 10, lambda request: None, composition.forward, composition.backward)
)


def _args(
    x: Tensor,
    projected: Tensor,
    dt_weight: Tensor,
    A: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    routes: str,
    merge: str,
) -> ProjectedArgs:
    """Flatten the grid."""
    grid = tuple(projected.shape[1:-2])
    first = 1 if x.dim() < projected.dim() else 2
    names = tuple(routes.split(","))
    return ProjectedArgs(
        x.flatten(first, -2), projected.flatten(1, -3), dt_weight, A, D, delta_bias, names, grid, merge
    )


def request_of(args: ProjectedArgs) -> ProjectedRequest:
    """What a call asks of a backend; see `registry.explain`."""
    _, channels, states = args.A.shape
    return ProjectedRequest(
        str(args.x.device),
        compute_dtype(args.x, args.projected),
        routes=args.routes,
        grid=args.grid,
        channels=channels,
        rank=args.dt_weight.shape[2],
        states=states,
        shared=args.x.dim() == 3,
        merge=args.merge,
    )


def _backend(args: ProjectedArgs, backend: str) -> registry.Backend:
    return registry.choose(OP, request_of(args), backend)


def _out_shape(x: Tensor, projected: Tensor, channels: int, merge: str) -> tuple[int, ...]:
    batch, *grid, routes, _ = projected.shape
    return (batch, routes, *grid, channels) if merge == "none" else (batch, *grid, channels)


def _forward(
    x: Tensor,
    projected: Tensor,
    dt_weight: Tensor,
    A: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    routes: str,
    merge: str,
    save_states: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Return out and, for a backward (else empty), the saved states (B, K, segments, N, E)."""
    args = _args(x, projected, dt_weight, A, D, delta_bias, routes, merge)
    with torch.autocast(x.device.type, enabled=False):
        out, saved = _backend(args, backend).forward(args, save_states)
    return out.reshape(_out_shape(x, projected, A.shape[1], merge)).contiguous(), saved


def _forward_fake(
    x: Tensor,
    projected: Tensor,
    dt_weight: Tensor,
    A: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    routes: str,
    merge: str,
    save_states: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    n_routes, channels, states = A.shape
    count = _saved_count(projected, routes, states) if save_states else 0
    shape = (projected.shape[0], n_routes, count, states, channels)
    saved = x.new_empty(shape, dtype=compute_dtype(x, projected))
    return x.new_empty(_out_shape(x, projected, channels, merge)), saved


def _saved_count(projected: Tensor, routes: str, states: int) -> int | torch.SymInt:
    """States saved of each route; where a compiler leaves the grid open, a number that only running the scan tells."""
    grid = tuple(projected.shape[1:-2])
    if any(isinstance(size, torch.SymInt) for size in grid):
        return torch.library.get_ctx().new_dynamic_size()
    return saved_states(tuple(routes.split(",")), grid, int(states))


def _gradients(
    x: Tensor,
    projected: Tensor,
    dt_weight: Tensor,
    A: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    routes: str,
    merge: str,
    backend: str,
    saved: Tensor,
    dout: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the six tensors, in their dtypes; of an absent one, an empty tensor."""
    args = _args(x, projected, dt_weight, A, D, delta_bias, routes, merge)
    flat_dout = dout.flatten(2 if merge == "none" else 1, -2)
    with torch.autocast(x.device.type, enabled=False):
        grads = _backend(args, backend).backward(args, saved, flat_dout)
    inputs = (x, projected, dt_weight, A, D, delta_bias)
    shaped = (
        x.new_empty(0) if t is None else g.reshape(t.shape).contiguous() for g, t in zip(grads, inputs, strict=True)
    )
    return tuple(shaped)  # type: ignore[return-value]


def _gradients_fake(x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    inputs: tuple[Tensor | None, ...] = (x, *rest[:5])
    return tuple(x.new_empty(0) if t is None else x.new_empty(t.shape, dtype=t.dtype) for t in inputs)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.routes, ctx.merge, save_states, ctx.backend = inputs
    if not save_states:
        raise RuntimeError("the scan ran without saving its states, so it has no gradient; pass save_states=True")
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, dout: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    *tensors, saved = ctx.saved_tensors
    if dout is None:
        return (None,) * 10
    grads = _gradients_op(*tensors, ctx.routes, ctx.merge, ctx.backend, saved, dout)
    return (*(None if t is None else g for g, t in zip(grads, tensors, strict=True)), *(None,) * 4)


projected_scan, _gradients_op = define_operator(
    "projected_scan",
    _forward,
    _forward_fake,
    _gradients,
    _gradients_fake,
    backward=_backward,
    setup_context=_setup_context,
)
