"""The mixer's `torch.library` operator: schema, fake and autograd rules.

All parameters travel as one list, in the order of `Parameters.flat`; routes as one comma-separated string.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ssmvision.kernels.mamba_mixer import numba, pack, passes
from ssmvision.kernels.mamba_mixer.args import Parameters, sizes_of
from ssmvision.kernels.operators import define_operator
from ssmvision.kernels.selective_scan.op import scan

__all__ = ["autocast_enabled", "autocast_off", "is_eager", "mixer", "mixer_backward", "run", "spread"]


Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def _forward(
    tokens: Tensor, parameters: Sequence[Tensor], routes: str, merge: str, keep: str, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return out (B, L, D), the fields of `Kept`, and the packed parameters; empty where `keep` leaves them out."""
    names = tuple(routes.split(","))
    return _run(tokens, Parameters.from_flat(parameters, len(names)), names, merge, keep, backend)


def _run(tokens: Tensor, p: Parameters, routes: tuple[str, ...], merge: str, keep: str, backend: str) -> Outputs:
    tools = passes.toolbox(tokens.device, tokens.dtype, backend)
    if keep == "nothing" and tools.infer is not None and numba.takes(tokens, p):
        with autocast_off(tokens.device.type):
            return _alone(tools.infer(tokens, p, routes, merge), p)
    layout = pack.layout_of(p, tokens.dtype)
    with autocast_off(tokens.device.type):
        low, exact = pack.buffers(p, tokens.dtype, layout)
        tools.fill(p, layout, low, exact)
        out, kept = passes.forward(tools, tokens.contiguous(), pack.view(p, layout, low, exact), routes, merge, keep)
    if keep == "nothing":
        low, exact = low.new_empty(0), exact.new_empty(0)
    return out, *kept, low, exact


def _alone(out: Tensor, p: Parameters) -> Outputs:
    """A result of which nothing is kept."""
    s = sizes_of(p)
    xz, x_dbl, u, delta, y, low, exact = (out.new_empty(0) for _ in range(7))
    return out, xz, x_dbl, u, delta, y, out.new_empty(0, out.shape[0], s.routes, s.state, s.inner), low, exact


def autocast_enabled(device: str) -> bool:
    """Whether autocast is on for a type of device; meta has none."""
    return device != "meta" and torch.is_autocast_enabled(device)


@contextmanager
def autocast_off(device: str) -> Iterator[None]:
    """As `torch.autocast(device, enabled=False)`, for a fraction of the time."""
    if not autocast_enabled(device):
        yield
        return
    torch.set_autocast_enabled(device, False)
    try:
        yield
    finally:
        torch.set_autocast_enabled(device, True)


def _forward_fake(
    tokens: Tensor, parameters: Sequence[Tensor], routes: str, merge: str, keep: str, backend: str
) -> tuple[Tensor, ...]:
    names = tuple(routes.split(","))
    p = Parameters.from_flat(parameters, len(names))
    s = sizes_of(p)
    batch, length, _ = tokens.shape
    # Sizes may be symbols here, which the kept layouts cannot be looked up by.
    rank = pack.padded_rank(s.rank, tokens.dtype)
    low, exact = pack.buffers(p, tokens.dtype, pack.lay_out(s, rank, p.in_weight.dtype != tokens.dtype))
    if keep == "nothing":
        low, exact = low.new_empty(0), exact.new_empty(0)
    y, states = _scan_fake(tokens, p, names, merge, keep in ("states", "everything"), backend)
    xz, x_dbl, u, delta = (tokens.new_empty(0) for _ in range(4))
    rows = (s.routes, batch, length)
    if keep not in ("nothing", "tokens"):
        xz, x_dbl = tokens.new_empty(batch, length, 2 * s.inner), tokens.new_empty(*rows, rank + 2 * s.state)
    if keep == "everything":
        u, delta = tokens.new_empty(*rows, s.inner), tokens.new_empty(*rows, s.inner)
    return tokens.new_empty(tokens.shape), xz, x_dbl, u, delta, y, states, low, exact


def _scan_fake(
    tokens: Tensor, p: Parameters, routes: tuple[str, ...], merge: str, save: bool, backend: str
) -> tuple[Tensor, Tensor]:
    """Shapes of the ungated result and the states, as the scan's own operator gives them."""
    s = sizes_of(p)
    shape = (tokens.shape[0], s.routes, tokens.shape[1])
    u, b = tokens.new_empty(*shape, s.inner), tokens.new_empty(*shape, s.state)
    a = tokens.new_empty(s.routes, s.inner, s.state, dtype=torch.promote_types(tokens.dtype, torch.float32))
    z = tokens.new_empty(tokens.shape[0], tokens.shape[1], s.inner)
    _, _, states, y = scan(u, u, a, b, b, None, z, None, True, ",".join(routes), merge, save, backend)
    return y, states


def _gradients(
    dout: Tensor,
    tokens: Tensor,
    parameters: Sequence[Tensor],
    kept: Sequence[Tensor],
    low: Tensor,
    exact: Tensor,
    routes: str,
    merge: str,
    backend: str,
) -> tuple[
    Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor
]:  # fmt: skip
    """Gradients of the tokens and of the fields of `Weights`, stacked; of an absent one, an empty tensor."""
    names = tuple(routes.split(","))
    p = Parameters.from_flat(parameters, len(names))
    found = _run_backward(dout, tokens, p, passes.Kept(*kept), low, exact, names, merge, backend)
    grads = (tokens.new_empty(0) if g is None else g.contiguous() for g in found)
    return tuple(grads)  # type: ignore[return-value]


def _run_backward(
    dout: Tensor,
    tokens: Tensor,
    p: Parameters,
    kept: passes.Kept,
    low: Tensor,
    exact: Tensor,
    routes: tuple[str, ...],
    merge: str,
    backend: str,
) -> tuple[Tensor | None, ...]:
    tools = passes.toolbox(tokens.device, tokens.dtype, backend)
    w = pack.view(p, pack.layout_of(p, tokens.dtype), low, exact)
    with autocast_off(tokens.device.type):
        dtokens, grads = passes.backward(tools, dout.contiguous(), tokens.contiguous(), p, w, kept, routes, merge)
    return dtokens, *grads


def _gradients_fake(dout: Tensor, tokens: Tensor, parameters: Sequence[Tensor], *rest: Any) -> tuple[Tensor, ...]:
    k = len(rest[3].split(","))
    p = Parameters.from_flat(parameters, k)
    stacked: list[Tensor] = []
    for name, value in zip(Parameters._fields, p, strict=True):
        if value is None or value == ():
            stacked.append(tokens.new_empty(0))
        elif isinstance(value, Tensor):
            stacked.append(torch.empty_like(value, memory_format=torch.contiguous_format))
        else:
            first = value[0]
            shape = first.squeeze(1).shape if name == "conv_weight" and first.dim() == 3 else first.shape
            stacked.append(first.new_empty(k, *shape))
    return (tokens.new_empty(tokens.shape), *stacked)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    tokens, parameters, ctx.routes, ctx.merge, keep, ctx.backend = inputs
    if keep == "nothing":
        raise RuntimeError("the mixer ran without keeping anything for a backward, so it has no gradient")
    ctx.set_materialize_grads(False)
    ctx.count = len(parameters)
    ctx.save_for_backward(tokens, *parameters, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def spread(grads: Sequence[Tensor | None], p: Parameters) -> list[Tensor]:
    """Gradients of the parameters as they were given, in the order of the operator's list."""
    found: list[Tensor] = []
    for grad, value in zip(grads, p, strict=True):
        if grad is None or value is None:
            continue
        if isinstance(value, tuple):  # without tensors, its gradient has no rows
            found += [g.view(t.shape) for g, t in zip(grad.unbind(0), value, strict=True)]
        else:
            found.append(grad)
    return found


def _backward(ctx: Any, dout: Tensor | None, *_: None) -> tuple[Any, ...]:
    tokens, *rest = ctx.saved_tensors
    parameters, kept, packed = rest[: ctx.count], rest[ctx.count : -2], rest[-2:]
    if dout is None:
        return (None, [None] * ctx.count, None, None, None, None)
    dtokens, *grads = mixer_backward(dout, tokens, parameters, kept, *packed, ctx.routes, ctx.merge, ctx.backend)
    p = Parameters.from_flat(parameters, len(ctx.routes.split(",")))
    return (dtokens, spread(grads, p), None, None, None, None)


class _EagerMixer(torch.autograd.Function):
    """The operator's rule without the dispatcher, whose handling of lists takes as long as the mixer's own launches."""

    @staticmethod
    def forward(
        ctx: Any, routes: tuple[str, ...], merge: str, keep: str, backend: str, tokens: Tensor, *parameters: Tensor
    ) -> Tensor:
        p = Parameters.from_flat(parameters, len(routes))
        out, *kept = _run(tokens, p, routes, merge, keep, backend)
        ctx.settings = routes, merge, backend
        ctx.save_for_backward(tokens, *kept, *parameters)
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        tokens, *rest = ctx.saved_tensors
        kept, (low, exact), parameters = passes.Kept(*rest[:6]), rest[6:8], rest[8:]
        routes, merge, backend = ctx.settings
        p = Parameters.from_flat(parameters, len(routes))
        if torch.is_grad_enabled():  # create_graph=True: the operator's gradients refuse to be differentiated
            names = ",".join(routes)
            dtokens, *grads = mixer_backward(dout, tokens, parameters, list(kept), low, exact, names, merge, backend)
        else:
            dtokens, *grads = _run_backward(dout, tokens, p, kept, low, exact, routes, merge, backend)
        return (None, None, None, None, dtokens, *spread(grads, p))


def run(tokens: Tensor, p: Parameters, routes: tuple[str, ...], merge: str, keep: str, backend: str) -> Tensor:
    """The mixer, by the operator wherever something traces or transforms the call, else by the shortest way.

    Args:
        tokens: (B, L, D) in the compute dtype.
        p: the parameters.
        routes, merge, backend: see `mamba_mixer`.
        keep: one of `passes.KEEP`; "nothing" where no gradient is asked for.
    """
    if not is_eager(tokens):
        out: Tensor = mixer(tokens, p.flat(), ",".join(routes), merge, keep, backend)[0]
        return out
    if keep == "nothing":
        return _run(tokens, p, routes, merge, keep, backend)[0]
    out = _EagerMixer.apply(routes, merge, keep, backend, tokens, *p.flat())  # type: ignore[no-untyped-call]
    return out


def is_eager(tokens: Tensor) -> bool:
    """Whether nothing looks on: no compiler, dispatch mode, functorch transform or subclass of a tensor."""
    if torch.compiler.is_compiling() or type(tokens) not in (Tensor, torch.nn.Parameter):
        return False
    return not (torch._C._len_torch_dispatch_stack() or torch._C._are_functorch_transforms_active())


mixer, mixer_backward = define_operator(
    "mamba_mixer",
    _forward,
    _forward_fake,
    _gradients,
    _gradients_fake,
    backward=_backward,
    setup_context=_setup_context,
)
