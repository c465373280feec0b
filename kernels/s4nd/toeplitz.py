"""The separable engine: one Toeplitz matrix product per axis, exact and without padding.

Two-sided linear convolution with an outer product of 1D kernels factorizes over the axes, and cropping after each axis
loses nothing. A pass multiplies the last axis and leaves it first, so that d passes turn the axes once around and no
transposed copy is ever made.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ssmvision.kernels.registry import Request
from ssmvision.kernels.s4nd import feature_blocks
from ssmvision.kernels.s4nd.args import ConvArgs, ConvRequest, Grads, compute_dtype, skip_connection, weighted_sum
from ssmvision.kernels.s4nd.config import toeplitz_config
from ssmvision.kernels.s4nd.matrices import diagonal_sums, toeplitz
from ssmvision.kernels.s4nd.products import matrix_gradient, multiply, multiply_back, tf32_products

__all__ = ["NAME", "backward", "can_run", "diagonal_sums", "forward", "toeplitz"]

NAME = "toeplitz"


def can_run(request: Request) -> str | None:
    """Any device and dtype; no axis so long that its matrices outgrow the data."""
    if not isinstance(request, ConvRequest) or not request.grid:
        return None
    config = toeplitz_config(request.device)
    longest = max(request.grid)
    bound = config.longest_sequence if len(request.grid) == 1 else config.longest_axis
    if longest > bound and not request.forced:
        return f"an axis of {longest} is longer than {bound}, beyond which an FFT is cheaper in {len(request.grid)}D"
    elements = request.systems * longest**2
    if elements > config.matrix_elements:
        return f"its Toeplitz matrices would have {elements:,} elements, more than {config.matrix_elements:,}"
    return None


def _matrices(args: ConvArgs, dtype: torch.dtype) -> list[Tensor]:
    """(H, R, C, L, L) of each axis; one axis has no use for a rank."""
    kernels = list(args.kernels)
    if len(kernels) == 1:
        kernels[0] = kernels[0].sum(0, keepdim=True)
    axes = zip(kernels, args.centers, args.grid, strict=True)
    return [toeplitz(kernel.permute(2, 0, 1, 3), center, length).to(dtype) for kernel, center, length in axes]


def _contracts(matrices: list[Tensor], args: ConvArgs) -> bool:
    """Whether the last pass sums over ranks or features."""
    return args.dense or matrices[0].shape[1] > 1


def _pass_inputs(args: ConvArgs, matrices: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Inputs of the passes, the last axis' first: (B, G, M, L) each.

    The first pass makes all R x C products of a feature with one matrix of R x C x L rows.
    """
    batch, features = args.u.shape[:2]
    volume = math.prod(args.grid)
    inputs = [args.u.to(dtype).reshape(batch, features, volume // args.grid[-1], args.grid[-1])]
    for a in range(len(matrices) - 1, 0, -1):
        length = args.grid[a - 1]
        x = multiply(_rows(matrices, a), inputs[-1])
        inputs.append(x.reshape(batch, math.prod(matrices[a].shape[:3]), volume // length, length))
    return inputs


def _rows(matrices: list[Tensor], a: int) -> Tensor:
    """Matrices of a pass as (G, I, J): a group a feature in the first pass, then one a system."""
    return matrices[a].flatten(1, 3) if a == len(matrices) - 1 else matrices[a].flatten(0, 2)


def _parts(x: Tensor, args: ConvArgs, matrices: list[Tensor]) -> Tensor:
    """Input of a last pass that sums, as (B, H, R, C, M, L); one axis shares it among the channels."""
    features, rank, channels, length, _ = matrices[0].shape
    columns = math.prod(args.grid[1:])
    if len(args.grid) == 1:
        return x.reshape(x.shape[0], features, 1, 1, columns, length).expand(-1, -1, rank, channels, -1, -1)
    return x.reshape(x.shape[0], features, rank, channels, columns, length)


def forward(args: ConvArgs) -> Tensor:
    """See `long_conv_nd`; the result has u's dtype."""
    if feature_blocks.applies(args):
        return feature_blocks.forward(args)
    dtype = compute_dtype(args.u, args.precision)
    with tf32_products(args.precision == "tf32", args.u.device):
        matrices = _matrices(args, dtype)
        x = _pass_inputs(args, matrices, dtype)[-1]
        features, _, channels, *_ = matrices[0].shape
        if _contracts(matrices, args):
            equation = "bhrcmj,hrcij->bcim" if args.dense else "bhrcmj,hrcij->bchim"
            y = torch.einsum(equation, _parts(x, args, matrices), matrices[0])
        else:
            y = multiply(_rows(matrices, 0), x).reshape(args.u.shape[0], features, channels, *args.grid).transpose(1, 2)
    return skip_connection(y.reshape(args.out_shape), args)


def backward(args: ConvArgs, dout: Tensor, need_u: bool, need_kernels: bool) -> Grads:
    """Gradients of the inputs; what lies between the passes is computed again."""
    if not (need_u or need_kernels):
        return Grads(None, None, _skip_gradient(args, dout))
    if feature_blocks.applies(args):
        return feature_blocks.backward(args, dout, need_u, need_kernels)
    dtype = compute_dtype(args.u, args.precision)
    with tf32_products(args.precision == "tf32", args.u.device):
        matrices = _matrices(args, dtype)
        inputs = _pass_inputs(args, matrices, dtype)
        d_matrices: list[Tensor] = []
        dy = dout.to(dtype)
        if _contracts(matrices, args):
            dx = _last_pass_backward(args, matrices, inputs[-1], dy, d_matrices if need_kernels else None)
        else:
            dx = dy.transpose(1, 2)
        for a in range(int(_contracts(matrices, args)), len(matrices)):
            x, rows = inputs[len(matrices) - 1 - a], _rows(matrices, a)
            d_product = dx.reshape(*x.shape[:2], rows.shape[1], x.shape[2])
            if need_kernels:
                d_matrices.append(matrix_gradient(d_product, x).reshape(matrices[a].shape))
            if need_u or a < len(matrices) - 1:
                dx = multiply_back(rows, d_product)
    du = dx.reshape(args.u.shape) if need_u else None
    return Grads(_with_skip(du, args, dout), _kernel_gradients(args, d_matrices), _skip_gradient(args, dout))


def _last_pass_backward(
    args: ConvArgs, matrices: list[Tensor], x: Tensor, dy: Tensor, d_matrices: list[Tensor] | None
) -> Tensor:
    """Through the pass that sums over ranks or features; the gradient of its input, shaped like it."""
    dy = dy.flatten(-len(args.grid)).unflatten(-1, (args.grid[0], math.prod(args.grid[1:])))
    out = "bcim" if args.dense else "bchim"
    if d_matrices is not None:
        d_matrices.append(torch.einsum(f"{out},bhrcmj->hrcij", dy, _parts(x, args, matrices)))
    dx: Tensor = torch.einsum(f"{out},hrcij->bhrcmj", dy, matrices[0])
    if len(args.grid) == 1:
        dx = dx.sum((2, 3))
    return dx.reshape(x.shape)


def _with_skip(du: Tensor | None, args: ConvArgs, dout: Tensor) -> Tensor | None:
    if du is None or args.D is None:
        return du
    if args.D.shape[0] == 1:
        return weighted_sum(du, dout[:, 0], args.D[0].reshape(-1, *(1,) * len(args.grid)), args.u.dtype)
    wide = torch.promote_types(du.dtype, torch.float32)
    skipped = torch.einsum("bch...,ch->bh...", dout.to(wide), args.D.to(wide))
    return du.to(wide) + skipped


def _skip_gradient(args: ConvArgs, dout: Tensor) -> Tensor | None:
    if args.D is None:
        return None
    wide = torch.promote_types(dout.dtype, torch.float32)
    # Not a dot product: of so few and so long vectors it leaves most of a GPU idle.
    products = dout.to(wide) * args.u.unsqueeze(1)
    return products.sum((0, *range(3, products.dim())))


def _kernel_gradients(args: ConvArgs, d_matrices: list[Tensor]) -> tuple[Tensor, ...] | None:
    if not d_matrices:
        return None
    axes = zip(d_matrices, args.centers, args.kernels, strict=True)
    grads = (
        diagonal_sums(d.to(torch.promote_types(d.dtype, torch.float32)), center, kernel.shape[-1])
        .permute(1, 2, 0, 3)
        .expand(kernel.shape)
        for d, center, kernel in axes
    )
    return tuple(grads)
