"""The selective scan (S6): the drop-in 1D op and the multi-route op on 1D, 2D and 3D grids."""

from ssmvision.kernels.selective_scan.interface import selective_scan, selective_scan_nd

__all__ = ["selective_scan", "selective_scan_nd"]
