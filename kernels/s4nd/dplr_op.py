"""S4's kernels as an operator, and which backend makes them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ssmvision.kernels import registry
from ssmvision.kernels.eager import eager
from ssmvision.kernels.operators import define_operator
from ssmvision.kernels.s4nd import dplr_triton
from ssmvision.kernels.s4nd.discretize import tile
from ssmvision.kernels.s4nd.dplr import dplr_kernel
from ssmvision.kernels.s4nd.pairs import Pair, from_last_axis

__all__ = ["OP", "dplr_taps"]

OP = "s4_taps"


def dplr_taps(
    dt: Tensor,
    A_real: Tensor,
    A_imag: Tensor,
    B: Tensor,
    C: Tensor,
    P: Tensor,
    nodes: int,
    length: int,
    backend: str = "auto",
) -> Tensor:
    """Kernels of x' = (diag(A) - P P^*) x + B u, discretized by the bilinear rule, of many systems at once.

    Source: Gu et al., arXiv 2111.00396 (S4), algorithm 1; see `dplr.dplr_kernel`. The backend "triton" has no second
    derivative, "reference" is plain PyTorch.

    Args:
        dt: (G, H, 1 or N) steps.
        A_real, A_imag: (G, S, N), one of each conjugate pair; feature h has the system h mod S.
        B, P: (G, S, N, 2), complex numbers with their parts along the last axis.
        C: (G, C, H, N, 2), multiplied by I - A^nodes already.
        nodes: number of roots of unity, at least `length`.
        length: L.
        backend: "auto", or a backend's name, or "-name" to forbid it.

    Returns:
        (G, C, H, L) in the tensors' dtype.
    """
    if C.shape[-2] > dplr_triton.MAX_MODES or max(nodes, length) > dplr_triton.MAX_LENGTH:
        return _reference(dt, A_real, A_imag, B, C, P, nodes, length)
    if _chosen(str(C.device), C.dtype, backend) == "reference":
        # Not through the operator: this form can be differentiated twice, and a compiler fuses it.
        return _reference(dt, A_real, A_imag, B, C, P, nodes, length)
    taps: Tensor = s4_taps(dt, A_real, A_imag, B, C, P, nodes, length)
    return taps


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _chosen(device: str, dtype: torch.dtype, backend: str) -> str:
    """Who makes the taps; a compiler asks once and does not look into it."""
    return registry.choose(OP, registry.Request(device, dtype), backend).name


def _reference(
    dt: Tensor, A_real: Tensor, A_imag: Tensor, B: Tensor, C: Tensor, P: Tensor, nodes: int, length: int
) -> Tensor:
    def tiled(a: Pair) -> Pair:
        return Pair(tile(a.re, C.shape[2]), tile(a.im, C.shape[2]))

    systems = (tiled(Pair(A_real, A_imag)), tiled(from_last_axis(B)), from_last_axis(C))
    return dplr_kernel(dt, *systems, tiled(from_last_axis(P.unsqueeze(1))), nodes, length)


def _by_autograd(*_: Any) -> None:
    raise NotImplementedError("the reference is no operator: PyTorch differentiates it")


registry.register(OP, registry.Backend("triton", 30, dplr_triton.can_run, dplr_triton.forward, dplr_triton.backward))
registry.register(OP, registry.Backend("reference", 0, lambda request: None, _reference, _by_autograd))


def _forward(
    dt: Tensor, A_real: Tensor, A_imag: Tensor, B: Tensor, C: Tensor, P: Tensor, nodes: int, length: int
) -> Tensor:
    return dplr_triton.forward(dt, A_real, A_imag, B, C, P, nodes, length)


def _forward_fake(
    dt: Tensor, A_real: Tensor, A_imag: Tensor, B: Tensor, C: Tensor, P: Tensor, nodes: int, length: int
) -> Tensor:
    return C.new_empty((*C.shape[:3], length))


def _gradients(
    dt: Tensor, A_real: Tensor, A_imag: Tensor, B: Tensor, C: Tensor, P: Tensor, nodes: int, length: int, dout: Tensor
) -> list[Tensor]:
    grads = dplr_triton.backward(dt, A_real, A_imag, B, C, P, nodes, length, dout)
    return [grad.clone(memory_format=torch.contiguous_format) for grad in grads]


def _gradients_fake(
    dt: Tensor, A_real: Tensor, A_imag: Tensor, B: Tensor, C: Tensor, P: Tensor, nodes: int, length: int, dout: Tensor
) -> list[Tensor]:
    return [t.new_empty(t.shape) for t in (dt, A_real, A_imag, B, C, P)]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *systems, ctx.nodes, ctx.length = inputs
    ctx.save_for_backward(*systems)


def _backward(ctx: Any, dout: Tensor) -> tuple[Any, ...]:
    return *s4_taps_backward(*ctx.saved_tensors, ctx.nodes, ctx.length, dout), None, None


_rule: dict[str, Any] = {"backward": _backward, "setup_context": _setup_context}
s4_taps, s4_taps_backward = eager(
    define_operator(OP, _forward, _forward_fake, _gradients, _gradients_fake, **_rule), _forward, _gradients, **_rule
)
