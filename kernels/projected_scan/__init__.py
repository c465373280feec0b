"""The selective scan with a fused step-size projection: the multi-route op for few states per channel."""

from ssmvision.kernels.projected_scan.interface import projected_scan_nd, projected_scan_packed

__all__ = ["projected_scan_nd", "projected_scan_packed"]
