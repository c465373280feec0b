"""Instance norm of maps in low precision, with as many programs to a channel as its voxels are worth."""

from ssmvision.kernels.instance_norm.op import instance_norm

__all__ = ["instance_norm"]
