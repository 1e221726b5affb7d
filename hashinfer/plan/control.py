"""If, Loop, Scan and SequenceMap, and the interpreter that runs their bodies: step by step, shapes as they come."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from onnx import helper

from hashinfer.errors import MemoryLimitError, OpError
from hashinfer.model.graph import ValueType
from hashinfer.ops.base import normalize_axis
from hashinfer.plan.limits import Limits, value_bytes
from hashinfer.plan.program import Program, Step, evaluate

Values = Mapping[str, Any]


def interpret(program: Program, feeds: Sequence[Any], outer: Values, limits: Limits) -> list[Any]:
    """Run a program on values; `outer` holds what it captures. Raises what its steps raise.

    Values go as soon as nothing uses them any more; those alive together are held within `limits`.
    """
    values: dict[str, Any] = {name: outer[name] for name in program.captures}
    values.update(program.constants)
    values.update({given.name: feed for given, feed in zip(program.inputs, feeds, strict=True)})
    held = 0
    for step, dying in zip(program.steps, program.dying, strict=True):
        held += keep(step, run_step(step, values, limits.without(held)), dying, values)
    return [values[name] for name in program.outputs]


def keep(step: Step, made: Sequence[Any], dying: Iterable[str], values: dict[str, Any]) -> int:
    """Put what `step` made among `values` and drop those named `dying`; returns by how many bytes they grew."""
    held = 0
    for name, value in step.named(made):
        values[name] = value
        held += value_bytes(value)
    for name in dying:
        held -= value_bytes(values.pop(name, None))
    return held


def run_step(step: Step, values: Values, limits: Limits) -> list[Any]:
    """One step of any kind on the values there are. Raises TimeLimitError instead where the time is over."""
    limits.check_time(step.label, step.nodes[-1])
    ins = step.given(values)
    control = _CONTROL.get((step.domain, step.op_type))
    if control is None:
        return evaluate(step, ins, limits)
    with step.named_errors():
        made = control(step, ins, values, limits)
        step.check_count(len(made))
        return made


def _body(step: Step, name: str) -> Program:
    if name not in step.subgraphs:
        raise OpError(f"it has no subgraph {name!r}")
    return step.subgraphs[name]


def _truth(value: Any) -> bool:
    if not isinstance(value, np.ndarray) or value.size != 1:
        raise OpError(f"its condition has shape {list(np.shape(value))}; expected one truth value")
    return bool(value.reshape(())[()])


def _run_if(step: Step, ins: Sequence[Any], values: Values, limits: Limits) -> list[Any]:
    branch = _body(step, "then_branch" if _truth(ins[0]) else "else_branch")
    return interpret(branch, [], values, limits)


def _run_loop(step: Step, ins: Sequence[Any], values: Values, limits: Limits) -> list[Any]:
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
        limits.check_time(step.label, step.nodes[-1])
        made = interpret(
            body, [np.array(trip, np.int64), np.array(going), *state], values, limits.without(_bytes_of(state))
        )
        going = _truth(made[0])
        state = made[1 : 1 + len(state)]
        limits = _kept(made[1 + len(state) :], scans, limits)
        trip += 1
    limits = limits.without(_bytes_of(state))
    return [*state, *_all_stacked(scans, body.declared[1 + len(state) :], [0] * len(scans), limits)]


def _bytes_of(values: Sequence[Any]) -> int:
    return sum(map(value_bytes, values))


def _kept(made: Sequence[Any], columns: Sequence[list[Any]], limits: Limits) -> Limits:
    """What is left once each column has one more value. Raises MemoryLimitError where that is nothing."""
    for column, value in zip(columns, made, strict=True):
        column.append(value)
    limits = limits.without(_bytes_of(made))
    if limits.bytes < 0:
        count = len(columns[0])
        raise MemoryLimitError(f"its outputs of {count} trips take {-limits.bytes} bytes more than what is left")
    return limits


def _all_stacked(
    columns: Sequence[list[Any]], declared: Sequence[ValueType], axes: Sequence[int], limits: Limits
) -> list[Any]:
    """Each column as one array; the parts go as soon as they are in it.

    Of no trips, an empty one of the declared type, open dimensions being 0.
    """
    made = []
    for column, value, axis in zip(columns, declared, axes, strict=False):
        if column:
            size = sum(part.nbytes for part in column)
            if size > limits.bytes:
                raise MemoryLimitError(f"the scan output {value.name!r} takes {size} bytes; {limits.bytes} are left")
            made.append(np.stack(column, axis))
            column.clear()
        else:
            shape = [d if isinstance(d, int) else 0 for d in value.shape or ()]
            made.append(np.empty([*shape[:axis], 0, *shape[axis:]], value.dtype or np.float32))
    return made


def _run_scan(step: Step, ins: Sequence[Any], values: Values, limits: Limits) -> list[Any]:
    return (_scan_of_batches if step.call.opset < 9 else _scan)(step, ins, values, limits)


def _scan_of_batches(step: Step, ins: Sequence[Any], values: Values, limits: Limits) -> list[Any]:
    """Scan as opset 8 has it: a batch axis in front, a length for each entry of it, sequences along axis 1."""
    lengths, *batched = ins
    if not batched or not all(isinstance(x, np.ndarray) and x.ndim for x in batched):
        raise OpError("its inputs are no tensors with a batch axis")
    entries = {len(x) for x in batched}
    if len(entries) != 1 or 0 in entries or (lengths is not None and lengths.shape != (len(batched[0]),)):
        raise OpError(
            f"its inputs have batches of {sorted(entries)}; expected one size above 0, with a length for each"
        )
    count = int(step.call.get("num_scan_inputs", 0))
    if "directions" in step.call.attrs:
        attrs = dict(step.call.attrs)
        attrs["scan_input_directions"] = attrs.pop("directions")
        step = replace(step, call=replace(step.call, attrs=attrs))
    rows: list[list[Any]] = []
    for k in range(len(batched[0])):
        entry = [x[k] for x in batched]
        if lengths is not None:
            entry[-count:] = [x[: max(int(lengths[k]), 0)] for x in entry[-count:]]
        made = _scan(step, entry, values, limits)
        limits = limits.without(_bytes_of(made))
        rows.append(made)
    longest = [max(len(row[k]) if row[k].ndim else 0 for row in rows) for k in range(len(rows[0]))]
    states = len(batched) - count
    for row in rows:
        for k in range(states, len(row)):
            missing = longest[k] - len(row[k])
            row[k] = np.pad(row[k], [(0, missing), *[(0, 0)] * (row[k].ndim - 1)])
    return [np.stack([row[k] for row in rows]) for k in range(len(rows[0]))]


def _scan(step: Step, ins: Sequence[Any], values: Values, limits: Limits) -> list[Any]:
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
        limits.check_time(step.label, step.nodes[-1])
        feeds = [*state, *(np.asarray(part, order="C") for part in parts)]
        made = interpret(body, feeds, values, limits.without(_bytes_of(feeds)))
        state = made[:states]
        limits = _kept(made[states:], columns, limits)
    axes = []
    for column, declared, axis, backward in zip(columns, body.declared[states:], out_axes, backward_out, strict=True):
        if backward:
            column.reverse()
        axes.append(normalize_axis(axis, 1 + (column[0].ndim if column else len(declared.shape or ()))))
    return [*state, *_all_stacked(columns, body.declared[states:], axes, limits.without(_bytes_of(state)))]


def _run_sequence_map(step: Step, ins: Sequence[Any], values: Values, limits: Limits) -> list[Any]:
    body = _body(step, "body")
    lengths = {len(value) for value in ins if isinstance(value, list)}
    if not isinstance(ins[0], list) or len(lengths) != 1 or len(body.inputs) != len(ins):
        raise OpError(f"{len(ins)} inputs of lengths {sorted(lengths)}; its body takes one item of {len(body.inputs)}")
    columns: list[list[Any]] = [[] for _ in body.outputs]
    for k in range(lengths.pop()):
        made = interpret(body, [v[k] if isinstance(v, list) else v for v in ins], values, limits)
        limits = _kept(made, columns, limits)
    return columns


def _run_optional(_step: Step, ins: Sequence[Any], _values: Values, _limits: Limits) -> list[Any]:
    """An optional is its value, or None."""
    return [ins[0] if ins else None]


def _run_flex_attention(step: Step, ins: Sequence[Any], values: Values, limits: Limits) -> list[Any]:
    """softmax(Q K' scale) V over heads, with a graph for the scores and one for the probabilities in between.

    Q [B, Hq, L, E], K [B, Hkv, S, E], V [B, Hkv, S, Ev], Hq a multiple of Hkv, as the schema of
    ai.onnx.preview::FlexAttention has it.
    """
    q, k, v = ins
    if not all(isinstance(x, np.ndarray) and x.ndim == 4 for x in ins) or q.shape[3] == 0:
        raise OpError(f"Q, K and V have shapes {[list(np.shape(x)) for x in ins]}; expected rank 4, vectors not empty")
    if k.shape[:3] != v.shape[:3] or k.shape[3] != q.shape[3] or k.shape[0] != q.shape[0]:
        raise OpError(f"Q, K and V have shapes {[list(x.shape) for x in ins]}, which do not go together")
    heads, shared = q.shape[1], k.shape[1]
    if shared == 0 or heads % shared or k.shape[2] == 0:
        raise OpError(f"Q has {heads} heads, K {shared} of {k.shape[2]} keys; expected a divisor of {heads}, and keys")
    precision = step.call.get("softmax_precision", None)
    dtype = np.promote_types(q.dtype, np.float32) if precision is None else helper.tensor_dtype_to_np_dtype(precision)
    size = q.nbytes + (k.nbytes + v.nbytes) * (heads // shared)
    scores_size = 3 * q.shape[0] * heads * q.shape[2] * k.shape[2] * dtype.itemsize
    if size + scores_size > limits.bytes:
        raise MemoryLimitError(f"its scores take {size + scores_size} bytes; {limits.bytes} are left")
    limits = limits.without(size + scores_size)
    k, v = (np.repeat(x, heads // shared, 1) for x in (k, v))
    factor = np.sqrt(np.float32(step.call.get("scale", 1 / np.sqrt(q.shape[3])))).astype(q.dtype)
    scores = np.matmul(q * factor, np.swapaxes(k * factor, 2, 3)).astype(dtype)
    scores = _modified(step, "score_mod", scores, values, limits)
    scores = np.exp(scores - scores.max(3, keepdims=True))
    scores = _modified(step, "prob_mod", scores / scores.sum(3, keepdims=True), values, limits)
    return [np.matmul(scores, v.astype(dtype)).astype(v.dtype)]


def _modified(step: Step, name: str, scores: Any, values: Values, limits: Limits) -> Any:
    """What the subgraph, if there is one, makes of the scores: an array of the same type."""
    if name not in step.subgraphs:
        return scores
    body = step.subgraphs[name]
    if len(body.inputs) != 1 or len(body.outputs) != 1:
        raise OpError(f"its {name} has {len(body.inputs)} inputs and {len(body.outputs)} outputs; expected one each")
    (made,) = interpret(body, [scores], values, limits)
    if not isinstance(made, np.ndarray) or made.shape != scores.shape:
        raise OpError(f"its {name} makes shape {list(np.shape(made))}; expected {list(scores.shape)}")
    return made.astype(scores.dtype, copy=False)


_CONTROL = {
    ("", "If"): _run_if,
    ("", "Loop"): _run_loop,
    ("", "Scan"): _run_scan,
    ("", "SequenceMap"): _run_sequence_map,
    ("", "Optional"): _run_optional,
    ("ai.onnx.preview", "FlexAttention"): _run_flex_attention,
}
"""What runs here, by domain and op type: ops with subgraphs, and those that deal in optionals."""


def is_control(step: Step) -> bool:
    """Whether the step runs here, and so with shapes as they come."""
    return (step.domain, step.op_type) in _CONTROL
