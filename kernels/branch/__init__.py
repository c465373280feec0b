"""A residual branch on channels-last tokens beside a channels-first map: the norm that enters it, the sum after it."""

from ssmvision.kernels.branch.interface import add_branch, norm_map

__all__ = ["add_branch", "norm_map"]
