"""The selective scan's inputs as every backend gets them."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Grads", "ScanArgs", "as_inputs", "compute_dtype", "gate_gradient", "gated", "merged_gradient"]

# Gradients of the first eight fields of ScanArgs, in their dtypes and flattened shapes; None where there is no input.
Grads = tuple[Tensor | None, ...]


class ScanArgs(NamedTuple):
    """The op's inputs with the grid flattened to L positions.

    Shapes: x (B, L, E) shared or (B, K, L, E); delta (B, K, L, E); A (K, E, N); B, C (B, K, L, N);
    D, delta_bias (K, E); z (B, L, E) or, with merge "none", (B, K, L, E).
    """

    x: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None
    delta_softplus: bool
    routes: tuple[str, ...]
    grid: tuple[int, ...]
    merge: str


def as_inputs(grads: Grads, args: ScanArgs) -> Grads:
    """Gradients cast to the dtypes of the inputs that they belong to."""
    pairs = zip(grads, args[:8], strict=True)
    return tuple(None if grad is None or value is None else grad.to(value.dtype) for grad, value in pairs)


def gate_gradient(z: Tensor, dout: Tensor, ungated: Tensor) -> Tensor:
    """Gradient of out = ungated silu(z) in z, in dout's dtype."""
    z = z.to(dout.dtype)
    gate = torch.sigmoid(z)
    dz: Tensor = dout * ungated.to(dout.dtype) * gate * (1 + z * (1 - gate))
    return dz


def gated(y: Tensor, args: ScanArgs, keep: bool) -> tuple[Tensor, Tensor | None]:
    """The routes' result brought to the op's: mean where asked for, gate, x's dtype.

    Args:
        y: sum over the routes, or each of them for merge "none", in the compute dtype; may be overwritten.
        args: the op's inputs.
        keep: whether a gated result before its gate is wanted too.

    Returns:
        out, and the result before the gate or None, in x's dtype.
    """
    if args.merge == "mean":
        y /= len(args.routes)
    ungated = y.to(args.x.dtype, copy=True) if args.z is not None and keep else None
    if args.z is not None:
        y *= F.silu(args.z.to(y.dtype))
    return y.to(args.x.dtype), ungated


def merged_gradient(dout: Tensor, args: ScanArgs) -> Tensor:
    """Gradient of the routes' sum, or of each of them for merge "none", from that of out, in dout's dtype."""
    if args.z is not None:
        dout = dout * F.silu(args.z.to(dout.dtype))
    return dout / len(args.routes) if args.merge == "mean" else dout


def compute_dtype(x: Tensor, delta: Tensor) -> torch.dtype:
    """float32, or float64 where an input is float64."""
    return torch.promote_types(torch.promote_types(x.dtype, delta.dtype), torch.float32)
