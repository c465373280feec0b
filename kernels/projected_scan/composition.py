"""The projected scan by its definition: the step sizes are projected, then `selective_scan_nd`'s own backends scan.

Runs wherever the selective scan runs; serves every case that the fused kernels do not take, and is what they are tested
against.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssmvision.kernels import registry
from ssmvision.kernels.projected_scan.args import Grads, ProjectedArgs, unpack
from ssmvision.kernels.projected_scan.lines import saved_states
from ssmvision.kernels.selective_scan.args import ScanArgs, compute_dtype
from ssmvision.kernels.selective_scan.op import OP as SCAN

__all__ = ["backward", "forward"]


def _scan_args(args: ProjectedArgs) -> ScanArgs:
    """Step sizes in the compute dtype, so that they carry no rounding that the fused kernels would not make."""
    dtype = compute_dtype(args.x, args.projected)
    low, B, C = unpack(args.projected, args.dt_weight.shape[2], args.A.shape[2])
    delta = torch.matmul(low.to(dtype), args.dt_weight.to(dtype).transpose(1, 2))
    return ScanArgs(
        args.x, delta, args.A, B, C, args.D, None, args.delta_bias, True, args.routes, args.grid, args.merge
    )


def _scan_backend(scan: ScanArgs) -> registry.Backend:
    request = registry.Request(str(scan.x.device), compute_dtype(scan.x, scan.delta))
    return registry.choose(SCAN, request)


def forward(args: ProjectedArgs, save_states: bool) -> tuple[Tensor, Tensor]:
    """Scan.

    Returns:
        out (B, L, E), or (B, K, L, E) for merge "none", in x's dtype; and the saved states (B, K, segments, N, E), left
        zero: the backward here scans again instead of keeping the step sizes.
    """
    scan = _scan_args(args)
    out = _scan_backend(scan).forward(scan, False)[0]
    batch, routes = scan.delta.shape[:2]
    states = args.A.shape[2]
    saved = saved_states(args.routes, args.grid, states) if save_states else 0
    shape = (batch, routes, saved, states, args.A.shape[1])
    return out, torch.zeros(shape, dtype=scan.delta.dtype, device=out.device)


def backward(args: ProjectedArgs, saved: Tensor, dout: Tensor) -> Grads:
    """Gradients of x, projected, dt_weight, A, D and delta_bias, each in its input's dtype."""
    scan = _scan_args(args)
    backend = _scan_backend(scan)
    states = backend.forward(scan, True)[2]
    dx, ddelta, dA, dB, dC, dD, _, dbias = backend.backward(scan, states, None, dout, None)
    low, dtype = unpack(args.projected, args.dt_weight.shape[2], args.A.shape[2])[0], ddelta.dtype
    dlow = torch.matmul(ddelta, args.dt_weight.to(dtype))
    dweight = torch.einsum("bkle,bklr->ker", ddelta, low.to(dtype))
    narrow = args.projected.dtype
    dprojected = torch.cat([dlow.to(narrow), dB.to(narrow), dC.to(narrow)], -1).transpose(1, 2).contiguous()
    return dx, dprojected, dweight.to(args.dt_weight.dtype), dA, dD, dbias
