"""SIMD vectors inside Numba's compiled loops: what LLVM has, and a loop over numbers doesn't reach.

A vector lives in registers for as long as a compiled loop names it, whatever the processor: LLVM splits it into as many
registers as it takes. Numba documents this way to extend it ("Low-level extension API").
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import extending, types
from numba.core import cgutils
from numba.extending import models, register_model

FOUND_AT_ONCE = 8
"""Numbers that :func:`append_nonzero` compares at once, and may write behind the last one that counts."""

POSITIONS = np.array(
    [sorted(range(8), key=lambda bit: (not mask >> bit & 1, bit)) for mask in range(256)], dtype=np.int32
).ravel()
"""Of each byte, the numbers of its set bits, then those of the others."""

Intrinsic: TypeAlias = tuple[Any, Callable[..., Any]]
"""A Numba signature, and what writes LLVM's instructions for it."""

intrinsic: Callable[[Callable[..., Intrinsic]], Callable[..., Any]] = extending.intrinsic
"""Numba's decorator, typed as what compiled code calls: the typing context is not among its arguments."""

_INT32 = ir.IntType(32)


class Vector(types.Type):
    """The Numba type of a vector of ``lanes`` numbers."""

    def __init__(self, dtype: types.Float, lanes: int) -> None:
        self.dtype, self.lanes = dtype, lanes
        self.ir = ir.VectorType(ir.FloatType() if dtype == types.float32 else ir.DoubleType(), lanes)
        super().__init__(name=f"vector({dtype}, {lanes})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: Vector) -> None:
        super().__init__(manager, vector, vector.ir)  # type: ignore[no-untyped-call]


@intrinsic
def load(typing_context: Any, array: Any, offset: Any, eighths: Any) -> Intrinsic:
    """Read ``8 * len(eighths)`` numbers of a flat array; the tuple carries the length as its type."""
    vector = Vector(array.dtype, 8 * eighths.count)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _read(builder, _address(context, builder, array, arguments[0], arguments[1]), vector.ir)

    return vector(array, offset, eighths), generate


@intrinsic
def store(typing_context: Any, array: Any, offset: Any, vector: Any) -> Intrinsic:
    """Write a vector into a flat array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> None:
        _write(builder, _address(context, builder, array, arguments[0], arguments[1]), arguments[2])

    return types.void(array, offset, vector), generate


@intrinsic
def prefetch(typing_context: Any, array: Any, offset: Any) -> Intrinsic:
    """Ask for a number of a flat array, and its neighbours in memory, which will be read or written soon."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> None:
        address = _address(context, builder, array, arguments[0], arguments[1])
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, _INT32, _INT32, _INT32])
        ask = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")  # type: ignore[no-untyped-call]
        for_reading, near, data = _INT32(0), _INT32(2), _INT32(1)
        builder.call(ask, [builder.bitcast(address, byte), for_reading, near, data])

    return types.void(array, offset), generate


@intrinsic
def accumulate(typing_context: Any, total: Any, vector: Any, factor: Any) -> Intrinsic:
    """Return ``total + vector * factor``, rounded once where the processor can."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        factors = _repeat(builder, arguments[2], total.ir)
        product = builder.fmul(arguments[1], factors, flags=("contract",))
        return builder.fadd(arguments[0], product, flags=("contract",))

    return total(total, vector, factor), generate


@intrinsic
def append_nonzero(typing_context: Any, values: Any, position: Any, where: Any, count: Any, table: Any) -> Intrinsic:
    """Append to ``where[count:]`` the positions of those of the 8 values from ``position`` on that aren't zero.

    Returns the new count. There is no branch, so the time doesn't depend on the values. ``table`` is
    :data:`POSITIONS`.
    """
    vector = ir.VectorType(Vector(values.dtype, FOUND_AT_ONCE).ir.element, FOUND_AT_ONCE)
    numbers = ir.VectorType(_INT32, FOUND_AT_ONCE)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, start, target, found, rows = arguments
        read = _read(builder, _address(context, builder, values, source, start), vector)
        fired = builder.fcmp_unordered("!=", read, ir.Constant(vector, [0.0] * FOUND_AT_ONCE))
        mask = builder.zext(builder.bitcast(fired, ir.IntType(FOUND_AT_ONCE)), found.type)
        row = builder.mul(mask, ir.Constant(found.type, FOUND_AT_ONCE))
        chosen = _read(builder, _address(context, builder, table, rows, row), numbers)
        chosen = builder.add(chosen, _repeat(builder, builder.trunc(start, _INT32), numbers))
        _write(builder, _address(context, builder, where, target, found), chosen)
        return builder.add(found, builder.ctpop(mask))

    return types.intp(values, types.intp, where, types.intp, table), generate


def _repeat(builder: Any, scalar: Any, kind: Any) -> Any:
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(_INT32, 0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(_INT32, kind.count), [0] * kind.count))


def _address(context: Any, builder: Any, kind: Any, array: Any, offset: Any) -> Any:
    data = cgutils.create_struct_proxy(kind)(context, builder, value=array).data  # type: ignore[no-untyped-call]
    return builder.gep(data, [offset])


def _read(builder: Any, address: Any, kind: Any) -> Any:
    read = builder.load(builder.bitcast(address, kind.as_pointer()))
    read.align = 4  # NumPy promises no more than the alignment of a number
    return read


def _write(builder: Any, address: Any, value: Any) -> None:
    written = builder.store(value, builder.bitcast(address, value.type.as_pointer()))
    written.align = 4
