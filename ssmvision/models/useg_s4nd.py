"""U-Mamba's networks with a global S4ND in place of Mamba, and the sampling rate of the images as a setting.

Sources: Ma et al., "U-Mamba" (arXiv 2401.04722) for the networks; Nguyen et al., "S4ND" (arXiv 2210.06583) for the
mixer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from ssmvision.layers.s4nd import set_rate
from ssmvision.models.umamba import UMambaBot, UMambaEnc

__all__ = ["USegS4NDBot", "USegS4NDEnc"]


class _Spacing(nn.Module):
    """What both networks add."""

    def set_spacing(self, spacing: Sequence[float], reference: Sequence[float]) -> None:
        """Tell the network the voxel spacing of the images to come.

        Args:
            spacing: of the images, one an axis of the network's input, in the unit of `reference`.
            reference: spacing of the training images.

        Raises:
            ValueError: not one positive value an axis.
        """
        fits = len(spacing) == len(reference) and all(0 < edge < math.inf for edge in (*spacing, *reference))
        if not fits:
            said = f"spacing {tuple(spacing)} and reference {tuple(reference)}"
            raise ValueError(f"{said} need one positive, finite value an axis")
        set_rate(self, [now / then for now, then in zip(spacing, reference, strict=True)])


class USegS4NDBot(_Spacing, UMambaBot):
    """`UMambaBot` with S4ND on the coarsest map.

    Args:
        args, kwargs: of `UMambaBot`, without `mixer`.

    Example:
        >>> USegS4NDBot(3, 1, 2, features_per_stage=[4, 8])(torch.zeros(1, 1, 8, 8, 8)).shape
        torch.Size([1, 2, 8, 8, 8])
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"mixer": "s4nd"} | kwargs)


class USegS4NDEnc(_Spacing, UMambaEnc):
    """`UMambaEnc` with S4ND after the encoder's stages; it runs at every size that the strides divide.

    Args:
        args, kwargs: of `UMambaEnc`, without `mixer`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"mixer": "s4nd"} | kwargs)
