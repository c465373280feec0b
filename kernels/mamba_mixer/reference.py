"""The gate's backward in plain PyTorch, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["gate_backward"]


def gate_backward(dout: Tensor, z: Tensor, y: Tensor, dz: Tensor) -> tuple[Tensor, Tensor]:
    """Backward of out = y silu(z), which also makes `out` again.

    Args:
        dout: (T, E) gradient of `out`; may be overwritten.
        z: (T, E) gate.
        y: (T, E) what was gated.
        dz: (T, E) to write z's gradient to.

    Returns:
        the gradient of y and `out`, both (T, E).
    """
    wide = torch.promote_types(dout.dtype, torch.float32)
    gate, value, grad = z.to(wide), y.to(wide), dout.to(wide)
    sigmoid = torch.sigmoid(gate)
    silu = gate * sigmoid
    dz.copy_(grad * value * sigmoid * (1 + gate * (1 - sigmoid)))
    return (grad * silu).to(dout.dtype), (value * silu).to(dout.dtype)
