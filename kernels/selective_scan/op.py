"""The selective scan's `torch.library` operator: schema, fake, autograd and autocast rules, and the backend table.

One operator serves every public function. It takes the grid as it is; routes travel as one comma-separated string,
because operator schemas have no list of strings that is traced everywhere.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ssmvision.kernels import registry
from ssmvision.kernels.operators import define_operator
from ssmvision.kernels.selective_scan import chunked, cuda, numba, reference, triton
from ssmvision.kernels.selective_scan.args import ScanArgs, compute_dtype
from ssmvision.kernels.selective_scan.config import n_saved

__all__ = ["OP", "scan"]

OP = "selective_scan"

registry.register(
    OP,
    registry.Backend("cuda", 30, cuda.can_run, cuda.forward, cuda.backward),
)
registry.register(
    OP,
    registry.Backend("triton", 20, triton.can_run, triton.forward, triton.backward),
)
registry.register(
    OP,
    registry.Backend("numba", 15, numba.can_run, numba.forward, numba.backward),
)
registry.register(
    OP,
    registry.Backend("chunked", 10, lambda request: None, chunked.forward, chunked.backward, slow_on=("cuda", "cpu")),
)
registry.register(
    OP,
    registry.Backend("reference", 0, lambda request: None, reference.forward, reference.backward, slow=True),
)


def _args(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    routes: str,
    merge: str,
) -> ScanArgs:
    """Flatten the grid."""
    grid = tuple(delta.shape[2:-1])
    first = 1 if x.dim() < delta.dim() else 2
    if z is not None:
        z = z.flatten(2 if z.dim() == delta.dim() else 1, -2)
    delta, B, C = (t.flatten(2, -2) for t in (delta, B, C))
    names = tuple(routes.split(","))
    return ScanArgs(x.flatten(first, -2), delta, A, B, C, D, z, delta_bias, delta_softplus, names, grid, merge)


def _backend(x: Tensor, delta: Tensor, backend: str) -> registry.Backend:
    request = registry.Request(str(x.device), torch.promote_types(x.dtype, delta.dtype))
    return registry.choose(OP, request, backend)


def _out_shape(delta: Tensor, merge: str) -> tuple[int, ...]:
    return tuple(delta.shape) if merge == "none" else (delta.shape[0], *delta.shape[2:])


def _forward(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    routes: str,
    merge: str,
    save_states: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return out, the last states (B, K, E, N) and, for a backward (else empty), the saved states and ungated out."""
    args = _args(x, delta, A, B, C, D, z, delta_bias, delta_softplus, routes, merge)
    with torch.autocast(x.device.type, enabled=False):
        out, last, saved, ungated = _backend(x, delta, backend).forward(args, save_states)
    shape = _out_shape(delta, merge)
    kept = x.new_empty(0) if ungated is None else ungated.reshape(shape).contiguous()
    return out.reshape(shape).contiguous(), last, saved, kept


def _forward_fake(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    routes: str,
    merge: str,
    save_states: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, n_routes = delta.shape[:2]
    _, channels, n_state = A.shape
    positions = 1
    for size in delta.shape[2:-1]:
        positions = positions * size
    saved = n_saved(positions, delta.device.type) if save_states else 0
    dtype = compute_dtype(x, delta)
    return (
        x.new_empty(_out_shape(delta, merge)),
        x.new_empty((batch, n_routes, channels, n_state), dtype=dtype),
        x.new_empty((saved, batch, n_routes, n_state, channels), dtype=dtype),
        x.new_empty(_out_shape(delta, merge) if save_states and z is not None else 0),
    )


def _gradients(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    routes: str,
    merge: str,
    backend: str,
    saved: Tensor,
    ungated: Tensor,
    dout: Tensor,
    dlast: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the eight tensors, in their dtypes; of an absent one, an empty tensor."""
    args = _args(x, delta, A, B, C, D, z, delta_bias, delta_softplus, routes, merge)
    flat_dout = dout.flatten(2 if merge == "none" else 1, -2)
    with torch.autocast(x.device.type, enabled=False):
        grads = _backend(x, delta, backend).backward(
            args, saved, None if z is None else ungated.reshape(flat_dout.shape), flat_dout, dlast
        )
    inputs = (x, delta, A, B, C, D, z, delta_bias)
    shaped = (
        x.new_empty(0) if t is None else g.reshape(t.shape).contiguous() for g, t in zip(grads, inputs, strict=True)
    )
    return tuple(shaped)  # type: ignore[return-value]


def _gradients_fake(x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    inputs: tuple[Tensor | None, ...] = (x, *rest[:7])
    return tuple(x.new_empty(0) if t is None else x.new_empty(t.shape, dtype=t.dtype) for t in inputs)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.delta_softplus, ctx.routes, ctx.merge, save_states, backend = inputs
    if not save_states:
        raise RuntimeError("the scan ran without saving its states, so it has no gradient; pass save_states=True")
    # Saved states are one backend's own: the backward must not be left to choose again, under another environment.
    ctx.backend = _backend(tensors[0], tensors[1], backend).name
    # Unused outputs would otherwise arrive as zeros of the saved states' size.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *output[2:])
    ctx.mark_non_differentiable(*output[2:])


def _backward(ctx: Any, dout: Tensor | None, dlast: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    *tensors, saved, ungated = ctx.saved_tensors
    x, delta = tensors[:2]
    if dout is None:
        dout = x.new_zeros(_out_shape(delta, ctx.merge))
    kept = (saved, ungated, dout, dlast)
    grads = scan_backward(*tensors, ctx.delta_softplus, ctx.routes, ctx.merge, ctx.backend, *kept)
    return (*(None if t is None else g for g, t in zip(grads, tensors, strict=True)), *(None,) * 5)


scan, scan_backward = define_operator(
    "selective_scan",
    _forward,
    _forward_fake,
    _gradients,
    _gradients_fake,
    backward=_backward,
    setup_context=_setup_context,
)
