"""Whether a plan for one row serves any batch: row by row, because no step lets one row touch another.

A value is *carried* where its first axis grows with the batch, so that its bytes for N rows are those of the rows one
behind the other; every other value must be the same for any batch. Each native op is known to map rows of carried
operands to rows of its output under the conditions below, which hold for two other batches as well.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from hashinfer.errors import HashinferError, InputError, UnsupportedError
from hashinfer.ops.activation import Activation
from hashinfer.ops.base import Array, Operand, TensorType
from hashinfer.ops.cast import Conversion, Quantization
from hashinfer.ops.elementwise import Arithmetic
from hashinfer.ops.hashed import HashedConv, HashedExpand, HashedLookup, HashedProduct
from hashinfer.ops.normalize import AxisNormalization, InstanceNormalization, SoftmaxOp
from hashinfer.ops.pool import Pool
from hashinfer.ops.product import Conv, Gemm, MatMul
from hashinfer.ops.quantised import IntegerConvolution, MatMulInteger, QLinearMatMul
from hashinfer.ops.reduce import Reduction, TopK
from hashinfer.ops.resize import Resize
from hashinfer.plan.planner import Plan, PlannedStep, make_plan

OTHER_BATCHES = (2, 3)

ELEMENTS = (Conversion, Activation, Quantization)
IMAGES = (HashedConv, Conv, IntegerConvolution, Pool, InstanceNormalization)
BY_FIRST = (*ELEMENTS, *IMAGES, HashedLookup, HashedProduct, MatMulInteger, QLinearMatMul, Reduction, TopK)
"""Row r of the output is of row r of the first operand, where its first axis grows with the batch."""


def value_types(plan: Plan) -> dict[str, TensorType]:
    """The type of every value that a static plan knows."""
    types = {v.name: t for v, t in zip(plan.program.inputs, plan.inputs, strict=True)}
    types.update({n: TensorType(c.dtype, c.shape) for n, c in plan.constants.items()})
    for planned in plan.steps:
        types.update(planned.step.named(planned.types))
    return types


def check_rows(plan: Plan, open_inputs: Sequence[str], limit: int) -> frozenset[str]:
    """Names of the carried values. Raises UnsupportedError, naming the node, where a batch is more than its rows."""
    others = [_plan_for(plan, open_inputs, batch, limit) for batch in OTHER_BATCHES]
    types = [value_types(p) for p in (plan, *others)]
    carried = set(open_inputs)
    for planned, *same in zip(plan.steps, *(p.steps for p in others), strict=True):
        if any(other.kind != planned.kind for other in same):
            raise UnsupportedError(planned.step.explain("another batch is planned in another way; give fixed shapes"))
        grows = any(name in carried for name in planned.step.inputs)
        if planned.kind == "folded":
            _check_folded(planned, plan, others)
            continue
        if grows and planned.kind == "native" and not _by_rows(planned, carried, types[0], plan.constants):
            raise UnsupportedError(_mixes(planned))
        for name in filter(None, planned.step.outputs):
            _check_growth(planned, [t[name] for t in types], grows)
            if grows:
                carried.add(name)
    for name in plan.program.outputs:
        if name not in carried:
            raise UnsupportedError(f"output {name!r} does not grow with the batch; give fixed shapes")
    return frozenset(carried)


def _plan_for(plan: Plan, open_inputs: Sequence[str], batch: int, limit: int) -> Plan:
    shapes = [
        TensorType(t.dtype, (batch, *t.shape[1:])) if v.name in open_inputs else t
        for v, t in zip(plan.program.inputs, plan.inputs, strict=True)
    ]
    try:
        return make_plan(plan.program, shapes, plan.threads, limit)
    except HashinferError as error:
        raise InputError(f"a batch of {batch} cannot be planned ({error}); give fixed shapes") from None


def _check_folded(planned: PlannedStep, plan: Plan, others: Sequence[Plan]) -> None:
    """A value known while planning may follow the batch only where it shapes what follows (a Reshape's target)."""
    for name in planned.step.outputs:
        native = any(name in p.step.inputs for p in plan.steps if p.kind == "native") or name in plan.program.outputs
        if native and not all(np.array_equal(plan.constants[name], p.constants[name]) for p in others):
            raise UnsupportedError(_mixes(planned))


def _check_growth(planned: PlannedStep, types: Sequence[TensorType], grows: bool) -> None:
    one = types[0].shape
    for batch, kind in zip(OTHER_BATCHES, types[1:], strict=True):
        expected = (batch * one[0], *one[1:]) if grows and one else one
        if kind.shape != expected or (grows and not one):
            raise UnsupportedError(_mixes(planned))


def _mixes(planned: PlannedStep) -> str:
    return planned.step.explain("rows of a batch may depend on each other here; give fixed shapes")


def _by_rows(
    planned: PlannedStep, carried: set[str], types: Mapping[str, TensorType], known: Mapping[str, Array]
) -> bool:
    """Whether row r of the output depends on row r of each carried operand and on what all rows share, alone."""
    names, rank = [n for n in planned.step.inputs if n], len(planned.types[0].shape)
    first, rest = names[0] in carried, names[1:]
    alone = first and not any(n in carried for n in rest)
    if isinstance(planned.op, Resize):
        ins = [Operand(types[n], known.get(n)) if n else None for n in planned.step.inputs]
        return first and all(axis.at for axis in planned.op.changed(planned.step.call, ins))
    if isinstance(planned.op, BY_FIRST):
        return alone
    if isinstance(planned.op, SoftmaxOp | AxisNormalization):
        return alone and int(planned.step.call.get("axis", -1)) % rank != 0
    if isinstance(planned.op, Gemm):
        return first and all(n not in carried or (k == 1 and len(types[n].shape) == rank) for k, n in enumerate(rest))
    if isinstance(planned.op, Arithmetic):
        return all(_along(types[n], n in carried, rank) for n in names)
    if isinstance(planned.op, MatMul):
        a, b = names[:2]
        if len(names) > 2 and names[2] in carried:
            return False
        if b not in carried:
            return first and len(types[b].shape) <= max(2, rank) and _along(types[a], True, rank)
        return rank > 2 and _along(types[b], True, rank) and _along(types[a], first, rank)
    return isinstance(planned.op, HashedExpand)


def _along(kind: TensorType, carried: bool, rank: int) -> bool:
    """Whether an operand's first axis is the output's; one that all rows share must not reach along it."""
    if carried:
        return len(kind.shape) == rank
    return len(kind.shape) < rank or kind.shape[0] == 1
