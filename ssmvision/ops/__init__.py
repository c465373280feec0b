"""The public operators of `ssmvision.kernels`, on plain tensors."""

from __future__ import annotations

from ssmvision.kernels.add_norm import add_layer_norm, add_rms_norm
from ssmvision.kernels.causal_conv import causal_conv
from ssmvision.kernels.channel_means import channel_means
from ssmvision.kernels.channel_scale import scale_channels
from ssmvision.kernels.depthwise_conv import depthwise_conv2d
from ssmvision.kernels.mamba_mixer import mamba_mixer
from ssmvision.kernels.projected_scan import projected_scan_nd, projected_scan_packed
from ssmvision.kernels.routes import ROUTES, inverse_route, route_index, route_names
from ssmvision.kernels.s4nd import long_conv_nd
from ssmvision.kernels.selective_scan import selective_scan, selective_scan_nd
from ssmvision.kernels.ssd import ssd_nd
from ssmvision.kernels.subgrids import join_subgrids, split_subgrids, subgrid_conv, subgrid_norm

__all__ = [
    "ROUTES",
    "add_layer_norm",
    "add_rms_norm",
    "causal_conv",
    "channel_means",
    "depthwise_conv2d",
    "inverse_route",
    "join_subgrids",
    "long_conv_nd",
    "mamba_mixer",
    "projected_scan_nd",
    "projected_scan_packed",
    "route_index",
    "route_names",
    "scale_channels",
    "selective_scan",
    "selective_scan_nd",
    "split_subgrids",
    "ssd_nd",
    "subgrid_conv",
    "subgrid_norm",
]
