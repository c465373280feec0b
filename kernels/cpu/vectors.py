"""Sixteen float32 side by side as a Numba type, so that the loops of a scan are vector instructions by construction.

LLVM turns a vector into what the processor has: one register with AVX-512, two with AVX2, four with NEON. Left to find
vectors in plain loops by itself, it checks at every one of them whether its arrays overlap, which costs more than a
short loop does.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit
from numba.core import cgutils, types
from numba.core.datamodel import PrimitiveModel
from numba.extending import intrinsic, overload, register_model

__all__ = [
    "LANES",
    "LN2",
    "LOG2E",
    "OPTIONS",
    "broadcast",
    "columns",
    "exp2",
    "fma",
    "load",
    "sigmoid",
    "softplus",
    "splat",
    "store",
    "total",
]

LANES = 16
_REGISTER = ir.VectorType(ir.FloatType(), LANES)
_INTEGERS = ir.VectorType(ir.IntType(32), LANES)
LOG2E, LN2 = 1.4426950408889634, 0.6931471805599453
# Fusing and rounding aside, arithmetic keeps its meaning for infinities and nans.
OPTIONS: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}


class VectorType(types.Type):
    """The type of sixteen float32."""

    def __init__(self) -> None:
        super().__init__(name=f"float32x{LANES}")


vector = VectorType()


@register_model(VectorType)
class VectorModel(PrimitiveModel):
    """A vector is one LLVM value."""

    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _REGISTER)


def _constant(value: float) -> Any:
    return ir.Constant(_REGISTER, [ir.Constant(ir.FloatType(), value)] * LANES)


def _address(context: Any, builder: Any, kind: Any, array: Any, offset: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [offset]), _REGISTER.as_pointer())


@intrinsic
def load(typing: Any, array: Any, offset: Any) -> Any:
    """The vector array[offset : offset + 16] of a flat float32 array; bounds are not checked."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_address(context, builder, signature.args[0], *arguments), align=4)

    return vector(array, types.intp), emit


@intrinsic
def store(typing: Any, array: Any, offset: Any, value: Any) -> Any:
    """Writes a vector to array[offset : offset + 16]; bounds are not checked."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[2], _address(context, builder, signature.args[0], *arguments[:2]), align=4)
        return context.get_dummy_value()

    return types.none(array, types.intp, vector), emit


def _splat(builder: Any, value: Any) -> Any:
    first = builder.insert_element(ir.Constant(_REGISTER, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(_INTEGERS, [0] * LANES)
    return builder.shuffle_vector(first, ir.Constant(_REGISTER, ir.Undefined), zeros)


@intrinsic
def splat(typing: Any, value: Any) -> Any:
    """A float32 in all sixteen places."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _splat(builder, arguments[0])

    return vector(types.float32), emit


@intrinsic
def broadcast(typing: Any, array: Any, offset: Any) -> Any:
    """array[offset] in all sixteen places; bounds are not checked, and negative offsets not counted from the end."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return _splat(builder, builder.load(builder.gep(data, [arguments[1]])))

    return vector(array, types.intp), emit


@intrinsic
def total(typing: Any, value: Any) -> Any:
    """Sum of the sixteen places, pairwise, the same way every time."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v, width = arguments[0], LANES
        while width > 1:
            width //= 2
            kind = ir.VectorType(ir.IntType(32), width)
            halves = [
                builder.shuffle_vector(v, v, ir.Constant(kind, [first + i for i in range(width)]))
                for first in (0, width)
            ]
            v = builder.fadd(*halves)
        return builder.extract_element(v, ir.Constant(ir.IntType(32), 0))

    return types.float32(vector), emit


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    kind = ir.FunctionType(_REGISTER, [_REGISTER] * 3)
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{LANES}f32")
    return builder.call(function, [a, b, c])


@intrinsic
def fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """Product plus sum: a b + c."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _fma(builder, *arguments)

    return vector(vector, vector, vector), emit


def _polynomial(builder: Any, coefficients: tuple[float, ...], x: Any) -> Any:
    """Highest power first, by Horner's rule."""
    value = _constant(coefficients[0])
    for coefficient in coefficients[1:]:
        value = _fma(builder, value, x, _constant(coefficient))
    return value


# 2^r on [-1/2, 1/2], exact at 0: relative error 9e-8. log(1 + e) / e on [0, 1]: 3e-8. Both minimax fits.
EXP2 = (0.00132647260419461, 0.009671512722139224, 0.0555073374709228, 0.2402224208357695, 0.6931469775964917, 1.0)
LOG1P = tuple(
    LN2 * c
    for c in (
        *(0.00754916574805975, -0.042566996067762375, 0.11285600996017456, -0.197118878364563, 0.27564138174057007),
        *(-0.35840845108032227, 0.48069295287132263, -0.7213401794433594, 1.4426950216293335),
    )
)
ROUND = 12582912.0  # 1.5 * 2^23: adding it rounds to an integer, which is then in the low bits


def _exp2(builder: Any, x: Any) -> Any:
    low, high, rounding = _constant(-126.0), _constant(128.0), _constant(ROUND)
    x = builder.select(builder.fcmp_ordered("<", x, low), low, x)  # written so that nan stays nan
    x = builder.select(builder.fcmp_ordered(">", x, high), high, x)
    shifted = builder.fadd(x, rounding)
    p = _polynomial(builder, EXP2, builder.fsub(x, builder.fsub(shifted, rounding)))
    power = builder.shl(builder.bitcast(shifted, _INTEGERS), ir.Constant(_INTEGERS, [23] * LANES))
    return builder.bitcast(builder.add(builder.bitcast(p, _INTEGERS), power), _REGISTER)


def _minus_absolute(builder: Any, x: Any) -> Any:
    sign = ir.Constant(_INTEGERS, [-(2**31)] * LANES)
    return builder.bitcast(builder.or_(builder.bitcast(x, _INTEGERS), sign), _REGISTER)


def _softplus(builder: Any, x: Any) -> Any:
    e = _exp2(builder, builder.fmul(_minus_absolute(builder, x), _constant(LOG2E)))
    zero = _constant(0.0)
    positive = builder.select(builder.fcmp_ordered("<", x, zero), zero, x)
    return _fma(builder, e, _polynomial(builder, LOG1P, e), positive)


def _sigmoid(builder: Any, x: Any) -> Any:
    e = _exp2(builder, builder.fmul(_minus_absolute(builder, x), _constant(LOG2E)))
    one = _constant(1.0)
    above = builder.select(builder.fcmp_ordered(">=", x, _constant(0.0)), one, e)
    return builder.fdiv(above, builder.fadd(one, e))


def _of_one(function: Callable[[Any, Any], Any], text: str) -> Any:
    def typed(typing: Any, x: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return function(builder, arguments[0])

        return vector(vector), emit

    typed.__doc__ = text
    return intrinsic(typed)


exp2 = _of_one(_exp2, "2^x, relative error 2e-7; 2^-126 for anything lower.")
softplus = _of_one(_softplus, "log(1 + e^x), relative error 2e-7.")
sigmoid = _of_one(_sigmoid, "1 / (1 + e^-x), relative error 2e-7.")


def _operator(symbol: Any, instruction: str) -> None:
    @intrinsic
    def apply(typing: Any, a: Any, b: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return getattr(builder, instruction)(*arguments)

        return vector(vector, vector), emit

    def call(a: Any, b: Any) -> Any:
        return apply(a, b)

    @overload(symbol)
    def typed(a: Any, b: Any) -> Any:
        return call if a is vector and b is vector else None


_operator(operator.add, "fadd")
_operator(operator.mul, "fmul")


@njit(inline="always", **OPTIONS)
def columns(target: Any, source: Any, row: int, width: int) -> None:
    """Sixteen rows of a (rows, width) matrix, from `row` on, as `width` vectors."""
    for lane in range(LANES):
        for i in range(width):
            target[i * LANES + lane] = source[(row + lane) * width + i]
