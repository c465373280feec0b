"""The long convolution by its definition: one N-D Fourier transform of the zero-padded input, as published.

Source: Nguyen et al., "S4ND" (arXiv 2210.06583), section 3.1 and appendix B. The outer product of the kernels is formed
in the frequency domain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ssmvision.kernels.s4nd.args import ConvArgs, Grads, skip_connection

__all__ = ["backward", "forward", "full_conv_nd"]

LETTERS = "xyz"


def full_conv_nd(u: Tensor, kernel: Tensor, centers: Sequence[int]) -> Tensor:
    """Zero-padded depthwise convolution with N-D kernels that are no outer products, differentiable by PyTorch.

    y[b, h] = k[h] * u[b, h], cropped to u's grid; for outer products `long_conv_nd` is many times as fast.

    Args:
        u: (B, H, L_1, ..., L_d) in any real floating dtype.
        kernel: (H, T_1, ..., T_d).
        centers: index of lag 0 along every axis.

    Returns:
        (B, H, L_1, ..., L_d) in u's dtype, computed in float32 (float64 for float64).
    """
    dtype = torch.promote_types(u.dtype, torch.float32)
    if u.numel() == 0:
        return torch.zeros_like(u)
    taps, axes = kernel.shape[1:], tuple(range(1, kernel.dim()))
    sizes = _circular(u.shape[2:], taps, centers)
    # Lags below zero are at the end of a circle.
    padding = [n for size, tap in zip(reversed(sizes), reversed(taps), strict=True) for n in (0, size - tap)]
    circular = torch.nn.functional.pad(kernel.to(dtype), padding).roll([-center for center in centers], axes)
    product = _transform(u, sizes, dtype) * _transform(circular, sizes, dtype)
    return _restore(product, sizes, u.shape[2:]).to(u.dtype)


def _circular(grid: Sequence[int], taps: Sequence[int], centers: Sequence[int]) -> tuple[int, ...]:
    """Circular lengths without wrap-around: axis plus reach of the kernel."""
    return tuple(size + max(center, tap - center) for size, tap, center in zip(grid, taps, centers, strict=True))


def _sizes(args: ConvArgs) -> tuple[int, ...]:
    return _circular(args.grid, [kernel.shape[-1] for kernel in args.kernels], args.centers)


def _spectra(args: ConvArgs, sizes: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    """Transforms (R, C, H, S_a) of the kernels, lag 0 first; of the last axis the half that a real signal needs."""
    spectra = []
    for a, (kernel, center, size) in enumerate(zip(args.kernels, args.centers, sizes, strict=True)):
        circular = torch.nn.functional.pad(kernel.to(dtype), (0, size - kernel.shape[-1])).roll(-center, -1)
        spectra.append(torch.fft.rfft(circular) if a == len(sizes) - 1 else torch.fft.fft(circular))
    return spectra


def _transform(t: Tensor, sizes: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    spectrum: Tensor = torch.fft.rfftn(t.to(dtype), s=sizes, dim=tuple(range(-len(sizes), 0)))
    return spectrum


def _restore(t: Tensor, sizes: tuple[int, ...], grid: Sequence[int]) -> Tensor:
    full: Tensor = torch.fft.irfftn(t, s=sizes, dim=tuple(range(-len(sizes), 0)))
    index: tuple[Any, ...] = (..., *(slice(length) for length in grid))
    return full[index]


def _dtype(args: ConvArgs) -> torch.dtype:
    return torch.promote_types(args.u.dtype, torch.float32)


def _names(args: ConvArgs) -> tuple[str, str, list[str]]:
    """Einsum names: of the axes, of the output, and of each kernel."""
    axes = LETTERS[: len(args.grid)]
    return axes, ("bc" if args.dense else "bch") + axes, [f"rch{a}" for a in axes]


def forward(args: ConvArgs) -> Tensor:
    """See `long_conv_nd`; computed in float32 (float64 for float64), the result has u's dtype."""
    dtype, sizes = _dtype(args), _sizes(args)
    axes, out, kernels = _names(args)
    spectrum = torch.einsum(f"{','.join(kernels)}->ch{axes}", *_spectra(args, sizes, dtype))
    product = torch.einsum(f"bh{axes},ch{axes}->{out}", _transform(args.u, sizes, dtype), spectrum)
    return skip_connection(_restore(product, sizes, args.grid), args)


def backward(args: ConvArgs, dout: Tensor, need_u: bool, need_kernels: bool) -> Grads:
    """Gradients by correlation: products with conjugate spectra."""
    dtype, sizes = _dtype(args), _sizes(args)
    axes, out, names = _names(args)
    spectra = _spectra(args, sizes, dtype)
    d_spectrum = _transform(dout, sizes, dtype)
    du = d_kernels = d_skip = None
    if need_u:
        total = torch.einsum(f"{','.join(names)}->ch{axes}", *spectra)
        du = _restore(torch.einsum(f"{out},ch{axes}->bh{axes}", d_spectrum, total.conj()), sizes, args.grid)
    if need_kernels:
        image = _transform(args.u, sizes, dtype)
        if args.dense:
            correlation = torch.einsum(f"{out},bh{axes}->ch{axes}", d_spectrum, image.conj())
        else:  # einsum would make a matrix product of single numbers of every frequency
            correlation = (d_spectrum * image.conj().unsqueeze(1)).sum(0)
        d_kernels = tuple(_kernel_gradient(args, correlation, spectra, a, sizes) for a in range(len(sizes)))
    if args.D is not None:
        weight = args.D.to(dtype)
        if du is not None:
            du = du + torch.einsum("bch...,ch->bh...", dout.to(dtype), weight)
        d_skip = torch.einsum("bchl,bhl->ch", dout.to(dtype).flatten(3), args.u.to(dtype).flatten(2))
    return Grads(du, d_kernels, d_skip)


def _kernel_gradient(
    args: ConvArgs, correlation: Tensor, spectra: list[Tensor], a: int, sizes: tuple[int, ...]
) -> Tensor:
    """Gradient of one axis' kernels (R, C, H, T): the correlation at their lags, against the other axes' kernels."""
    axes, _, names = _names(args)
    if a != len(sizes) - 1:
        # Half of the last axis stands for the whole: each inner frequency counts for itself and its mirror image.
        last = correlation.shape[-1]
        weight = torch.full((last,), 2.0, dtype=correlation.real.dtype, device=correlation.device)
        # Filled, not assigned: a number of the host cannot be copied inside a graph's capture.
        weight[:1].fill_(1)
        if sizes[-1] % 2 == 0:
            weight[-1:].fill_(1)
        correlation = correlation * weight
    others = [(names[i], spectra[i].conj()) for i in range(len(sizes)) if i != a]
    equation = ",".join([f"ch{axes}", *(name for name, _ in others)])
    # One axis: every rank gets the same gradient.
    result = names[a] if others else names[a][1:]
    d_spectrum = torch.einsum(f"{equation}->{result}", correlation, *(spectrum for _, spectrum in others))
    if a == len(sizes) - 1:
        circular: Tensor = torch.fft.irfft(d_spectrum, n=sizes[a]) / math.prod(sizes[:-1])
    else:
        circular = torch.fft.ifft(d_spectrum).real / (math.prod(sizes) / sizes[a])
    taps = args.kernels[a].shape[-1]
    return circular.roll(args.centers[a], -1)[..., :taps].expand(args.kernels[a].shape)
