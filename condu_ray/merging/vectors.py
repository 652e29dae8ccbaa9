"""Vectors of LLVM's in functions that numba compiles: some values side by side, and masks of a bit a value.

LLVM's own vectoriser finds neither that eight bits of a byte are the mask of a register nor how wide to go. Here a loop
says both: a vector has as many lanes as a loop likes, and LLVM cuts it into as many registers as the machine needs. No
operation is rounded or ordered otherwise than by itself.

Places in an array are counted in its values from the start of its memory, and not checked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic as _intrinsic
from numba.extending import models, register_model

_I8, _I32 = ir.IntType(8), ir.IntType(32)
_STAMP = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled at the first call; kept on the disk where there is a place.

    numba sees by a function's file alone whether what it kept is stale; what is here goes into the function's name.
    """
    function.__qualname__ = f"{function.__qualname__}_{_STAMP}"
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # neither the function's folder nor the user's cache can be written
        return njit(nogil=True)(function)


def intrinsic(typed: Callable[..., Any]) -> Any:
    """numba's, of which a type checker would want the typing context as an argument of every call."""
    return _intrinsic(typed)


def intrinsic_of_numbers(typed: Callable[..., Any]) -> Any:
    """The same of one that has numbers compiled in."""
    return _intrinsic(prefer_literal=True)(typed)


class Vector(types.Type):
    """The type of ``count`` values of a scalar type side by side."""

    def __init__(self, element: Any, count: int) -> None:
        self.element, self.count = element, count
        super().__init__(name=f"vector({element}, {count})")


@register_model(Vector)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Vector) -> None:
        element = ir.IntType(1) if kind.element == types.boolean else manager[kind.element].get_value_type()
        super().__init__(manager, kind, ir.VectorType(element, kind.count))  # type: ignore[no-untyped-call]


def _mask(vector: Vector) -> Vector:
    return Vector(types.boolean, vector.count)


def _place(context: Any, builder: Any, array: Any, kind: Any, value: Any, index: Any) -> Any:
    """Pointer to something of an LLVM type in an array's memory."""
    data = context.make_array(array)(context, builder, value).data
    return builder.bitcast(builder.gep(data, [index]), kind.as_pointer())


def _all_lanes(builder: Any, value: Any, kind: Any) -> Any:
    nothing = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(nothing, value, _I32(0))
    return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(_I32, kind.count), [0] * kind.count))


def _call(builder: Any, name: str, arguments: Any, flags: tuple[str, ...] = ()) -> Any:
    """LLVM's own function for vectors of floats."""
    kind = arguments[0].type
    name = f"llvm.{name}.v{kind.count}{'f32' if kind.element == ir.FloatType() else 'f64'}"
    function: Any = cgutils.get_or_insert_function(  # type: ignore[no-untyped-call]
        builder.module, ir.FunctionType(kind, [kind] * len(arguments)), name
    )
    return builder.call(function, arguments, fastmath=flags)


@intrinsic_of_numbers
def take(typing: Any, array: Any, index: Any, lanes: Any) -> Any:
    """``lanes`` values of an array from an index on; the number is compiled in."""
    vector = Vector(array.dtype, lanes.literal_value)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = context.get_value_type(vector)
        return builder.load(_place(context, builder, array, kind, *arguments[:2]), align=1)

    return vector(array, index, lanes), generate


@intrinsic_of_numbers
def look_up(typing: Any, table: Any, first: Any, codes: Any, index: Any, lanes: Any) -> Any:
    """The pairs that ``lanes`` codes, bytes from an index on, select of those that a table has from ``first`` on.

    A load a pair, whose values are parted in registers: several times as quick as a gather, or as a load a value.
    """
    vector = Vector(table.dtype, 2 * lanes.literal_value)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = context.get_value_type(vector)
        halves = 1 if table.dtype == types.float32 else 2  # loads of 8 bytes of a pair
        eights = ir.VectorType(ir.DoubleType(), halves * lanes.literal_value)
        pairs = _place(context, builder, table, eights.element, *arguments[:2])
        found = ir.Constant(eights, ir.Undefined)
        for lane in range(lanes.literal_value):
            at = builder.add(arguments[3], arguments[3].type(lane))
            code = builder.zext(builder.load(_place(context, builder, codes, _I8, arguments[2], at)), at.type)
            for half in range(halves):
                place = builder.gep(pairs, [builder.add(builder.mul(code, code.type(halves)), code.type(half))])
                value = builder.load(place, align=4)
                found = builder.insert_element(found, value, _I32(halves * lane + half))
        return builder.bitcast(found, kind)

    return vector(table, first, codes, index, lanes), generate


@intrinsic_of_numbers
def of_pairs(typing: Any, pairs: Any, which: Any) -> Any:
    """Of every pair the first (0) or the second (1); the number is compiled in."""
    vector = Vector(pairs.element, pairs.count // 2)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        picked = list(range(which.literal_value, pairs.count, 2))
        return builder.shuffle_vector(
            arguments[0], arguments[0], ir.Constant(ir.VectorType(_I32, vector.count), picked)
        )

    return vector(pairs, which), generate


@intrinsic
def put(typing: Any, array: Any, index: Any, vector: Any) -> Any:
    """Store a vector in an array from an index on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[2], _place(context, builder, array, arguments[2].type, *arguments[:2]), align=1)
        return context.get_dummy_value()

    return types.void(array, index, vector), generate


@intrinsic
def stream(typing: Any, array: Any, index: Any, vector: Any) -> Any:
    """`put` past the caches, at a multiple of 64 bytes: memory is not read first. Others see it after a `fence`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _place(context, builder, array, arguments[2].type, *arguments[:2])
        store = builder.store(arguments[2], place, align=64)
        store.set_metadata("nontemporal", builder.module.add_metadata([_I32(1)]))
        return context.get_dummy_value()

    return types.void(array, index, vector), generate


@intrinsic
def fence(typing: Any) -> Any:
    """What was streamed is there before what follows."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic_of_numbers
def take_mask(typing: Any, array: Any, index: Any, lanes: Any) -> Any:
    """A mask of as many bits of an array of bytes from an index on, the lowest bit of a byte first."""
    vector = Vector(types.boolean, lanes.literal_value)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _place(context, builder, array, ir.IntType(vector.count), *arguments[:2])
        return builder.bitcast(builder.load(place, align=1), context.get_value_type(vector))

    return vector(array, index, lanes), generate


@intrinsic
def put_mask(typing: Any, array: Any, index: Any, mask: Any) -> Any:
    """The way back."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = builder.bitcast(arguments[2], ir.IntType(mask.count))
        builder.store(bits, _place(context, builder, array, bits.type, *arguments[:2]), align=1)
        return context.get_dummy_value()

    return types.void(array, index, mask), generate


@intrinsic
def every(typing: Any, value: Any, like: Any) -> Any:
    """A vector of another's type that has a number in every lane."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _all_lanes(builder, context.cast(builder, arguments[0], value, like.element), arguments[1].type)

    return like(value, like), generate


def _by_lane(name: str) -> Any:
    def typed(typing: Any, a: Any, b: Any) -> Any:
        return a(a, b), lambda context, builder, signature, arguments: getattr(builder, name)(*arguments)

    return intrinsic(typed)


add, subtract, multiply = _by_lane("fadd"), _by_lane("fsub"), _by_lane("fmul")
both, either = _by_lane("and_"), _by_lane("or_")
"""Bits of bytes, or masks."""


@intrinsic
def fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """``a * b + c``, rounded once: what torch's addcmul does."""
    return a(a, a, a), lambda context, builder, signature, arguments: _call(builder, "fma", arguments)


@intrinsic
def larger(typing: Any, a: Any, b: Any) -> Any:
    """The larger of two of which neither is NaN."""
    return a(a, a), lambda context, builder, signature, arguments: _call(builder, "maxnum", arguments, ("nnan",))


@intrinsic
def size(typing: Any, a: Any) -> Any:
    """Absolute values."""
    return a(a), lambda context, builder, signature, arguments: _call(builder, "fabs", arguments)


@intrinsic
def more(typing: Any, a: Any, b: Any) -> Any:
    """Mask of where ``a > b``."""
    return _mask(a)(a, b), lambda context, builder, signature, arguments: builder.fcmp_ordered(">", *arguments)


@intrinsic
def has(typing: Any, a: Any, b: Any) -> Any:
    """Mask of where bytes have one of another's bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        found = builder.and_(*arguments)
        return builder.icmp_unsigned("!=", found, ir.Constant(found.type, [0] * a.count))

    return _mask(a)(a, a), generate


@intrinsic
def choose(typing: Any, mask: Any, a: Any, b: Any) -> Any:
    """``a`` where the mask has a bit, else ``b``."""
    return a(mask, a, a), lambda context, builder, signature, arguments: builder.select(*arguments)


@intrinsic
def to_double(typing: Any, a: Any) -> Any:
    """A vector in float64."""
    vector = Vector(types.float64, a.count)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return arguments[0] if a == vector else builder.fpext(arguments[0], context.get_value_type(vector))

    return vector(a), generate


@intrinsic
def total(typing: Any, a: Any) -> Any:
    """Sum of the lanes, whose number is a power of 2: halves are added to each other until one is left."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (value,), count = arguments, a.count
        while (count := count // 2) > 0:
            halves = (list(range(count)), list(range(count, 2 * count)))
            kind = ir.VectorType(_I32, count)
            value = builder.fadd(*(builder.shuffle_vector(value, value, ir.Constant(kind, half)) for half in halves))
        return builder.extract_element(value, _I32(0))

    return a.element(a), generate


@intrinsic
def to_bfloat16(typing: Any, a: Any) -> Any:
    """Values of float32, not NaN, rounded to the nearest that bfloat16 has, ties to even."""
    return a(a), lambda context, builder, signature, arguments: _cut(builder, arguments[0], 16)


@intrinsic
def to_float16(typing: Any, a: Any) -> Any:
    """Values of float32, at least 0, rounded to the nearest that float16 has, ties to even; infinity past its end."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (value,) = arguments
        if a.element != types.float32:
            return value
        half, least, limit, infinity = (
            ir.Constant(value.type, [number] * a.count) for number in (0.5, 2.0**-14, 65536.0, float("inf"))
        )
        # Below 2**-14 its steps are 2**-24, as those of float32 from 0.5 on.
        small = builder.fsub(builder.fadd(value, half), half)
        large = _cut(builder, value, 13)
        large = builder.select(builder.fcmp_ordered("<", large, limit), large, infinity)
        return builder.select(builder.fcmp_ordered("<", value, least), small, large)

    return a(a), generate


def _cut(builder: Any, value: Any, bits: int) -> Any:
    """Float32 rounded to as many bits less, ties to even; what is not float32 is left."""
    if value.type.element != ir.FloatType():
        return value
    kind = ir.VectorType(_I32, value.type.count)

    def number(one: int) -> Any:
        return ir.Constant(kind, [one] * kind.count)

    whole = builder.bitcast(value, kind)
    odd = builder.and_(builder.lshr(whole, number(bits)), number(1))
    up = builder.add(builder.add(whole, number((1 << bits - 1) - 1)), odd)
    return builder.bitcast(builder.and_(up, number(2**32 - (1 << bits))), value.type)


@intrinsic_of_numbers
def prefetch(typing: Any, array: Any, index: Any, count: Any, write: Any) -> Any:
    """Ask for the cache lines of ``count`` values, into the second cache; past the array's end it does nothing.

    The number is compiled in, and so is ``write``: 1 where the lines will be written, else 0. What is asked for a block
    ahead would drive out of a first cache what is worked on: strips often lie a power of 2 apart.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _place(context, builder, array, _I8, *arguments[:2])
        kind = ir.FunctionType(ir.VoidType(), [place.type, _I32, _I32, _I32])
        function: Any = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")  # type: ignore[no-untyped-call]
        bytes_all = count.literal_value * context.get_abi_sizeof(context.get_value_type(array.dtype))
        for at in range(0, bytes_all, 64):
            line = builder.gep(place, [_I32(at)])
            builder.call(function, [line, _I32(write.literal_value), _I32(2), _I32(1)])
        return context.get_dummy_value()

    return types.void(array, index, count, write), generate
