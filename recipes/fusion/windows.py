"""Windows: which stored values stand for black and white."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Window", "image_window", "volume_window"]

# Whites of the depths that sensors have; files store all of them in 16 bits.
SIXTEEN_BIT_WHITES = (4095, 16383, 65535)


@dataclass(frozen=True)
class Window:
    """Stored values `low` to `high` are 0 to 1; values outside are cut.

    Raises:
        ValueError: `low` is not below `high`.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"window {self.low:g} to {self.high:g} is empty; its first value must be the lower one")

    def to_unit(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Stored values as 0..1, float32, in the same shape."""
        unit = np.subtract(values, self.low, dtype=np.float64) / (self.high - self.low)
        return np.asarray(np.clip(unit, 0, 1), dtype=np.float32)

    def from_unit(self, unit: NDArray[np.float32], dtype: np.dtype[Any], truncate: bool = False) -> NDArray[Any]:
        """0..1 as stored values, in the same shape.

        Args:
            unit: values in 0..1.
            dtype: of the result; integers are rounded and kept in its range.
            truncate: cut the fractions of integers off instead, as the published FusionMamba code does.
        """
        if truncate:
            # In the precision of `unit`: in a wider one a fraction next below an integer would be another.
            values = np.float64(self.low) + np.floor(unit * np.float32(self.high - self.low))
        else:
            values = self.low + unit.astype(np.float64) * (self.high - self.low)
        if dtype.kind in "iu":
            limits = np.iinfo(dtype)
            values = np.clip(np.rint(values), limits.min, limits.max)
        return np.asarray(values, dtype=dtype)


def image_window(values: NDArray[Any]) -> Window:
    """Range of a picture's format, so that pictures of one kind are treated alike.

    0 to 255 for 8 bits; for 16 bits 0 to 4095, 16383 or 65535 (12, 14 or 16 bits), the first that no value exceeds;
    0 to 1 for floats in that range; smallest to largest value for all other types.
    """
    if values.dtype in (np.uint8, np.bool_):
        return Window(0, 255)
    if values.dtype == np.uint16:
        return Window(0, next(white for white in SIXTEEN_BIT_WHITES if values.max() <= white))
    if values.dtype.kind == "f" and values.min() >= 0 and values.max() <= 1:
        return Window(0, 1)
    return volume_window(values)


def volume_window(values: NDArray[Any]) -> Window:
    """Smallest to largest value of a whole volume; of a constant one, one unit from its value (it becomes black)."""
    low, high = float(values.min()), float(values.max())
    return Window(low, high if high > low else low + 1)
