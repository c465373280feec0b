"""NumPy's numbers inside a checkpoint, read without NumPy's own unpickling: nnU-Net's training log holds such."""

from __future__ import annotations

import pickle

import numpy as np

__all__ = ["NUMBERS", "NumberType", "number"]

KINDS = ("f", "i", "u", "b")


class NumberType:
    """Stands in for numpy.dtype.

    Args:
        code: such as "f8".
        align, copy: of numpy.dtype, without meaning for a number.

    Raises:
        pickle.UnpicklingError: no type of a plain number.
    """

    def __init__(self, code: str, align: bool = False, copy: bool = True) -> None:
        if not isinstance(code, str) or code[:1] not in KINDS or not code[1:].isdigit():
            raise pickle.UnpicklingError(f"a NumPy type {code!r}, which is no plain number")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[object, ...]) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(str(state[1]))  # type: ignore[arg-type]


def number(kind: NumberType, data: bytes) -> float | int | bool:
    """Stands in for numpy.core.multiarray.scalar.

    Raises:
        pickle.UnpicklingError: the bytes are not one number of this type.
    """
    if not isinstance(kind, NumberType) or not isinstance(data, bytes) or len(data) != kind.dtype.itemsize:
        raise pickle.UnpicklingError("a NumPy number that is damaged")
    value: float | int | bool = np.frombuffer(data, kind.dtype)[0].item()
    return value


# By the names that NumPy 1 and 2 write.
NUMBERS: dict[str, object] = {
    "numpy.dtype": NumberType,
    "numpy.core.multiarray.scalar": number,
    "numpy._core.multiarray.scalar": number,
}
