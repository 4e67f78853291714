"""Vectors for Numba's CPU target: 32 bytes of consecutive elements of an array, in one register.

LLVM vectorises simple loops by itself. But it does not keep several accumulators in registers across an inner loop, and
it does not vectorise loops over many arrays that might overlap. Kernels with explicit vectors have both. An index
counts elements from the start of an array's data, whatever its shape, and is not checked.

    products    A block of a product holds 4 rows of up to 3 vectors in 12 of the 16 registers of AVX2; the others hold
                3 vectors of one factor and a value of the other. A step of its loop has 7 loads for 12 multiplications.
                A row that does not exist repeats the last row, and writes the same values again.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import factorial, log
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

BYTES = 32
I32 = ir.IntType(32)
ROWS = 4
"""Rows in a block of a product."""


class Vector(types.Type):
    """32 bytes of a floating-point dtype."""

    def __init__(self, dtype: types.Float) -> None:
        self.dtype = dtype
        self.lanes = BYTES * 8 // dtype.bitwidth
        super().__init__(name=f"Vector({dtype})")


@register_model(Vector)
class VectorModel(models.PrimitiveModel):
    """The representation of a Vector: LLVM's vector type."""

    def __init__(self, manager: Any, vector: Vector) -> None:
        element = manager.lookup(vector.dtype).get_value_type()
        super().__init__(manager, vector, ir.VectorType(element, vector.lanes))


@intrinsic
def lanes(typing, array):
    """The number of elements of the array in a vector: a constant."""
    count = Vector(array.dtype).lanes
    return types.intp(array), lambda context, *_: context.get_constant(types.intp, count)


@intrinsic
def zeros(typing, array):
    """0 in every lane."""
    vector = Vector(array.dtype)
    return vector(array), lambda context, *_: ir.Constant(context.get_value_type(vector), None)


@intrinsic
def broadcast(typing, array, value):
    """One value in every lane of a vector of the array's dtype."""
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
    """At most `count` elements from `index` on, then zeros; memory behind them is not read."""
    vector = Vector(array.dtype)

    def codegen(context, builder, signature, arguments):
        kind = context.get_value_type(vector)
        address = _address(context, builder, signature, arguments, kind)
        return _masked_load(builder, vector, address, _first_lanes(builder, arguments[2], vector.lanes))

    return vector(array, types.intp, types.intp), codegen


@intrinsic
def store_first(typing, array, index, vector, count):
    """Write at most `count` elements from `index` on; memory behind them is not written."""

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
def sub(typing, a, b):
    """a − b."""
    return a(a, b), lambda context, builder, signature, arguments: builder.fsub(*arguments)


@intrinsic
def mul(typing, a, b):
    """a · b."""
    return a(a, b), lambda context, builder, signature, arguments: builder.fmul(*arguments)


@intrinsic
def div(typing, a, b):
    """a / b."""
    return a(a, b), lambda context, builder, signature, arguments: builder.fdiv(*arguments)


@intrinsic
def maximum(typing, a, b):
    """The larger of a and b; b where either is NaN."""
    return a(a, b), lambda context, builder, signature, arguments: _first_if(builder, ">", *arguments)


@intrinsic
def where_positive(typing, by, a, b):
    """a where `by` is positive or NaN, else b. The gradient of torch's ReLU passes NaN in the same way."""

    def codegen(context, builder, signature, arguments):
        positive = builder.fcmp_unordered(">", arguments[0], ir.Constant(arguments[0].type, None))
        return builder.select(positive, arguments[1], arguments[2])

    return a(by, a, b), codegen


@intrinsic
def exp(typing, x):
    """eˣ to a few ulp. It is 0 where eˣ is less than the smallest normal number, and wrong where eˣ is more than the
    largest power of 2.

    eˣ = 2ⁿ · eʳ, where n is the integer nearest to x / ln 2, and eʳ is computed by its Taylor series. If a mantissa has
    m bits, adding 3 · 2ᵐ⁻¹ + d to x / ln 2 rounds it to n and leaves n + d in the lowest bits. With the bias of the
    exponent as d, these bits are the exponent of 2ⁿ.
    """
    bits, mantissa, degree = {32: (32, 23, 7), 64: (64, 52, 13)}[x.dtype.bitwidth]
    largest = 2 ** (bits - mantissa - 2) - 1

    def codegen(context, builder, signature, arguments):
        kind, integer = arguments[0].type, ir.VectorType(ir.IntType(bits), x.lanes)

        def every(value):
            return ir.Constant(kind, [value] * x.lanes)

        least, shift = every((1 - largest) * log(2)), every(3.0 * 2 ** (mantissa - 1) + largest)
        shifted = _fma(builder, arguments[0], every(1 / log(2)), shift)
        n = builder.fsub(shifted, shift)
        r = _fma(builder, n, every(-log(2)), arguments[0])
        series = every(1 / factorial(degree))
        for power in reversed(range(degree)):
            series = _fma(builder, series, r, every(1 / factorial(power)))
        power = builder.shl(builder.bitcast(shifted, integer), ir.Constant(integer, [mantissa] * x.lanes))
        scaled = builder.fmul(series, builder.bitcast(power, kind))
        return builder.select(builder.fcmp_ordered(">", least, arguments[0]), every(0.0), scaled)

    return x(x), codegen


def _product_block(vectors: int) -> Any:
    @intrinsic
    def block(typing, weights, at, step, bias, rows, depth, z, at_z, step_z, to, at_to, step_to, adds, floor):
        """to[o] = max(bias[o] + Σ_d weights[o, d] · z[d], floor), for at most 4 of `rows` rows and some vectors.

        `bias` is an index into the weights. With `adds`, `to` replaces the bias.
        """
        vector = Vector(z.dtype)

        def codegen(context, builder, signature, arguments):
            _, at, step, bias, rows, depth, _, at_z, step_z, _, at_to, step_to, adds, floor = arguments
            data, data_z, data_to = _data(context, builder, signature, arguments, 0, 6, 9)
            kind, align = context.get_value_type(vector), z.dtype.bitwidth // 8
            row = _existing(builder, rows, ROWS)
            weight = [builder.gep(data, [builder.add(at, builder.mul(o, step))]) for o in row]
            target = [
                _vectors(builder, data_to, builder.add(at_to, builder.mul(o, step_to)), kind, vectors) for o in row
            ]
            sums = [[cgutils.alloca_once(builder, kind) for _ in range(vectors)] for _ in row]
            with builder.if_else(adds) as (add, begin):
                with add:
                    for address, total in zip(_flat(target), _flat(sums), strict=True):
                        builder.store(builder.load(address, align=align), total)
                with begin:
                    for o, totals in zip(row, sums, strict=True):
                        value = builder.load(builder.gep(data, [builder.add(bias, o)]))
                        for total in totals:
                            builder.store(_in_every_lane(builder, value, vector.lanes), total)
            with cgutils.for_range(builder, depth) as loop:
                source = _vectors(builder, data_z, builder.add(at_z, builder.mul(loop.index, step_z)), kind, vectors)
                factors = [builder.load(address, align=align) for address in source]
                for address, totals in zip(weight, sums, strict=True):
                    value = _in_every_lane(builder, builder.load(builder.gep(address, [loop.index])), vector.lanes)
                    for factor, total in zip(factors, totals, strict=True):
                        builder.store(_fma(builder, value, factor, builder.load(total)), total)
            least = _in_every_lane(builder, context.cast(builder, floor, signature.args[-1], z.dtype), vector.lanes)
            for address, total in zip(_flat(target), _flat(sums), strict=True):
                builder.store(_first_if(builder, ">", least, builder.load(total)), address, align=align)
            return context.get_dummy_value()

        index = types.intp
        signature = (
            weights, index, index, index, index, index, z, index, index, to, index, index, types.boolean, floor,
        )  # fmt: skip
        return types.void(*signature), codegen

    return block


product_1, product_2, product_3 = (_product_block(vectors) for vectors in (1, 2, 3))


@intrinsic
def outer_block(typing, a, at_a, step_a, rows_a, b, at_b, step_b, rows_b, columns, to, at_to, step_to):
    """to[o, d] += Σ over columns of a[o] · b[d], for at most 4 rows of a and 3 rows of b. Memory after the last
    column is not read."""
    vector = Vector(a.dtype)

    def codegen(context, builder, signature, arguments):
        _, at_a, step_a, rows_a, _, at_b, step_b, rows_b, columns, _, at_to, step_to = arguments
        data_a, data_b, data_to = _data(context, builder, signature, arguments, 0, 4, 9)
        kind, align = context.get_value_type(vector), a.dtype.bitwidth // 8
        row_a, row_b = _existing(builder, rows_a, ROWS), _existing(builder, rows_b, 3)
        left = [builder.gep(data_a, [builder.add(at_a, builder.mul(o, step_a))]) for o in row_a]
        right = [builder.gep(data_b, [builder.add(at_b, builder.mul(d, step_b))]) for d in row_b]
        sums = [[cgutils.alloca_once_value(builder, ir.Constant(kind, None)) for _ in right] for _ in left]
        step = context.get_constant(types.intp, vector.lanes)
        rest = builder.srem(columns, step)

        def accumulate(read):
            factors = [read(address) for address in right]
            for address, totals in zip(left, sums, strict=True):
                value = read(address)
                for factor, total in zip(factors, totals, strict=True):
                    builder.store(_fma(builder, value, factor, builder.load(total)), total)

        with cgutils.for_range_slice(builder, step.type(0), builder.sub(columns, rest), step) as (column, _):
            accumulate(lambda row: builder.load(_vectors(builder, row, column, kind, 1)[0], align=align))
        with builder.if_then(builder.icmp_signed(">", rest, rest.type(0))):
            mask, whole = _first_lanes(builder, rest, vector.lanes), builder.sub(columns, rest)
            accumulate(lambda row: _masked_load(builder, vector, _vectors(builder, row, whole, kind, 1)[0], mask))
        targets = [
            builder.gep(data_to, [builder.add(builder.add(at_to, builder.mul(o, step_to)), d)])
            for o in row_a
            for d in row_b
        ]
        added = [
            builder.fadd(builder.load(address), _total(builder, vector, builder.load(total)))
            for address, total in zip(targets, _flat(sums), strict=True)
        ]
        for address, value in zip(targets, added, strict=True):
            builder.store(value, address)
        return context.get_dummy_value()

    index = types.intp
    return types.void(a, index, index, index, b, index, index, index, index, to, index, index), codegen


@intrinsic
def total(typing, vector):
    """The sum of the lanes."""
    return vector.dtype(vector), lambda context, builder, signature, arguments: _total(builder, vector, *arguments)


@intrinsic
def choose_first(typing, a, b, count):
    """The first `count` lanes of a, the others of b."""

    def codegen(context, builder, signature, arguments):
        return builder.select(_first_lanes(builder, arguments[2], a.lanes), *arguments[:2])

    return a(a, b, types.intp), codegen


@intrinsic
def keep_first(typing, vector, count):
    """The first `count` lanes; the others are 0, even if they hold NaN."""

    def codegen(context, builder, signature, arguments):
        mask = _first_lanes(builder, arguments[1], vector.lanes)
        return builder.select(mask, arguments[0], ir.Constant(arguments[0].type, None))

    return vector(vector, types.intp), codegen


@intrinsic
def prefetch(typing, array, index):
    """Prefetch the memory at `index`, which may be outside the array."""

    def codegen(context, builder, signature, arguments):
        address = _address(context, builder, signature, arguments, ir.IntType(8))
        read, keep, data = (ir.Constant(I32, flag) for flag in (0, 3, 1))
        _call(builder, "llvm.prefetch.p0i8", ir.VoidType(), address, read, keep, data)
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen


def _data(context, builder, signature, arguments, *which):
    """The addresses of the data of some arguments, which are arrays."""
    return [context.make_array(signature.args[i])(context, builder, arguments[i]).data for i in which]


def _existing(builder, rows, count):
    """The indices of the first `count` rows; a row that does not exist has the index of the last row."""
    last = builder.sub(rows, rows.type(1))
    return [_first_if(builder, "<", rows.type(row), last) for row in range(count)]


def _vectors(builder, data, at, kind, count):
    """The addresses of `count` vectors in a row."""
    first = builder.bitcast(builder.gep(data, [at]), kind.as_pointer())
    return [builder.gep(first, [I32(number)]) for number in range(count)]


def _masked_load(builder, vector, address, mask):
    """The vector at the address; lanes that are not in the mask are 0, and their memory is not read."""
    kind, align = address.type.pointee, ir.Constant(I32, vector.dtype.bitwidth // 8)
    name = f"llvm.masked.load.{_suffix(vector)}.p0{_suffix(vector)}"
    return _call(builder, name, kind, address, align, mask, ir.Constant(kind, None))


def _flat(rows: Iterable[Iterable[Any]]) -> list[Any]:
    return [x for row in rows for x in row]


def _first_if(builder, comparison, a, b):
    """a where the comparison of a with b is true, else b."""
    integer = isinstance(a.type, ir.IntType)
    return builder.select((builder.icmp_signed if integer else builder.fcmp_ordered)(comparison, a, b), a, b)


def _fma(builder, a, b, c):
    element = 32 if a.type.element == ir.FloatType() else 64
    return _call(builder, f"llvm.fma.v{a.type.count}f{element}", a.type, a, b, c)


def _total(builder, vector, value):
    name = f"llvm.vector.reduce.fadd.{_suffix(vector)}"
    element = value.type.element
    kind = ir.FunctionType(element, [element, value.type])
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(function, [ir.Constant(element, -0.0), value], fastmath=("reassoc",))


def _address(context, builder, signature, arguments, kind):
    """The address of the element `arguments[1]` of the array `arguments[0]`, as a pointer to a `kind`."""
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
    """The name of the vector type in LLVM's intrinsics."""
    return f"v{vector.lanes}f{vector.dtype.bitwidth}"


def _call(builder, name, returns, *arguments):
    """Call an intrinsic of LLVM."""
    kind = ir.FunctionType(returns, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)
