"""Explicit vectors, addresses and atomics for the kernels: the one module that writes LLVM IR.

name                   emits
load16, store16        one unaligned load/store of <16 x float>: 1 zmm, 2 ymm, 4 NEON registers
splat16                insertelement + shufflevector: a broadcast of one float
add16, mul16           fadd, fmul on <16 x float>
fma16                  llvm.fma.v16f32; llvm.fmuladd where the ISA does not promise one
product, quotient      fmul, fdiv of two floats without fast-math: each rounds, where the answer is then rounded again
swap1/2/4/8            shufflevector, fmul by +-1, fadd: the butterfly of lanes i and i xor d inside one vector
sum16                  shufflevector and fadd, four times
relu16                 fcmp olt + select: 0 where a lane is below 0, NaN kept
flip16                 AVX-512: an i16 as sixteen i1, a mask register; elsewhere a broadcast, and, icmp ne; then select,
                       xor into the sign bits
ramp16, add_word16     add and mul on <16 x i32>
xxh32_slots16          the end of XXH32 on <16 x i32> (mul, xor, lshr, shl), then mul on two <8 x i64>
flip_odd16             shl, xor into the sign bits
weights16              load of <16 x float | i8 | i16>; sitofp, or shifts and an fmul that widen float16
bytes16, byte_words16  load of <16 x i8>, xor, zext; sitofp
pair16                 fptosi twice, and, shl, or: two int16 in a word
byte_pairs16           as byte_words16 twice, sub, and, shl, or
byte_run16             load of <32 x i8>, xor, zext to i16, sub
pick16                 floats where isa.GATHERS: load, lshr, vgatherdps; else eight loads of a pair of slots, sixteen
                       of weights, and insertelements: on Zen twice as fast; then as weights16
largest16              and, icmp ugt, select on the bits without their sign: a running maximum of magnitudes
max16                  fcmp ogt, select, fcmp uno, select
[narrow_]products1/4    a loop: loads of vectors, a broadcast for each row; fma16's operation, or of words, with AVX-512
                       and AVX2, pmaddwd and an addition (one instruction with VNNI), elsewhere shifts that extend each
                       half of a word, two mul and two add on <16 x i32>
load_even16            two loads, a shufflevector that takes every other lane
transpose16            sixteen loads, four times sixteen shufflevectors of two rows, sixteen stores
nonzero16              fcmp une, bitcast of sixteen i1 to i16, ctpop
butterflies2/4/8/16    register by register: loads, log2(radix) stages of fadd and fsub, stores. AVX-512 and AVX2: for
                       three of four fsub an llvm.fma by a -1 that LLVM cannot see through, on units that an addition
                       does not use (Zen), and rounds the same
columns8               single floats by eight addresses: loads (widened as by weights16), fadd and fsub, stores
modulated_*            as butterflies, behind loads of the spectrum times u: one float broadcast, or a shuffle that
                       repeats each float `lanes` times, and the butterflies inside the vectors
signed_sum2/4/8/16     register by register: loads, then a tree of fma16's operation by +-1
load/store_lanes16     sub and icmp ult on sixteen lane numbers, llvm.masked.load or .store (AVX-512: a mask register;
                       AVX2: two vmaskmovps; elsewhere a branch for each lane)
intp_at, *_array       inttoptr: an address as a pointer, or as an array of a length
intp, uintp            nothing: a number is an index from here on
call_entry             an indirect call of an entry (args, tile, scratch)
atomic_add, atomic_load, atomic_store, relax
                       atomicrmw add, load atomic, store atomic (all seq_cst); x86 `pause`, arm64 `yield`, else nothing

Numba's bounds checking does not see the vector loads and stores. Each has a scalar twin in tests/naive.py.
"""

from collections.abc import Callable, Iterable
from functools import wraps
from itertools import cycle
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import extending, types
from numba.core import cgutils
from numba.extending import models, register_model
from numba.np.arrayobj import populate_array

from hashinfer.kernels.isa import AVX2, AVX512, FUSES, GATHERS, ISA, RADIX, REGISTER, TILE_VECTORS
from hashinfer.kernels.vectors import LANES

_F32, _I32, _I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_INDEX = ir.IntType(types.intp.bitwidth)
_VECTOR, _WORDS, _MASK = ir.VectorType(_F32, LANES), ir.VectorType(_I32, LANES), ir.VectorType(ir.IntType(1), LANES)
_REGISTER = ir.VectorType(_F32, REGISTER)
_ZEROS = ir.Constant(_VECTOR, [0.0] * LANES)
_FAST = ("reassoc", "nsz", "contract")


ARRAY = None
"""Any array: what is emitted gets the pointer to its first element."""


def emits(result: Any, *kinds: Any) -> Callable[[Callable[..., Any]], Any]:
    """Decorator that makes an intrinsic of a function (builder, one value for each of `kinds`) which writes its IR."""

    def decorate(emit: Callable[..., Any]) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            values = [
                context.make_array(kind)(context, builder, value).data if isinstance(kind, types.Array) else value
                for kind, value in zip(signature.args, args, strict=True)
            ]
            made = emit(builder, *values)
            return context.get_dummy_value() if result is types.none else made

        # Numba asks for the parameters' names, and leaves out the first.
        @wraps(emit)
        def typed(_context: Any, *given: Any) -> Any:
            return result(*(one if kind is ARRAY else kind for kind, one in zip(kinds, given, strict=True))), codegen

        return extending.intrinsic(typed)

    return decorate


class Float32x16(types.Type):  # type: ignore[misc]
    """Sixteen floats in registers."""

    def __init__(self) -> None:
        super().__init__(name="float32x16")


float32x16 = Float32x16()


@register_model(Float32x16)
class _Float32x16Model(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, fe_type: Any) -> None:
        super().__init__(manager, fe_type, _VECTOR)


def _at(builder: Any, data: Any, offset: Any, kind: Any = _VECTOR) -> Any:
    return builder.bitcast(builder.gep(data, [offset]), kind.as_pointer())


def _splat(builder: Any, scalar: Any, lanes: int = LANES) -> Any:
    kind = ir.VectorType(scalar.type, lanes)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, _I32(0))
    return _shuffled(builder, first, [0] * lanes)


def _shuffled(builder: Any, value: Any, order: Iterable[int]) -> Any:
    """The lanes of a vector that `order` names."""
    numbers = list(order)
    places = ir.Constant(ir.VectorType(_I32, len(numbers)), numbers)
    return builder.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), places)


def _words(number: int) -> Any:
    return _words_of([number] * LANES)


def _words_of(numbers: Iterable[int]) -> Any:
    return ir.Constant(_WORDS, list(numbers))


@emits(float32x16, ARRAY, types.intp)
def load16(builder: Any, array: Any, offset: Any) -> Any:
    """array[offset : offset + 16] of a float32 array."""
    return builder.load(_at(builder, array, offset), align=4)


@emits(types.none, ARRAY, types.intp, float32x16)
def store16(builder: Any, array: Any, offset: Any, value: Any) -> None:
    """array[offset : offset + 16] = value."""
    builder.store(value, _at(builder, array, offset), align=4)


@emits(float32x16, types.float32)
def splat16(builder: Any, value: Any) -> Any:
    """Sixteen copies of a float32."""
    return _splat(builder, value)


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    name = f"llvm.{'fma' if FUSES else 'fmuladd'}.v{a.type.count}f32"
    kind = ir.FunctionType(a.type, [a.type, a.type, a.type])
    return builder.call(builder.module.declare_intrinsic(name, fnty=kind), [a, b, c])


def _binary(instruction: str, kind: Any, flags: tuple[str, ...]) -> Any:
    @emits(kind, kind, kind)
    def operation(builder: Any, a: Any, b: Any) -> Any:
        return getattr(builder, instruction)(a, b, flags=flags)

    return operation


add16, mul16 = (_binary(name, float32x16, _FAST) for name in ("fadd", "fmul"))
# Numba gives all of its flags to what has none; this one lets nothing be reordered or fused.
product, quotient = (_binary(name, types.float32, ("nsz",)) for name in ("fmul", "fdiv"))
"""Of two float32, rounded as they stand."""


@emits(float32x16, float32x16, float32x16, float32x16)
def fma16(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once where the CPU can."""
    return _fma(builder, a, b, c)


@emits(types.float32, float32x16)
def sum16(builder: Any, value: Any) -> Any:
    """The sum of the lanes, in a fixed order."""
    for distance in (8, 4, 2, 1):
        turned = _shuffled(builder, value, ((lane + distance) % LANES for lane in range(LANES)))
        value = builder.fadd(value, turned)
    return builder.extract_element(value, _I32(0))


@emits(float32x16, float32x16)
def relu16(builder: Any, value: Any) -> Any:
    """0 in the lanes below 0, the others as they are."""
    return builder.select(builder.fcmp_ordered("<", value, _ZEROS), _ZEROS, value)


@emits(float32x16, float32x16, types.uint16)
def flip16(builder: Any, value: Any, negative: Any) -> Any:
    """value, negated in each lane whose bit of `negative` (uint16) is set."""
    if ISA == AVX512:
        mask = builder.bitcast(negative, _MASK)
    else:
        each = builder.and_(_splat(builder, builder.zext(negative, _I32)), _words_of(1 << k for k in range(LANES)))
        mask = builder.icmp_unsigned("!=", each, _words(0))
    bits = builder.xor(builder.bitcast(value, _WORDS), builder.select(mask, _words(1 << 31), _words(0)))
    return builder.bitcast(bits, _VECTOR)


@emits(float32x16, types.uint32, types.uint32)
def ramp16(builder: Any, first: Any, step: Any) -> Any:
    """The words first, first + step, ..., first + 15 step (uint32), as sixteen lanes of bits."""
    words = builder.add(_splat(builder, first), builder.mul(_words_of(range(LANES)), _splat(builder, step)))
    return builder.bitcast(words, _VECTOR)


@emits(float32x16, float32x16, types.uint32)
def add_word16(builder: Any, words: Any, amount: Any) -> Any:
    """Sixteen words plus a uint32."""
    return builder.bitcast(builder.add(builder.bitcast(words, _WORDS), _splat(builder, amount)), _VECTOR)


@emits(float32x16, float32x16, types.uint32)
def xxh32_slots16(builder: Any, words: Any, slots: Any) -> Any:
    """Signed slots, below `slots` (uint32), of sixteen states of XXH32 to which the last four bytes have been added."""

    def mixed(h: Any, right: int, multiplier: int) -> Any:
        return builder.mul(builder.xor(h, builder.lshr(h, _words(right))), _words(multiplier))

    h = builder.bitcast(words, _WORDS)
    h = builder.or_(builder.shl(h, _words(17)), builder.lshr(h, _words(15)))
    h = mixed(mixed(builder.mul(h, _words(0x27D4EB2F)), 15, 0x85EBCA77), 13, 0xC2B2AE3D)
    h = builder.xor(h, builder.lshr(h, _words(16)))
    # The upper halves of 32 x 32 bit products, even and odd lanes apart: what vectors can multiply.
    pairs = ir.VectorType(_I64, LANES // 2)
    half, low = ir.Constant(pairs, [32] * (LANES // 2)), ir.Constant(pairs, [0xFFFFFFFF] * (LANES // 2))
    high = ir.Constant(pairs, [0xFFFFFFFF << 32] * (LANES // 2))
    h = builder.bitcast(h, pairs)
    factor = builder.and_(builder.bitcast(_splat(builder, slots), pairs), low)
    even = builder.lshr(builder.mul(builder.and_(h, low), factor), half)
    odd = builder.and_(builder.mul(builder.lshr(h, half), factor), high)
    return builder.bitcast(builder.or_(even, odd), _VECTOR)


@emits(float32x16, float32x16, float32x16)
def flip_odd16(builder: Any, value: Any, slots: Any) -> Any:
    """value, negated in each lane whose signed slot is odd."""
    sign = builder.shl(builder.bitcast(slots, _WORDS), _words(31))
    return builder.bitcast(builder.xor(builder.bitcast(value, _WORDS), sign), _VECTOR)


def _width(kind: Any) -> int:
    """Bits of a stored weight: of float32, int8, or float16 as i16."""
    return int(getattr(kind, "width", 32))


def _widened(builder: Any, values: Any) -> Any:
    """Stored weights, one or sixteen, as floats."""
    one = not isinstance(values.type, ir.VectorType)
    bits = _width(values.type if one else values.type.element)
    floats, words = (_F32, _I32) if one else (_VECTOR, _WORDS)

    def number(value: float, kind: Any = words) -> Any:
        return ir.Constant(kind, value if one else [value] * LANES)

    if bits == 8:
        return builder.sitofp(values, floats)
    if bits == 16:
        wide = builder.zext(values, words)
        magnitude = builder.shl(builder.and_(wide, number(0x7FFF)), number(13))
        value = builder.fmul(builder.bitcast(magnitude, floats), number(2.0**112, floats))
        value = builder.bitcast(value, words)
        endless = builder.icmp_unsigned(">=", magnitude, number(0x7C00 << 13))
        value = builder.select(endless, builder.or_(magnitude, number(0x7F800000)), value)
        sign = builder.shl(builder.and_(wide, number(0x8000)), number(16))
        return builder.bitcast(builder.or_(value, sign), floats)
    return values


@emits(float32x16, ARRAY, types.intp)
def weights16(builder: Any, w: Any, offset: Any) -> Any:
    """w[offset : offset + 16] as floats, of a weight vector of any stored dtype."""
    kind = ir.VectorType(w.type.pointee, LANES)
    return _widened(builder, builder.load(_at(builder, w, offset, kind), align=_width(w.type.pointee) // 8))


def _flipped_bytes(builder: Any, data: Any, offset: Any, flip: Any, count: int = LANES) -> Any:
    """<count x i8> from an offset on, the bits of `flip` changed."""
    kind = ir.VectorType(ir.IntType(8), count)
    return builder.xor(builder.load(_at(builder, data, offset, kind), align=1), _splat(builder, flip, count))


def _bytes(as_floats: bool) -> Any:
    @emits(float32x16, ARRAY, types.intp, types.uint8)
    def operation(builder: Any, array: Any, offset: Any, flip: Any) -> Any:
        words = builder.zext(_flipped_bytes(builder, array, offset, flip), _WORDS)
        return builder.sitofp(words, _VECTOR) if as_floats else builder.bitcast(words, _VECTOR)

    return operation


bytes16, byte_words16 = _bytes(True), _bytes(False)
"""array[offset : offset + 16] of a uint8 array as floats, as words; the bits of `flip` (uint8) are changed first."""


@emits(float32x16, ARRAY, types.intp, types.intp, types.uint8, float32x16)
def byte_pairs16(builder: Any, array: Any, offset: Any, other: Any, flip: Any, less: Any) -> Any:
    """Words of two int16: byte k from `offset` on and byte k from `other` on, each less word k of `less`."""
    less = builder.bitcast(less, _WORDS)
    found = [builder.zext(_flipped_bytes(builder, array, at, flip), _WORDS) for at in (offset, other)]
    low, high = (builder.sub(words, less) for words in found)
    return builder.bitcast(_paired(builder, low, high), _VECTOR)


@emits(float32x16, ARRAY, types.intp, types.uint8, types.uint16)
def byte_run16(builder: Any, array: Any, offset: Any, flip: Any, less: Any) -> Any:
    """array[offset : offset + 32] of a uint8 array, each less `less` (uint16), as words of two int16."""
    kind = ir.VectorType(ir.IntType(16), 2 * LANES)
    found = builder.zext(_flipped_bytes(builder, array, offset, flip, 2 * LANES), kind)
    return builder.bitcast(builder.sub(found, _splat(builder, less, 2 * LANES)), _VECTOR)


def _paired(builder: Any, low: Any, high: Any) -> Any:
    return builder.or_(builder.and_(low, _words(0xFFFF)), builder.shl(high, _words(16)))


@emits(float32x16, float32x16, float32x16)
def pair16(builder: Any, low: Any, high: Any) -> Any:
    """Sixteen words of two int16 each, of whole numbers that these can hold."""
    return builder.bitcast(_paired(builder, builder.fptosi(low, _WORDS), builder.fptosi(high, _WORDS)), _VECTOR)


def _halves_product(builder: Any, a: Any, b: Any) -> Any:
    """Word by word the products of both int16 halves, added up."""
    name, lanes = {AVX512: ("llvm.x86.avx512.pmaddw.d.512", LANES), AVX2: ("llvm.x86.avx2.pmadd.wd", LANES // 2)}.get(
        ISA, ("", 0)
    )
    if not name:
        low = [builder.ashr(builder.shl(words, _words(16)), _words(16)) for words in (a, b)]
        high = [builder.ashr(words, _words(16)) for words in (a, b)]
        return builder.add(builder.mul(*low), builder.mul(*high))
    halves, words = ir.VectorType(ir.IntType(16), 2 * lanes), ir.VectorType(_I32, lanes)
    function = builder.module.declare_intrinsic(name, fnty=ir.FunctionType(words, [halves, halves]))
    parts = []
    for first in range(0, LANES, lanes):
        cut = [builder.bitcast(_shuffled(builder, v, range(first, first + lanes)), halves) for v in (a, b)]
        parts.append(builder.call(function, cut))
    return parts[0] if len(parts) == 1 else builder.shuffle_vector(*parts, _words_of(range(LANES)))


def _dot(builder: Any, a: Any, b: Any, total: Any) -> Any:
    """Word by word: total (int32) and the products of both int16 halves of a and b, added up; it wraps around."""
    total, a, b = (builder.bitcast(value, _WORDS) for value in (total, a, b))
    return builder.bitcast(builder.add(total, _halves_product(builder, a, b)), _VECTOR)


def _products(height: int, vectors: int) -> Any:
    @emits(types.none, ARRAY, *[types.intp] * 4, ARRAY, types.intp, ARRAY, types.intp, types.intp)
    def operation(
        builder: Any, a: Any, first: Any, down: Any, along: Any, n: Any, b: Any, at: Any, sums: Any, to: Any, pitch: Any
    ) -> None:
        """sums[to + r pitch + c] += sum of a[first + r down + i along] b[at + i pitch + c] over i < n.

        r < height, c < 16 vectors. Where a is of int32, a and b are words of two int16, and sums int32.
        """
        added = _dot if a.type.pointee == _I32 else _fma
        starts = _offsets(builder, to, pitch, height)
        places = [_at(builder, sums, c) for start in starts for c in _offsets(builder, start, _INDEX(LANES), vectors)]
        totals = [cgutils.alloca_once_value(builder, builder.load(place, align=4)) for place in places]
        with cgutils.for_range(builder, n) as loop:
            start = builder.add(at, builder.mul(loop.index, pitch))
            across = _offsets(builder, start, _INDEX(LANES), vectors)
            right = [builder.load(_at(builder, b, c), align=4) for c in across]
            start = builder.add(first, builder.mul(loop.index, along))
            left = [_splat(builder, builder.load(builder.gep(a, [r]))) for r in _offsets(builder, start, down, height)]
            for k, total in enumerate(totals):
                x, y = left[k // vectors], right[k % vectors]
                builder.store(added(builder, x, y, builder.load(total)), total)
        for place, total in zip(places, totals, strict=True):
            builder.store(builder.load(total), place, align=4)

    return operation


products1, products4, narrow_products4 = _products(1, 4), _products(4, TILE_VECTORS), _products(4, 1)


@emits(float32x16, ARRAY, ARRAY, types.intp)
def pick16(builder: Any, w: Any, slots: Any, offset: Any) -> Any:
    """w[slot >> 1] for the sixteen signed slots from slots[offset] on (int32), of any stored dtype, without signs."""
    if GATHERS and w.type.pointee == _F32:
        kind = ir.FunctionType(_VECTOR, [_VECTOR, w.type, _WORDS, _MASK, _I32])
        gather = builder.module.declare_intrinsic("llvm.x86.avx512.mask.gather.dps.512", fnty=kind)
        words = builder.load(_at(builder, slots, offset, _WORDS), align=4)
        index = builder.lshr(words, _words(1))
        return builder.call(gather, [_ZEROS, w, index, ir.Constant(_MASK, [1] * LANES), _I32(4)])
    found = ir.Constant(ir.VectorType(w.type.pointee, LANES), ir.Undefined)
    for lane in range(0, LANES, 2):
        place = builder.bitcast(builder.gep(slots, [builder.add(offset, _INDEX(lane))]), _I64.as_pointer())
        pair = builder.load(place, align=4)
        first = builder.and_(builder.lshr(pair, _I64(1)), _I64(0x7FFFFFFF))
        for k, index in enumerate((first, builder.lshr(pair, _I64(33)))):
            found = builder.insert_element(found, builder.load(builder.gep(w, [index])), _I32(lane + k))
    return _widened(builder, found)


@emits(float32x16, float32x16, float32x16)
def largest16(builder: Any, largest: Any, value: Any) -> Any:
    """Lane by lane the larger of `largest` and |value|; Inf is above all numbers, NaN above Inf."""
    before = builder.bitcast(largest, _WORDS)
    magnitude = builder.and_(builder.bitcast(value, _WORDS), _words(0x7FFFFFFF))
    larger = builder.select(builder.icmp_unsigned(">", magnitude, before), magnitude, before)
    return builder.bitcast(larger, _VECTOR)


@emits(float32x16, float32x16, float32x16)
def max16(builder: Any, a: Any, b: Any) -> Any:
    """Lane by lane the larger of two, NaN where one is."""
    larger = builder.select(builder.fcmp_ordered(">", b, a), b, a)
    return builder.select(builder.fcmp_unordered("uno", b, b), b, larger)


@emits(float32x16, ARRAY, types.intp)
def load_even16(builder: Any, array: Any, offset: Any) -> Any:
    """array[offset : offset + 32 : 2] of a float32 array; the element after the last is read as well."""
    halves = [builder.load(_at(builder, array, k), align=4) for k in _offsets(builder, offset, _INDEX(LANES), 2)]
    return builder.shuffle_vector(*halves, _words_of(range(0, 2 * LANES, 2)))


@emits(types.intp, float32x16)
def nonzero16(builder: Any, value: Any) -> Any:
    """How many lanes are not zero (NaN is not)."""
    mask = builder.fcmp_unordered("!=", value, _ZEROS)
    return builder.zext(builder.ctpop(builder.bitcast(mask, ir.IntType(16))), _INDEX)


@emits(types.none, ARRAY, types.intp, types.intp, ARRAY, types.intp, types.intp)
def transpose16(builder: Any, x: Any, at: Any, step: Any, y: Any, to: Any, y_step: Any) -> None:
    """y[to + i y_step + k] = x[at + k step + i] for i, k < 16, both float32 arrays."""
    rows = [builder.load(_at(builder, x, k), align=4) for k in _offsets(builder, at, step, LANES)]
    for distance in (8, 4, 2, 1):
        # Lanes of a pair of rows change places where they are on the wrong side of the diagonal.
        first = _words_of(LANES + (i ^ distance) if i & distance else i for i in range(LANES))
        second = _words_of(LANES + i if i & distance else i ^ distance for i in range(LANES))
        for i in range(LANES):
            if i & distance == 0:
                a, b = rows[i], rows[i + distance]
                rows[i] = builder.shuffle_vector(a, b, first)
                rows[i + distance] = builder.shuffle_vector(a, b, second)
    for row, k in zip(rows, _offsets(builder, to, y_step, LANES), strict=True):
        builder.store(row, _at(builder, y, k), align=4)


def _swapped(builder: Any, value: Any, distance: int) -> Any:
    sign = ir.Constant(_VECTOR, [-1.0 if i & distance else 1.0 for i in range(LANES)])
    other = _shuffled(builder, value, (i ^ distance for i in range(LANES)))
    return builder.fadd(other, builder.fmul(value, sign, flags=_FAST), flags=_FAST)


def _lane_butterfly(distance: int) -> Any:
    """Lane i becomes v[i] + v[i ^ distance] where bit `distance` of i is clear, v[i ^ distance] - v[i] where set."""

    @emits(float32x16, float32x16)
    def operation(builder: Any, value: Any) -> Any:
        return _swapped(builder, value, distance)

    return operation


swap1, swap2, swap4, swap8 = (_lane_butterfly(d) for d in (1, 2, 4, 8))


def _stages(builder: Any, values: list[Any], less: Any) -> list[Any]:
    """The Walsh-Hadamard transform over a list of floats or vectors, a power of two of them; less: a - b."""
    values, distance = list(values), 1
    while distance < len(values):
        for i in range(len(values)):
            if i & distance == 0:
                a, b = values[i], values[i + distance]
                values[i], values[i + distance] = builder.fadd(a, b), less(a, b)
        distance *= 2
    return values


def _transform(builder: Any, values: list[Any]) -> list[Any]:
    """The Walsh-Hadamard transform over a list of vectors, a power of two of them."""
    if not FUSES:
        return _stages(builder, values, builder.fsub)
    # Through an empty piece of assembly, so that LLVM does not turn the fused multiply-add into a subtraction.
    hidden = builder.call(ir.InlineAsm(ir.FunctionType(_I32, [_I32]), "", "=r,0"), [_I32(0xBF800000)])
    minus_one = _splat(builder, builder.bitcast(hidden, _F32), values[0].type.count)
    units = cycle([lambda a, b: _fma(builder, b, minus_one, a)] * 3 + [builder.fsub])

    def less(a: Any, b: Any) -> Any:
        return next(units)(a, b)

    return _stages(builder, values, less)


def _offsets(builder: Any, first: Any, step: Any, count: int) -> list[Any]:
    return [builder.add(first, builder.mul(step, _INDEX(k))) for k in range(count)]


def _butterflies(radix: int) -> Any:
    """The transform over `radix` vectors v[at], v[at + step], ... in place."""

    @emits(types.none, ARRAY, types.intp, types.intp)
    def operation(builder: Any, v: Any, at: Any, step: Any) -> None:
        for first in range(0, LANES, REGISTER):
            offsets = _offsets(builder, builder.add(at, _INDEX(first)), step, radix)
            places = [_at(builder, v, offset, _REGISTER) for offset in offsets]
            values = [builder.load(place, align=4) for place in places]
            for place, value in zip(places, _transform(builder, values), strict=True):
                builder.store(value, place, align=4)

    return operation


butterflies2, butterflies4, butterflies8, butterflies16 = (_butterflies(radix) for radix in (2, 4, 8, 16))


@emits(types.none, ARRAY, types.intp, ARRAY, types.intp, types.intp)
def columns8(builder: Any, x: Any, first: Any, v: Any, at: Any, step: Any) -> None:
    """v[at + c], v[at + c + step], ... = the transform of x[first + c], x[first + c + step], ..., eight each, c < 4.

    One by one, but by the same addresses. x: floats or stored weights, in another place than v or in the very same.
    """
    reads = [builder.gep(x, [k]) for k in _offsets(builder, first, step, 8)]
    writes = [builder.gep(v, [k]) for k in _offsets(builder, at, step, 8)]
    for column in range(4):
        values = [_widened(builder, builder.load(builder.gep(place, [_I32(column)]))) for place in reads]
        for place, value in zip(writes, _stages(builder, values, builder.fsub), strict=True):
            builder.store(value, builder.gep(place, [_I32(column)]))


def _places(builder: Any, u: Any, place: Any, lanes: int) -> Any:
    """u at the places that a vector holds: each repeated `lanes` times, or one float where they are all the same."""
    if lanes == LANES:
        return builder.load(builder.gep(u, [place]))
    found = builder.load(_at(builder, u, builder.mul(place, _INDEX(LANES // lanes))), align=4)
    return _shuffled(builder, found, (lane // lanes for lane in range(LANES)))


def _times_places(builder: Any, factor: Any, places: Any, lanes: int) -> Any:
    """A vector of the spectrum, or a part of it, times _places; the butterflies of these places done."""
    if lanes == LANES:
        return builder.fmul(factor, _splat(builder, places, factor.type.count))
    value = builder.fmul(factor, places)
    for distance in (1, 2, 4, 8):
        if distance >= lanes:
            value = _swapped(builder, value, distance)
    return value


def _modulated(lanes: int) -> Any:
    """RADIX vectors of the spectrum, side by side from `at`, times u, transformed, to v[to], v[to + step], ...

    A vector holds 16 / lanes places p of `lanes` groups each; those of the k-th vector are multiplied by
    u[(h + k h_step) 16 / lanes ...], and the butterflies of the places inside a vector are done as well. u must be
    readable for 15 floats past its end where lanes < 16.
    """

    @emits(types.none, ARRAY, types.intp, ARRAY, types.intp, types.intp, ARRAY, types.intp, types.intp)
    def operation(
        builder: Any, spectrum: Any, at: Any, u: Any, h: Any, h_step: Any, v: Any, to: Any, step: Any
    ) -> None:
        places = [_places(builder, u, k, lanes) for k in _offsets(builder, h, h_step, RADIX)]
        targets = _offsets(builder, to, step, RADIX)
        piece = REGISTER if lanes == LANES else LANES
        for first in range(0, LANES, piece):
            values = []
            for k, place in enumerate(places):
                source = builder.add(at, _INDEX(LANES * k + first))
                factor = builder.load(_at(builder, spectrum, source, ir.VectorType(_F32, piece)), align=4)
                values.append(_times_places(builder, factor, place, lanes))
            values = _transform(builder, values)
            for target, value in zip(targets, values, strict=True):
                builder.store(value, _at(builder, v, builder.add(target, _INDEX(first)), value.type), align=4)

    return operation


modulated_lanes1, modulated_lanes2, modulated_lanes4, modulated_lanes8, modulated_lanes16 = (
    _modulated(lanes) for lanes in (1, 2, 4, 8, 16)
)


def _joined(builder: Any, pieces: list[Any]) -> Any:
    """Vectors of one length, a power of two of them, as one."""
    while len(pieces) > 1:
        order = ir.Constant(ir.VectorType(_I32, 2 * pieces[0].type.count), list(range(2 * pieces[0].type.count)))
        pieces = [builder.shuffle_vector(a, b, order) for a, b in zip(pieces[::2], pieces[1::2], strict=True)]
    return pieces[0]


def _signed_sum(count: int) -> Any:
    """Sum over k < count of (-1)^popcount(k & beta) v[at + 16 k : + 16]: one output of a transform over them."""

    @emits(float32x16, ARRAY, types.intp, types.intp)
    def operation(builder: Any, v: Any, at: Any, beta: Any) -> Any:
        bits, signs = builder.trunc(beta, _I32), []
        for _ in range(count.bit_length() - 1):
            negative = builder.shl(builder.and_(bits, _I32(1)), _I32(31))
            one = builder.bitcast(builder.or_(negative, _I32(0x3F800000)), _F32)
            signs.append(_splat(builder, one, REGISTER))
            bits = builder.lshr(bits, _I32(1))
        pieces = []
        for first in range(0, LANES, REGISTER):
            places = _offsets(builder, builder.add(at, _INDEX(first)), _INDEX(LANES), count)
            values = [builder.load(_at(builder, v, place, _REGISTER), align=4) for place in places]
            for sign in signs:
                values = [_fma(builder, b, sign, a) for a, b in zip(values[::2], values[1::2], strict=True)]
            pieces += values
        return _joined(builder, pieces)

    return operation


signed_sum2, signed_sum4, signed_sum8, signed_sum16 = (_signed_sum(count) for count in (2, 4, 8, 16))


def _lanes_from(builder: Any, first: Any, count: Any) -> Any:
    """The mask of the lanes first ... first + count - 1."""
    start, length = (_splat(builder, builder.trunc(v, _I32)) for v in (first, count))
    return builder.icmp_unsigned("<", builder.sub(_words_of(range(LANES)), start), length)


@emits(types.none, ARRAY, types.intp, float32x16, types.intp, types.intp)
def store_lanes16(builder: Any, array: Any, offset: Any, value: Any, first: Any, count: Any) -> None:
    """array[offset : offset + count] = the lanes of value from `first` on. Nothing else is touched."""
    place = _at(builder, array, builder.sub(offset, first))
    kind = ir.FunctionType(ir.VoidType(), [_VECTOR, place.type, _I32, _MASK])
    function = builder.module.declare_intrinsic("llvm.masked.store.v16f32.p0", fnty=kind)
    builder.call(function, [value, place, _I32(4), _lanes_from(builder, first, count)])


@emits(float32x16, ARRAY, types.intp, types.intp, types.intp)
def load_lanes16(builder: Any, array: Any, offset: Any, first: Any, count: Any) -> Any:
    """Zeros, and array[offset + first : offset + first + count] in the lanes from `first` on; nothing else is read."""
    place = _at(builder, array, offset)
    kind = ir.FunctionType(_VECTOR, [place.type, _I32, _MASK, _VECTOR])
    function = builder.module.declare_intrinsic("llvm.masked.load.v16f32.p0", fnty=kind)
    return builder.call(function, [place, _I32(4), _lanes_from(builder, first, count), _ZEROS])


@emits(types.CPointer(types.intp), types.intp)
def intp_at(builder: Any, address: Any) -> Any:
    """An address as a pointer to intp."""
    return builder.inttoptr(address, _INDEX.as_pointer())


def _array(element: Any) -> Any:
    """The array [length] that begins at an address."""
    kind = types.Array(element, 1, "C")

    @extending.intrinsic  # type: ignore[untyped-decorator]
    def operation(_context: Any, address: Any, length: Any) -> Any:
        def codegen(context: Any, builder: Any, _sig: Any, args: Any) -> Any:
            array = context.make_array(kind)(context, builder)
            item = context.get_abi_sizeof(context.get_data_type(element))
            populate_array(
                array,
                data=builder.inttoptr(args[0], array.data.type),
                shape=[args[1]],
                strides=[_INDEX(item)],
                itemsize=_INDEX(item),
                meminfo=None,
            )
            return array._getvalue()

        return kind(types.intp, types.intp), codegen

    return operation


float32_array, uint16_array, int8_array = _array(types.float32), _array(types.uint16), _array(types.int8)
uint32_array = _array(types.uint32)
int32_array, int64_array, intp_array = _array(types.int32), _array(types.int64), _array(types.intp)
uint8_array, float64_array = _array(types.uint8), _array(types.float64)


def _index(kind: Any) -> Any:
    @emits(kind, kind)
    def operation(builder: Any, value: Any) -> Any:
        return value

    return operation


intp, uintp = _index(types.intp), _index(types.uintp)
"""A whole number as an index: of 64 bits, and of 32 where the target has 32-bit addresses. NumPy's names are the
host's."""


@emits(types.none, types.intp, types.CPointer(types.intp), types.intp, types.intp)
def call_entry(builder: Any, function: Any, arguments: Any, tile: Any, scratch: Any) -> None:
    """Call the entry at address `function` with a pointer to its arguments, a tile and a scratch address."""
    kind = ir.FunctionType(ir.VoidType(), [_INDEX.as_pointer(), _INDEX, _INDEX])
    builder.call(builder.inttoptr(function, kind.as_pointer()), [arguments, tile, scratch])


@emits(types.intp, types.CPointer(types.intp), types.intp, types.intp)
def atomic_add(builder: Any, pointer: Any, index: Any, amount: Any) -> Any:
    """Add to pointer[index] and return what was there."""
    return builder.atomic_rmw("add", builder.gep(pointer, [index]), amount, "seq_cst")


@emits(types.intp, types.CPointer(types.intp), types.intp)
def atomic_load(builder: Any, pointer: Any, index: Any) -> Any:
    """pointer[index], ordered after every earlier store."""
    return builder.load_atomic(builder.gep(pointer, [index]), "seq_cst", 8)


@emits(types.none, types.CPointer(types.intp), types.intp, types.intp)
def atomic_store(builder: Any, pointer: Any, index: Any, value: Any) -> None:
    """pointer[index] = value, ordered before every later load."""
    builder.store_atomic(value, builder.gep(pointer, [index]), "seq_cst", 8)


@emits(types.none)
def relax(builder: Any) -> None:
    """Tell the core that this is a spin loop."""
    triple, void = llvm.get_process_triple(), ir.VoidType()
    if triple.startswith(("x86_64", "i386", "i686", "amd64")):
        pause = builder.module.declare_intrinsic("llvm.x86.sse2.pause", fnty=ir.FunctionType(void, []))
        builder.call(pause, [])
    elif triple.startswith(("aarch64", "arm64")):
        hint = builder.module.declare_intrinsic("llvm.aarch64.hint", fnty=ir.FunctionType(void, [_I32]))
        builder.call(hint, [_I32(1)])
