"""Explicit vectors, addresses and atomics for the kernels: the one module that writes LLVM IR.

=====================  =======================================================================================
name                   emits
=====================  =======================================================================================
load16, store16        one unaligned load/store of <16 x float>: 1 zmm, 2 ymm, 4 NEON registers
splat16                insertelement + shufflevector: a broadcast of one float
add16, sub16, mul16    fadd, fsub, fmul on <16 x float>
fma16                  llvm.fma.v16f32
swap1/2/4/8            shufflevector, fmul by +-1, fadd: the butterfly of lanes i and i xor d inside one vector
relu16                 fcmp olt + select: 0 where a lane is below 0, NaN kept
flip16                 fmix32 of sixteen keys (mul, xor, lshr on <16 x i32>), its top bit xored into the sign bits
*_at                   inttoptr: an address as a pointer (`carray` makes it an array)
float_bits             bitcast of an int64 argument to float64
call_entry             an indirect call of an entry (args, tile, scratch)
atomic_add, atomic_load, atomic_store, relax
                       atomicrmw add, load atomic, store atomic (all seq_cst); x86 `pause`, arm64 `yield`, else nothing
=====================  =======================================================================================

Numba's bounds checking does not see the vector loads and stores. Each has a scalar twin in tests/naive.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, register_model

LANES = 16

_F32, _F64, _I32, _I64 = ir.FloatType(), ir.DoubleType(), ir.IntType(32), ir.IntType(64)
_VECTOR = ir.VectorType(_F32, LANES)
_FAST = ("reassoc", "nsz", "contract")


class Float32x16(types.Type):  # type: ignore[misc]
    """Sixteen floats in registers."""

    def __init__(self) -> None:
        super().__init__(name="float32x16")


float32x16 = Float32x16()


@register_model(Float32x16)
class _Float32x16Model(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, fe_type: Any) -> None:
        super().__init__(manager, fe_type, _VECTOR)


def _vector_pointer(context: Any, builder: Any, array_type: Any, array: Any, offset: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [offset]), _VECTOR.as_pointer())


def _splat(builder: Any, scalar: Any) -> Any:
    undefined = ir.Constant(_VECTOR, ir.Undefined)
    first = builder.insert_element(undefined, scalar, _I32(0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES))


@intrinsic  # type: ignore[untyped-decorator]
def load16(_context: Any, array: Any, offset: Any) -> Any:
    """array[offset : offset + 16] of a float32 array."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(_vector_pointer(context, builder, sig.args[0], *args), align=4)

    return float32x16(array, types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def store16(_context: Any, array: Any, offset: Any, value: Any) -> Any:
    """array[offset : offset + 16] = value."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(args[2], _vector_pointer(context, builder, sig.args[0], args[0], args[1]), align=4)
        return context.get_dummy_value()

    return types.none(array, types.int64, float32x16), codegen


@intrinsic  # type: ignore[untyped-decorator]
def splat16(_context: Any, value: Any) -> Any:
    """Sixteen copies of a float32."""

    def codegen(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return _splat(builder, args[0])

    return float32x16(types.float32), codegen


def _binary(instruction: str) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def operation(_context: Any, a: Any, b: Any) -> Any:
        def codegen(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
            return getattr(builder, instruction)(*args, flags=_FAST)

        return float32x16(float32x16, float32x16), codegen

    return operation


add16, sub16, mul16 = _binary("fadd"), _binary("fsub"), _binary("fmul")


@intrinsic  # type: ignore[untyped-decorator]
def fma16(_context: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once."""

    def codegen(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        function = builder.module.declare_intrinsic(
            "llvm.fma.v16f32", fnty=ir.FunctionType(_VECTOR, [_VECTOR, _VECTOR, _VECTOR])
        )
        return builder.call(function, args)

    return float32x16(float32x16, float32x16, float32x16), codegen


@intrinsic  # type: ignore[untyped-decorator]
def relu16(_context: Any, value: Any) -> Any:
    """0 in the lanes below 0, the others as they are."""

    def codegen(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        zero = ir.Constant(_VECTOR, [0.0] * LANES)
        return builder.select(builder.fcmp_ordered("<", args[0], zero), zero, args[0])

    return float32x16(float32x16), codegen


@intrinsic  # type: ignore[untyped-decorator]
def flip16(_context: Any, value: Any, key: Any, step: Any) -> Any:
    """value, negated in each lane where the top bit of fmix32(key + lane * step) is set. key, step: uint32."""

    def codegen(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        words = ir.VectorType(_I32, LANES)

        def every(number: int) -> Any:
            return ir.Constant(words, [number] * LANES)

        def spread(scalar: Any) -> Any:
            undefined = ir.Constant(words, ir.Undefined)
            first = builder.insert_element(undefined, scalar, _I32(0))
            return builder.shuffle_vector(first, undefined, ir.Constant(words, [0] * LANES))

        lane = ir.Constant(words, list(range(LANES)))
        h = builder.add(spread(args[1]), builder.mul(lane, spread(args[2])))
        h = builder.mul(builder.xor(h, builder.lshr(h, every(16))), every(0x85EBCA6B))
        h = builder.mul(builder.xor(h, builder.lshr(h, every(13))), every(0xC2B2AE35))
        h = builder.xor(h, builder.lshr(h, every(16)))
        bits = builder.xor(builder.bitcast(args[0], words), builder.and_(h, every(0x80000000)))
        return builder.bitcast(bits, _VECTOR)

    return float32x16(float32x16, types.uint32, types.uint32), codegen


def _lane_butterfly(distance: int) -> Any:
    """Lane i becomes v[i] + v[i ^ distance] where bit `distance` of i is clear, v[i ^ distance] - v[i] where set."""

    @intrinsic  # type: ignore[untyped-decorator]
    def operation(_context: Any, value: Any) -> Any:
        def codegen(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
            order = ir.Constant(ir.VectorType(_I32, LANES), [i ^ distance for i in range(LANES)])
            sign = ir.Constant(_VECTOR, [-1.0 if i & distance else 1.0 for i in range(LANES)])
            swapped = builder.shuffle_vector(args[0], ir.Constant(_VECTOR, ir.Undefined), order)
            return builder.fadd(swapped, builder.fmul(args[0], sign, flags=_FAST), flags=_FAST)

        return float32x16(float32x16), codegen

    return operation


swap1, swap2, swap4, swap8 = (_lane_butterfly(d) for d in (1, 2, 4, 8))


def _pointer(element: Any, llvm_type: Any) -> Callable[..., Any]:
    @intrinsic  # type: ignore[untyped-decorator]
    def operation(_context: Any, address: Any) -> Any:
        def codegen(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], llvm_type.as_pointer())

        return types.CPointer(element)(types.int64), codegen

    return operation  # type: ignore[no-any-return]


float32_at = _pointer(types.float32, _F32)
uint16_at = _pointer(types.uint16, ir.IntType(16))
int8_at = _pointer(types.int8, ir.IntType(8))
int32_at = _pointer(types.int32, _I32)
int64_at = _pointer(types.int64, _I64)


@intrinsic  # type: ignore[untyped-decorator]
def float_bits(_context: Any, bits: Any) -> Any:
    """The float64 whose bits an int64 holds."""

    def codegen(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return builder.bitcast(args[0], _F64)

    return types.float64(types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def call_entry(_context: Any, function: Any, arguments: Any, tile: Any, scratch: Any) -> Any:
    """Call the entry at address `function` with a pointer to its int64 arguments, a tile and a scratch address."""

    def codegen(context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [_I64.as_pointer(), _I64, _I64])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), list(args[1:]))
        return context.get_dummy_value()

    return types.none(types.int64, types.CPointer(types.int64), types.int64, types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def atomic_add(_context: Any, pointer: Any, index: Any, amount: Any) -> Any:
    """Add to pointer[index] and return what was there."""

    def codegen(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", builder.gep(args[0], [args[1]]), args[2], "seq_cst")

    return types.int64(types.CPointer(types.int64), types.int64, types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def atomic_load(_context: Any, pointer: Any, index: Any) -> Any:
    """pointer[index], ordered after every earlier store."""

    def codegen(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return builder.load_atomic(builder.gep(args[0], [args[1]]), "seq_cst", 8)

    return types.int64(types.CPointer(types.int64), types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def atomic_store(_context: Any, pointer: Any, index: Any, value: Any) -> Any:
    """pointer[index] = value, ordered before every later load."""

    def codegen(context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        builder.store_atomic(args[2], builder.gep(args[0], [args[1]]), "seq_cst", 8)
        return context.get_dummy_value()

    return types.none(types.CPointer(types.int64), types.int64, types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def relax(_context: Any) -> Any:
    """Tell the core that this is a spin loop."""

    def codegen(context: Any, builder: Any, _sig: Any, _args: Any) -> Any:
        triple, void = llvm.get_process_triple(), ir.VoidType()
        if triple.startswith(("x86_64", "i386", "i686", "amd64")):
            pause = builder.module.declare_intrinsic("llvm.x86.sse2.pause", fnty=ir.FunctionType(void, []))
            builder.call(pause, [])
        elif triple.startswith(("aarch64", "arm64")):
            hint = builder.module.declare_intrinsic("llvm.aarch64.hint", fnty=ir.FunctionType(void, [_I32]))
            builder.call(hint, [_I32(1)])
        return context.get_dummy_value()

    return types.none(), codegen
