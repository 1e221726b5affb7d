"""The xxh32 scheme for single rows where memory is dear and there are no vectors: ISAs `small` and `integer`.

The inputs that count are listed with what of their hash is the same for all outputs; each run of `block` outputs then
goes through the list. A sum of n products: within (n + 2) eps sum |x| |w|.
"""

from typing import Any

import numpy as np

from hashinfer.kernels.arguments import INPUTS, OUTPUTS, PRODUCT, epilogue_of, finish_by, row_at, row_start
from hashinfer.kernels.elementwise import clear
from hashinfer.kernels.hashing import column_word, first_bucket, signed_slot, weight, xxh32_mixed, xxh32_prefix
from hashinfer.kernels.jit import device, entry, inlined
from hashinfer.kernels.vectors import float32_array, int8_array, uint16_array, uint32_array

FIELDS = (*PRODUCT, "w", "buckets", "seed", "block", "skip_zeros")
W, BUCKETS, SEED, BLOCK, SKIP_ZEROS = range(len(PRODUCT), len(FIELDS))
"""skip_zeros: 1 where every weight is finite."""


def small_scratch_bytes(inputs: int, outputs: int, block: int) -> int:
    """Scratch of xxh32_small: the inputs that count, their part of the hash, the sums of one run."""
    return 4 * (2 * inputs + min(block, outputs))


@inlined
def _signed(bits: Any, slot: Any) -> Any:
    """The float32 of these bits, negated where the slot is odd."""
    return np.uint32(bits ^ np.uint32(slot << np.uint32(31))).view(np.float32)


@device
def _small(args: Any, tile: Any, scratch: Any, w: Any) -> None:
    inputs, outputs, block, seed = args[INPUTS], args[OUTPUTS], args[BLOCK], np.uint32(args[SEED])
    x, scale = row_at(args, tile)
    values, prefixes = uint32_array(scratch, inputs), uint32_array(scratch + 4 * inputs, inputs)
    sums, count = float32_array(scratch + 8 * inputs, min(block, outputs)), 0
    for i in range(inputs):
        if args[SKIP_ZEROS] == 0 or x[i] != np.float32(0.0):
            values[count], prefixes[count] = np.float32(x[i] * scale).view(np.uint32), xxh32_prefix(i, seed)
            count += 1
    slots, start, epilogue = np.uint32(2 * (args[BUCKETS] - block + 1)), row_start(args, tile), epilogue_of(args)
    if block == 1:
        for j in range(outputs):
            word, total = column_word(j), np.float32(0.0)
            for n in range(count):
                slot = signed_slot(xxh32_mixed(np.uint32(prefixes[n] + word)), slots)
                total += _signed(values[n], slot) * weight(w, first_bucket(slot))
            finish_by(args, epilogue, start, tile, j, total)
        return
    for j0 in range(0, outputs, block):
        length, word = min(block, outputs - j0), column_word(j0 // block)
        clear(sums)
        for n in range(count):
            slot = signed_slot(xxh32_mixed(np.uint32(prefixes[n] + word)), slots)
            base, value = first_bucket(slot), _signed(values[n], slot)
            for t in range(length):
                sums[t] += value * weight(w, base + t)
        for t in range(length):
            finish_by(args, epilogue, start, tile, j0 + t, sums[t])


@entry(*FIELDS)
def xxh32_small_f32(args: Any, tile: Any, scratch: Any) -> None:
    """Row `tile`, all outputs."""
    _small(args, tile, scratch, float32_array(args[W], args[BUCKETS]))


@entry(*FIELDS)
def xxh32_small_f16(args: Any, tile: Any, scratch: Any) -> None:
    _small(args, tile, scratch, uint16_array(args[W], args[BUCKETS]))


@entry(*FIELDS)
def xxh32_small_i8(args: Any, tile: Any, scratch: Any) -> None:
    _small(args, tile, scratch, int8_array(args[W], args[BUCKETS]))
