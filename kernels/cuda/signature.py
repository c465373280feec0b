"""Kernel parameters: their C types, and a buffer from which the driver copies their values."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from typing import Any

__all__ = ["ArgumentBuffer", "Parameters", "Signature"]

# One ctypes type per parameter: c_void_p for any pointer, numbers of fixed size, or a Structure passed by value.
Parameters = Sequence[type[Any]]

SLOT_BYTES = 8
# As the struct module writes them.
CODES: dict[type[Any], str] = {
    ctypes.c_void_p: "Q",
    ctypes.c_bool: "?",
    ctypes.c_int32: "i",
    ctypes.c_uint32: "I",
    ctypes.c_int64: "q",
    ctypes.c_uint64: "Q",
    ctypes.c_float: "f",
    ctypes.c_double: "d",
}


def _code(kind: type[Any]) -> str:
    if kind in CODES:
        return CODES[kind]
    if issubclass(kind, ctypes.Structure):
        return f"{ctypes.sizeof(kind)}s"
    known = ", ".join(name.__name__ for name in CODES)
    raise ValueError(f"a kernel's parameter cannot be a {kind.__name__}; use {known} or a ctypes.Structure")


class Signature:
    """The layout of a kernel's arguments in memory.

    Raises:
        ValueError: a parameter has a type that is not supported.
    """

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = tuple(parameters)
        self.pointers = [i for i, kind in enumerate(self.parameters) if kind is ctypes.c_void_p]
        self.structures = [i for i, kind in enumerate(self.parameters) if issubclass(kind, ctypes.Structure)]
        codes = [_code(kind) for kind in self.parameters]
        sizes = [struct.calcsize(f"={code}") for code in codes]
        padding = [-size % SLOT_BYTES for size in sizes]
        # Every value starts a slot of 8 bytes, which satisfies the alignment of all of them.
        self.offsets = [sum(sizes[:i]) + sum(padding[:i]) for i in range(len(codes))]
        self.layout = struct.Struct("=" + "".join(f"{code}{pad}x" for code, pad in zip(codes, padding, strict=True)))


class ArgumentBuffer:
    """Memory for the arguments of one launch at a time, and the table of pointers to them that the driver wants."""

    def __init__(self, signature: Signature) -> None:
        self._signature = signature
        # Both are filled in place, so their addresses stay valid as long as this object lives.
        self._values = (ctypes.c_uint64 * max(signature.layout.size // SLOT_BYTES, 1))()
        start = ctypes.addressof(self._values)
        self._table = (ctypes.c_void_p * max(len(signature.offsets), 1))(*(start + at for at in signature.offsets))
        self._address = ctypes.addressof(self._table)

    def fill(self, args: Sequence[Any], name: str) -> int:
        """Store the arguments.

        Args:
            args: one per parameter. A pointer is an object with `data_ptr()`, an address or None; a structure is an
                instance of its type.
            name: the kernel's, for errors.

        Returns:
            Address of the table of pointers; what it points to is overwritten by the next call.

        Raises:
            TypeError: number or types differ from the signature.
        """
        signature, values = self._signature, list(args)
        try:
            for i in signature.pointers:
                value = values[i]
                if value is None:
                    values[i] = 0
                elif type(value) is not int:
                    values[i] = value.data_ptr()
            for i in signature.structures:
                if type(values[i]) is not signature.parameters[i]:
                    raise TypeError(f"argument {i} is no {signature.parameters[i].__name__}")
                values[i] = bytes(values[i])
            signature.layout.pack_into(self._values, 0, *values)
        except (struct.error, TypeError, AttributeError, IndexError) as error:
            wanted = ", ".join(kind.__name__ for kind in signature.parameters)
            given = ", ".join(type(value).__name__ for value in args)
            raise TypeError(f"kernel {name} takes ({wanted}), it was given ({given}): {error}") from error
        return self._address
