"""A memory budget: which weight matrices are held as they are, so that runs take less time.

RAM is a cache of the weight vector: a matrix that is materialised need not be hashed. What is worth it is judged by the
planner's own estimates for a run of one row (every open dimension is 1); a plan for another batch uses a materialised
matrix wherever it should be faster there.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hashinfer.errors import InputError
from hashinfer.ops.base import Operand
from hashinfer.ops.hashed import HashedConv, HashedProduct
from hashinfer.ops.matrix import HashedMatrix
from hashinfer.plan.limits import physical_memory
from hashinfer.plan.planner import Plan
from hashinfer.plan.rows import value_types

_UNITS = {"": 1, "b": 1} | {
    f"{letter}{end}": base**power
    for power, letter in enumerate("kmgt", 1)
    for end, base in (("b", 1000), ("ib", 1024), ("", 1024))
}


@dataclass(frozen=True, slots=True)
class Offer:
    """A matrix that could be materialised. bytes: it would take; saved_ns: of one run, by the planner's estimate."""

    matrix: HashedMatrix
    bytes: int
    saved_ns: float


def budget_bytes(given: int | float | str | None) -> int:
    """A number of bytes; a share of the memory that is free, as a float from 0 to 1 or "10%"; or a text as "8MiB".

    Raises InputError for anything else.
    """
    if given is None:
        return 0
    value = given
    if isinstance(given, str) and (found := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*|%)\s*", given)):
        if found[2].lower() in _UNITS:
            return int(float(found[1]) * _UNITS[found[2].lower()])
        value = float(found[1]) / 100 if found[2] == "%" else given
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, float) and 0 <= value <= 1:
        return int(value * free_memory())
    raise InputError(
        f"memory_budget is {given!r}; expected bytes, a share of the free memory (0.1, '10%') or a size ('8MiB')"
    )


def free_memory() -> int:
    """Bytes that can be taken without swapping, as far as the system says; else what the machine has."""
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable:"))
        return min(1024 * int(line.split()[1]), physical_memory())
    return physical_memory()


def offers(plan: Plan) -> list[Offer]:
    """What materialising each matrix would save, the most time for a byte first; without those that save nothing."""
    operands = {name: Operand(kind) for name, kind in value_types(plan).items()}
    saved: dict[int, float] = {}
    found: dict[int, HashedMatrix] = {}
    for planned in plan.steps:
        op = planned.op
        if planned.emission is None or not isinstance(op, HashedProduct | HashedConv) or op.matrix.materialise:
            continue
        op.matrix.materialise = True
        try:
            beside = op.emit(planned.step.call, planned.step.given(operands), planned.types)
        finally:
            op.matrix.materialise = False
        key = id(op.matrix)
        found[key] = op.matrix
        saved[key] = saved.get(key, 0.0) + planned.emission.work - beside.work
    out = [Offer(m, 4 * m.scheme.virtual_size, saved[key]) for key, m in found.items() if saved[key] > 0]
    return sorted(out, key=lambda offer: offer.saved_ns / offer.bytes, reverse=True)


def chosen(offered: Sequence[Offer], budget: int) -> list[Offer]:
    """Those to take, in their order, while they fit: never more bytes than the budget."""
    out, left = [], budget
    for offer in offered:
        if offer.bytes <= left:
            out.append(offer)
            left -= offer.bytes
    return out
