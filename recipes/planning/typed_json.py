"""Turns plain JSON values into dataclasses, with an error that names the place, the value and what is expected."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from ssmvision.errors import UserError

__all__ = ["from_json"]

T = TypeVar("T")


def from_json(kind: type[T], value: Any, where: str) -> T:
    """A value of a type from plain JSON values.

    Args:
        kind: a dataclass, int, float, bool, str, Literal, tuple[X, ...], dict[str, X], or X | None.
        value: what `json.load` gave.
        where: name of the value for messages: a file's name and a colon, "plan.json:", or a key, "spacing".

    Raises:
        UserError: a missing or unknown key, or a value of another type.
    """
    return cast(T, _read(kind, value, where))


def _read(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        if value is None and NoneType in arguments:
            return None
        return _read(next(a for a in arguments if a is not NoneType), value, where)
    if origin is Literal:
        if value not in arguments:
            raise UserError(f"{where} is {value!r}; use one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        items = _expect((list, tuple), value, where, "a list")
        return tuple(_read(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(items))
    if origin is dict:
        items = _expect(dict, value, where, "an object {...}")
        return {key: _read(arguments[1], item, f"{where}.{key}") for key, item in items.items()}
    if is_dataclass(kind):
        return _read_fields(kind, _expect(dict, value, where, "an object {...}"), where)
    return _read_plain(kind, value, where)


def _read_fields(kind: Any, values: Mapping[str, Any], where: str) -> Any:
    hints, known = get_type_hints(kind), {field.name: field for field in fields(kind)}
    for key in values:
        if key not in known:
            close = get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"remove it; known are {', '.join(known)}"
            raise UserError(f"{where.rstrip(':')}: unknown key {key!r}; {hint}")
    for name, field in known.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise UserError(f"{where.rstrip(':')}: the key {name!r} is missing; add it, or make the file again")
    joint = " " if where.endswith(":") else "."
    return kind(**{name: _read(hints[name], value, f"{where}{joint}{name}") for name, value in values.items()})


def _read_plain(kind: Any, value: Any, where: str) -> Any:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    if kind is float:
        number = _expect((int, float), value, where, names[float])
        if not math.isfinite(number):
            raise UserError(f"{where} is {number}; give a finite number")
        return float(number)
    return _expect(kind, value, where, names[kind])


def _expect(kind: Any, value: Any, where: str, name: str) -> Any:
    # JSON's true would pass as the number 1.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise UserError(f"{where} is {value!r}; give {name}")
    return value
