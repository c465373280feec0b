"""The four sub-grids of every second row and column of a 2D map: into them with a convolution, out with a norm."""

from ssmvision.kernels.subgrids.interface import subgrid_conv, subgrid_norm
from ssmvision.kernels.subgrids.reference import join_subgrids, split_subgrids

__all__ = ["join_subgrids", "split_subgrids", "subgrid_conv", "subgrid_norm"]
