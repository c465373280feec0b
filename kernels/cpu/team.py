"""Runs a compiled loop on PyTorch's OpenMP threads without coming back to Python.

The threads spin for a while after each of PyTorch's operations, so that a region costs about a microsecond; a thread
that had to take Python's lock would be put to sleep and woken up for every loop.
"""

from __future__ import annotations

import ctypes
from typing import Any

from llvmlite import binding, ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from ssmvision.kernels.cpu.threads import openmp

__all__ = ["team"]

BYTES, UNSIGNED = ir.IntType(8).as_pointer(), ir.IntType(32)
# What compiled code calls; the address differs from process to process, the name is kept with the code on disk.
SYMBOL = "ssmvision_parallel"

if (_library := openmp()) is not None:
    binding.add_symbol(SYMBOL, ctypes.cast(_library.GOMP_parallel, ctypes.c_void_p).value)


@intrinsic  # type: ignore[untyped-decorator]
def team(typing: Any, loop: Any, threads: Any, parts: Any, tasks: Any, arguments: Any) -> Any:
    """Calls loop(first, last, *arguments) on `parts` parts of range(tasks), each thread taking the next one.

    Returns:
        How many calls failed.
    """
    inner = loop.get_call_type(typing, (types.intp, types.intp, *arguments.types), {})

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        index, count = context.get_value_type(types.intp), context.get_value_type(arguments)
        shared = cgutils.alloca_once(builder, ir.LiteralStructType([index, index, index, index, count]))
        nothing = ir.Constant(index, 0)
        for place, value in enumerate((nothing, nothing, *values[2:])):
            builder.store(value, cgutils.gep_inbounds(builder, shared, 0, place))
        region = _region(context, builder, loop.dispatcher.get_compile_result(inner), inner, shared.type)
        kind = ir.FunctionType(ir.VoidType(), [region.type, BYTES, UNSIGNED, UNSIGNED])
        start = cgutils.get_or_insert_function(builder.module, kind, SYMBOL)
        threads = builder.trunc(values[1], UNSIGNED)
        builder.call(start, [region, builder.bitcast(shared, BYTES), threads, ir.Constant(UNSIGNED, 0)])
        return builder.load(cgutils.gep_inbounds(builder, shared, 0, 1))

    return types.intp(loop, types.intp, types.intp, types.intp, arguments), emit


def _region(context: Any, caller: Any, found: Any, inner: Any, shared_type: Any) -> Any:
    """What every thread runs; shared are the next part, failures, parts, tasks and arguments."""
    context.active_code_library.add_linking_library(found.library)
    function = ir.Function(caller.module, ir.FunctionType(ir.VoidType(), [BYTES]), f"{caller.function.name}.region")
    function.linkage = "internal"
    builder = ir.IRBuilder(function.append_basic_block())
    shared = builder.bitcast(function.args[0], shared_type)
    following, failed, *rest = (cgutils.gep_inbounds(builder, shared, 0, place) for place in range(5))
    parts, tasks, arguments = map(builder.load, rest)
    one = ir.Constant(parts.type, 1)
    take, run, done = (function.append_basic_block(name) for name in ("take", "run", "done"))
    builder.branch(take)
    builder.position_at_end(take)
    part = builder.atomic_rmw("add", following, one, "monotonic")
    builder.cbranch(builder.icmp_signed("<", part, parts), run, done)
    builder.position_at_end(run)
    edges = [builder.sdiv(builder.mul(tasks, edge), parts) for edge in (part, builder.add(part, one))]
    given = [builder.extract_value(arguments, place) for place in range(len(inner.args) - 2)]
    status, _ = context.call_internal_no_propagate(builder, found.fndesc, inner, [*edges, *given])
    with builder.if_then(status.is_error):
        builder.atomic_rmw("add", failed, one, "monotonic")
    builder.branch(take)
    builder.position_at_end(done)
    builder.ret_void()
    return function
