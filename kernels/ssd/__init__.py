"""State-space duality: the selective scan of heads whose states share one scalar decay, as matrix products."""

from ssmvision.kernels.ssd.interface import ssd_nd

__all__ = ["ssd_nd"]
