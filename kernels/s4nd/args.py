"""The long convolution's inputs as every backend gets them, and what a backend is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ssmvision.kernels.registry import Request

__all__ = [
    "PRECISIONS",
    "ConvArgs",
    "ConvRequest",
    "Grads",
    "Precision",
    "compute_dtype",
    "skip_connection",
    "weighted_sum",
]

Precision = Literal["auto", "fp32", "tf32", "bf16"]
PRECISIONS = ("auto", "fp32", "tf32", "bf16")


class ConvArgs(NamedTuple):
    """Inputs of one call.

    Attributes:
        u: (B, H, L_1, ..., L_d).
        kernels: d tensors (R, C, H, T_a); tap t of axis a has lag t - centers[a].
        centers: index of lag 0, one an axis.
        D: (C, H) skip weights, or None.
        dense: sum over H.
        precision: one of PRECISIONS.
    """

    u: Tensor
    kernels: tuple[Tensor, ...]
    centers: tuple[int, ...]
    D: Tensor | None
    dense: bool
    precision: str

    @property
    def grid(self) -> tuple[int, ...]:
        """Sizes of the axes."""
        return tuple(self.u.shape[2:])

    @property
    def out_shape(self) -> tuple[int, ...]:
        """(B, C, H, *grid), or (B, C, *grid) for a dense convolution."""
        _, channels, features, _ = self.kernels[0].shape
        batch = self.u.shape[0]
        return (batch, channels, *self.grid) if self.dense else (batch, channels, features, *self.grid)


class Grads(NamedTuple):
    """Gradients in the compute dtype; None where nobody asked."""

    u: Tensor | None
    kernels: tuple[Tensor, ...] | None
    D: Tensor | None


@dataclass(frozen=True)
class ConvRequest(Request):
    """What the choice of a backend depends on.

    Attributes:
        grid: sizes of the axes.
        systems: kernels an axis has, R x C x H.
        rank: R.
        channels: C.
        dense: whether it sums over the features.
        precision: one of PRECISIONS.
        forced: a backend was asked for by name: what is only slow is no reason to refuse.
    """

    grid: tuple[int, ...] = ()
    systems: int = 1
    rank: int = 1
    channels: int = 1
    dense: bool = False
    precision: str = "auto"
    forced: bool = False


def compute_dtype(u: Tensor, precision: str) -> torch.dtype:
    """The dtype in which the products run; sums are always float32 at least.

    float64 stays float64. float16 is computed in float32: the L1 norm of one axis' kernel is about 10, so what lies
    between the axes of a 3D convolution leaves float16's range. bfloat16 stays bfloat16 on GPUs; CPUs compute it in
    float32, which they are faster in.
    """
    if precision == "bf16":
        return torch.bfloat16
    if u.dtype == torch.bfloat16 and precision == "auto" and u.device.type != "cpu":
        return torch.bfloat16
    return torch.promote_types(u.dtype, torch.float32)


def skip_connection(y: Tensor, args: ConvArgs) -> Tensor:
    """Sum of y and D u, computed in the wider of the dtypes and float32, in u's dtype."""
    if args.D is None:
        return y.to(args.u.dtype)
    return weighted_sum(y, args.u.unsqueeze(1), args.D.reshape(args.D.shape + (1,) * len(args.grid)), args.u.dtype)


def weighted_sum(y: Tensor, u: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum of y and weight u in `dtype`, computed in the widest of the inputs' dtypes and float32."""
    # A GPU converts number by number in the one pass that this is.
    wide = torch.promote_types(torch.promote_types(y.dtype, u.dtype), torch.float32)
    return torch.addcmul(y, u, weight.to(wide), out=y.new_empty(y.shape, dtype=dtype))
