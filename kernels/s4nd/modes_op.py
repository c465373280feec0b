"""Sums of exponentials, the kernels of diagonal systems, as an operator; and which backend makes them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ssmvision.kernels import registry
from ssmvision.kernels.eager import eager
from ssmvision.kernels.operators import define_operator
from ssmvision.kernels.s4nd import modes_triton
from ssmvision.kernels.s4nd.pairs import Pair, exp

__all__ = ["OP", "modes_taps"]

OP = "mode_taps"


def modes_taps(log_mode: Pair, weight: Pair, length: int, backend: str = "auto") -> Tensor:
    """Taps K[l] = Re sum_n weight_n e^{l log_mode_n}.

    Source: Gu et al., arXiv 2206.11893 (S4D), section 3.2. The backend "triton" has no second derivative, "reference"
    is plain PyTorch.

    Args:
        log_mode: (..., H, N).
        weight: (..., C, H, N).
        length: L.
        backend: "auto", or a backend's name, or "-name" to forbid it.

    Returns:
        (..., C, H, L) in the tensors' dtype.
    """
    fits = weight.re.shape[-1] <= modes_triton.MAX_MODES and length <= modes_triton.MAX_LENGTH
    if not fits or _chosen(str(weight.re.device), weight.re.dtype, backend) == "reference":
        # Not through the operator: this form can be differentiated twice, and a compiler fuses it.
        return _reference(log_mode, weight, length)
    lead = weight.re.shape[:-3]
    modes = tuple(t.reshape(-1, *t.shape[-2:]) for t in log_mode)
    taps: Tensor = mode_taps(*modes, *(t.reshape(-1, *t.shape[-3:]) for t in weight), length)
    return taps.reshape(*lead, *taps.shape[1:])


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _chosen(device: str, dtype: torch.dtype, backend: str) -> str:
    """Who makes the taps; a compiler asks once and does not look into it."""
    return registry.choose(OP, registry.Request(device, dtype), backend).name


def _reference(log_mode: Pair, weight: Pair, length: int) -> Tensor:
    steps = torch.arange(length, device=log_mode.re.device, dtype=log_mode.re.dtype)
    powers = exp(Pair(log_mode.re.unsqueeze(-1) * steps, log_mode.im.unsqueeze(-1) * steps))
    rows = torch.cat((weight.re, -weight.im), -1).transpose(-3, -2)
    return torch.matmul(rows, torch.cat(powers, -2)).transpose(-3, -2)


def _by_autograd(*_: Any) -> None:
    raise NotImplementedError("the reference is no operator: PyTorch differentiates it")


registry.register(OP, registry.Backend("triton", 30, modes_triton.can_run, modes_triton.forward, modes_triton.backward))
registry.register(OP, registry.Backend("reference", 0, lambda request: None, _reference, _by_autograd))


def _forward(log_re: Tensor, log_im: Tensor, weight_re: Tensor, weight_im: Tensor, length: int) -> Tensor:
    return modes_triton.forward(log_re, log_im, weight_re, weight_im, length)


def _forward_fake(log_re: Tensor, log_im: Tensor, weight_re: Tensor, weight_im: Tensor, length: int) -> Tensor:
    return weight_re.new_empty((*weight_re.shape[:3], length))


def _gradients(
    log_re: Tensor, log_im: Tensor, weight_re: Tensor, weight_im: Tensor, length: int, dout: Tensor
) -> list[Tensor]:
    grads = modes_triton.backward(log_re, log_im, weight_re, weight_im, length, dout)
    return [grad.clone(memory_format=torch.contiguous_format) for grad in grads]


def _gradients_fake(
    log_re: Tensor, log_im: Tensor, weight_re: Tensor, weight_im: Tensor, length: int, dout: Tensor
) -> list[Tensor]:
    return [t.new_empty(t.shape) for t in (log_re, log_im, weight_re, weight_im)]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *given, ctx.length = inputs
    ctx.save_for_backward(*given)


def _backward(ctx: Any, dout: Tensor) -> tuple[Any, ...]:
    return *mode_taps_backward(*ctx.saved_tensors, ctx.length, dout), None


_rule: dict[str, Any] = {"backward": _backward, "setup_context": _setup_context}
mode_taps, mode_taps_backward = eager(
    define_operator(OP, _forward, _forward_fake, _gradients, _gradients_fake, **_rule), _forward, _gradients, **_rule
)
