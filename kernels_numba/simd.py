"""Vectors for Numba's CPU target: as many consecutive elements of an array as fill 32 bytes, in one register.

LLVM vectorises simple loops by itself, but neither keeps several accumulators in registers across an inner loop nor
gets past many arrays that might overlap; kernels that say what is a vector get both. An index counts elements from the
start of an array's data, whatever its shape; nothing checks it.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

BYTES = 32
I32 = ir.IntType(32)


class Vector(types.Type):
    """32 bytes of a floating-point type."""

    def __init__(self, dtype: types.Float) -> None:
        self.dtype = dtype
        self.lanes = BYTES * 8 // dtype.bitwidth
        super().__init__(name=f"Vector({dtype})")


@register_model(Vector)
class VectorModel(models.PrimitiveModel):
    """LLVM's own vector type."""

    def __init__(self, manager: Any, vector: Vector) -> None:
        element = manager.lookup(vector.dtype).get_value_type()
        super().__init__(manager, vector, ir.VectorType(element, vector.lanes))


@intrinsic
def lanes(typing, array):
    """How many elements of the array a vector holds: a constant."""
    count = Vector(array.dtype).lanes
    return types.intp(array), lambda context, *_: context.get_constant(types.intp, count)


@intrinsic
def zeros(typing, array):
    """0 in every lane."""
    vector = Vector(array.dtype)
    return vector(array), lambda context, *_: ir.Constant(context.get_value_type(vector), None)


@intrinsic
def broadcast(typing, array, value):
    """One value in every lane of a vector of the array's type."""
    vector = Vector(array.dtype)

    def codegen(context, builder, signature, arguments):
        scalar = context.cast(builder, arguments[1], value, array.dtype)
        return _in_every_lane(builder, scalar, vector.lanes)

    return vector(array, value), codegen


@intrinsic
def load(typing, array, index):
    """The elements from `index` on."""
    vector = Vector(array.dtype)

    def codegen(context, builder, signature, arguments):
        kind = context.get_value_type(vector)
        address = _address(context, builder, signature, arguments, kind)
        return builder.load(address, align=array.dtype.bitwidth // 8)

    return vector(array, types.intp), codegen


@intrinsic
def store(typing, array, index, vector):
    """Write the elements from `index` on."""

    def codegen(context, builder, signature, arguments):
        address = _address(context, builder, signature, arguments, arguments[2].type)
        builder.store(arguments[2], address, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), codegen


@intrinsic
def load_first(typing, array, index, count):
    """At most `count` elements from `index` on, then zeros; memory beyond them is not touched."""
    vector = Vector(array.dtype)

    def codegen(context, builder, signature, arguments):
        kind = context.get_value_type(vector)
        address = _address(context, builder, signature, arguments, kind)
        mask = _first_lanes(builder, arguments[2], vector.lanes)
        align = ir.Constant(I32, array.dtype.bitwidth // 8)
        name = f"llvm.masked.load.{_suffix(vector)}.p0{_suffix(vector)}"
        return _call(builder, name, kind, address, align, mask, ir.Constant(kind, None))

    return vector(array, types.intp, types.intp), codegen


@intrinsic
def store_first(typing, array, index, vector, count):
    """Write at most `count` elements from `index` on; memory beyond them is not touched."""

    def codegen(context, builder, signature, arguments):
        address = _address(context, builder, signature, arguments, arguments[2].type)
        mask = _first_lanes(builder, arguments[3], vector.lanes)
        align = ir.Constant(I32, array.dtype.bitwidth // 8)
        name = f"llvm.masked.store.{_suffix(vector)}.p0{_suffix(vector)}"
        _call(builder, name, ir.VoidType(), arguments[2], address, align, mask)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector, types.intp), codegen


@intrinsic
def fma(typing, a, b, c):
    """a · b + c, rounded once."""
    name = f"llvm.fma.{_suffix(a)}"
    return a(a, b, c), lambda context, builder, signature, arguments: _call(
        builder, name, arguments[0].type, *arguments
    )


@intrinsic
def add(typing, a, b):
    """a + b."""
    return a(a, b), lambda context, builder, signature, arguments: builder.fadd(*arguments)


@intrinsic
def keep_first(typing, vector, count):
    """The first `count` lanes; 0 in the others, whatever they held."""

    def codegen(context, builder, signature, arguments):
        mask = _first_lanes(builder, arguments[1], vector.lanes)
        return builder.select(mask, arguments[0], ir.Constant(arguments[0].type, None))

    return vector(vector, types.intp), codegen


@intrinsic
def prefetch(typing, array, index):
    """Ask for the memory around `index`, which may lie outside of the array."""

    def codegen(context, builder, signature, arguments):
        address = _address(context, builder, signature, arguments, ir.IntType(8))
        read, keep, data = (ir.Constant(I32, flag) for flag in (0, 3, 1))
        _call(builder, "llvm.prefetch.p0i8", ir.VoidType(), address, read, keep, data)
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen


def _address(context, builder, signature, arguments, kind):
    """Where the element `arguments[1]` of the array `arguments[0]` lies, as the address of a `kind`."""
    data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
    return builder.bitcast(builder.gep(data, [arguments[1]]), kind.as_pointer())


def _in_every_lane(builder, scalar, count):
    kind = ir.VectorType(scalar.type, count)
    nothing = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(nothing, scalar, ir.Constant(I32, 0))
    return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(I32, count), [0] * count))


def _first_lanes(builder, count, lanes):
    """A mask of the lanes before `count`."""
    numbers = ir.Constant(ir.VectorType(I32, lanes), list(range(lanes)))
    return builder.icmp_signed("<", numbers, _in_every_lane(builder, builder.trunc(count, I32), lanes))


def _suffix(vector: Vector) -> str:
    """How LLVM names the vector type."""
    return f"v{vector.lanes}f{vector.dtype.bitwidth}"


def _call(builder, name, returns, *arguments):
    """Call an intrinsic of LLVM."""
    kind = ir.FunctionType(returns, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)
