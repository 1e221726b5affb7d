"""If, Loop, Scan and SequenceMap, and the interpreter that runs their bodies: step by step, shapes as they come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hashinfer.errors import MemoryLimitError, OpError
from hashinfer.model.graph import ValueType
from hashinfer.ops.base import normalize_axis
from hashinfer.plan.program import Program, Step, evaluate

Values = Mapping[str, Any]


def interpret(program: Program, feeds: Sequence[Any], outer: Values, limit: int) -> list[Any]:
    """Run a program on values; `outer` holds what it captures. Raises what its steps raise."""
    values: dict[str, Any] = {name: outer[name] for name in program.captures}
    values.update(program.constants)
    values.update({given.name: feed for given, feed in zip(program.inputs, feeds, strict=True)})
    for step in program.steps:
        made = run_step(step, values, limit)
        values.update({name: value for name, value in zip(step.outputs, made, strict=False) if name})
    return [values[name] for name in program.outputs]


def run_step(step: Step, values: Values, limit: int) -> list[Any]:
    """One step of any kind on the values there are."""
    ins = [values[name] if name else None for name in step.inputs]
    control = _CONTROL.get(step.op_type) if step.domain == "" else None
    if control is None:
        return evaluate(step, ins, limit)
    try:
        return control(step, ins, values, limit)
    except OpError as error:
        message = str(error)
        raise OpError(message if step.nodes[-1] in message else step.explain(error)) from None


def _body(step: Step, name: str) -> Program:
    if name not in step.subgraphs:
        raise OpError(f"it has no subgraph {name!r}")
    return step.subgraphs[name]


def _truth(value: Any) -> bool:
    if not isinstance(value, np.ndarray) or value.size != 1:
        raise OpError(f"its condition has shape {list(np.shape(value))}; expected one truth value")
    return bool(value.reshape(())[()])


def _run_if(step: Step, ins: Sequence[Any], values: Values, limit: int) -> list[Any]:
    branch = _body(step, "then_branch" if _truth(ins[0]) else "else_branch")
    return interpret(branch, [], values, limit)


def _run_loop(step: Step, ins: Sequence[Any], values: Values, limit: int) -> list[Any]:
    body = _body(step, "body")
    trips = None if ins[0] is None else int(ins[0].reshape(())[()])
    going = True if len(ins) < 2 or ins[1] is None else _truth(ins[1])
    state = list(ins[2:])
    if len(body.inputs) != 2 + len(state) or len(body.outputs) < 1 + len(state):
        raise OpError(
            f"{len(state)} loop-carried values; its body has {len(body.inputs)} inputs and {len(body.outputs)} outputs"
        )
    scans: list[list[Any]] = [[] for _ in body.outputs[1 + len(state) :]]
    trip = 0
    while going and (trips is None or trip < trips):
        made = interpret(body, [np.array(trip, np.int64), np.array(going), *state], values, limit)
        going = _truth(made[0])
        state = made[1 : 1 + len(state)]
        for column, value in zip(scans, made[1 + len(state) :], strict=True):
            column.append(value)
        trip += 1
    return [*state, *(_stacked(c, body.declared[1 + len(state) + k], 0, limit) for k, c in enumerate(scans))]


def _stacked(parts: list[Any], declared: ValueType, axis: int, limit: int) -> Any:
    """Scan outputs as one array; of no trips, an empty one of the declared type, open dimensions being 0."""
    if not parts:
        shape = [d if isinstance(d, int) else 0 for d in declared.shape or ()]
        return np.empty([*shape[:axis], 0, *shape[axis:]], declared.dtype or np.float32)
    size = sum(part.nbytes for part in parts)
    if size > limit:
        raise MemoryLimitError(f"the scan output {declared.name!r} takes {size} bytes; at most {limit} are allowed")
    return np.stack(parts, axis)


def _run_scan(step: Step, ins: Sequence[Any], values: Values, limit: int) -> list[Any]:
    body = _body(step, "body")
    count = int(step.call.get("num_scan_inputs", 0))
    states = len(ins) - count
    if not 0 < count <= len(ins) or len(body.inputs) != len(ins) or len(body.outputs) < states:
        raise OpError(f"num_scan_inputs is {count} of {len(ins)} inputs; its body has {len(body.inputs)}")
    scanned = len(body.outputs) - states
    in_axes = step.call.get("scan_input_axes", (0,) * count)
    out_axes = step.call.get("scan_output_axes", (0,) * scanned)
    backward_in = step.call.get("scan_input_directions", (0,) * count)
    backward_out = step.call.get("scan_output_directions", (0,) * scanned)
    sequences = []
    for value, axis, backward in zip(ins[states:], in_axes, backward_in, strict=True):
        moved = np.moveaxis(value, normalize_axis(axis, value.ndim), 0)
        sequences.append(moved[::-1] if backward else moved)
    lengths = {len(s) for s in sequences}
    if len(lengths) != 1:
        raise OpError(f"its scan inputs have lengths {sorted(lengths)}; expected one length")
    state: list[Any] = list(ins[:states])
    columns: list[list[Any]] = [[] for _ in range(scanned)]
    for parts in zip(*sequences, strict=True):
        made = interpret(body, [*state, *(np.asarray(part, order="C") for part in parts)], values, limit)
        state = made[:states]
        for column, value in zip(columns, made[states:], strict=True):
            column.append(value)
    results = []
    for k, (column, axis, backward) in enumerate(zip(columns, out_axes, backward_out, strict=True)):
        ordered = column[::-1] if backward else column
        declared = body.declared[states + k]
        rank = 1 + (ordered[0].ndim if ordered else len(declared.shape or ()))
        results.append(_stacked(ordered, declared, normalize_axis(axis, rank), limit))
    return [*state, *results]


def _run_sequence_map(step: Step, ins: Sequence[Any], values: Values, limit: int) -> list[Any]:
    body = _body(step, "body")
    lengths = {len(value) for value in ins if isinstance(value, list)}
    if not isinstance(ins[0], list) or len(lengths) != 1 or len(body.inputs) != len(ins):
        raise OpError(f"{len(ins)} inputs of lengths {sorted(lengths)}; its body takes one item of {len(body.inputs)}")
    columns: list[list[Any]] = [[] for _ in body.outputs]
    for k in range(lengths.pop()):
        made = interpret(body, [v[k] if isinstance(v, list) else v for v in ins], values, limit)
        for column, value in zip(columns, made, strict=True):
            column.append(value)
    return columns


_CONTROL = {"If": _run_if, "Loop": _run_loop, "Scan": _run_scan, "SequenceMap": _run_sequence_map}
