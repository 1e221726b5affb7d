"""A plan as data that JSON can hold: what `inspect` shows and programs read."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hashinfer.model.graph import Model, ValueType
from hashinfer.ops.matrix import HashedMatrix
from hashinfer.plan.planner import HASHED_OPS, Place, Plan, PlannedStep, matrices

LOAD_SAMPLE = 2**20
"""Virtual weights looked at for the bucket load."""


def plan_report(model: Model, plan: Plan) -> dict[str, Any]:
    """Everything known of a model and its plan. Sizes are in bytes unless a name says otherwise."""
    hashed = matrices(plan.program)
    dense = sum(c.size for c in plan.program.constants.values() if c.dtype.kind == "f" and c.size > 1)
    stored = sum(m.w.size for m in hashed) + dense
    virtual = sum(m.scheme.virtual_size for m in hashed) + dense
    return {
        "model": {
            "opset": model.opset,
            "ir_version": model.ir_version,
            "producer": model.producer,
            "file_bytes": model.file_bytes,
            "stored_numbers": stored,
            "virtual_numbers": virtual,
            "compression_factor": virtual / stored if stored else None,
            "bodies": sorted(model.bodies),
        },
        "inputs": _values(model.graph.inputs),
        "outputs": _values(model.graph.outputs),
        "planned_for": [{"dtype": str(t.dtype), "shape": list(t.shape)} for t in plan.inputs],
        "steps": [_step(p) for p in plan.steps],
        "buffers": [_buffer(name, place) for name, place in plan.places.items()],
        "memory": {
            "weights": plan.weight_bytes,
            "materialised": sum(m.materialised_bytes for m in hashed),
            "arena": plan.arena_bytes,
            "scratch_per_thread": plan.scratch_bytes,
            "threads": plan.threads,
            "buffers": plan.buffer_bytes,
            "total": plan.total_bytes,
        },
        "fully_static": not plan.dynamic,
        "fallbacks": [p.step.nodes[-1] for p in plan.steps if p.kind == "reference"],
    }


def _values(values: Sequence[ValueType]) -> list[dict[str, Any]]:
    return [{"name": v.name, "type": v.onnx_type, "shape": list(v.shape or ())} for v in values]


def _buffer(name: str, place: Place) -> dict[str, Any]:
    return {
        "name": name,
        "kind": place.kind,
        "offset" if place.kind == "arena" else "number": place.index,
        "dtype": str(place.type.dtype),
        "shape": list(place.type.shape),
        "bytes": place.type.nbytes,
    }


def _step(planned: PlannedStep) -> dict[str, Any]:
    step = planned.step
    out: dict[str, Any] = {
        "op": step.label,
        "nodes": list(step.nodes),
        "runs": planned.kind,
        "outputs": [{"name": name, "type": str(kind)} for name, kind in step.named(planned.types)],
    }
    if planned.emission is not None:
        out["kernel"] = planned.emission.choice
        out["reason"] = planned.emission.reason
        out["scratch_bytes"] = planned.emission.scratch
    elif planned.kind == "reference":
        out["reason"] = "no native form: onnx's reference implementation runs it"
    elif planned.kind == "dynamic":
        out["reason"] = "shapes depend on data: buffers are allocated as it runs"
    if isinstance(planned.op, HASHED_OPS):
        out["hashed"] = describe_matrix(planned.op.matrix)
    return out


def describe_matrix(matrix: HashedMatrix) -> dict[str, Any]:
    """Scheme, sizes and bucket load of a hashed matrix."""
    scheme = matrix.scheme
    return {
        "scheme": scheme.name,
        "rows": scheme.rows,
        "cols": scheme.cols,
        "buckets": scheme.buckets,
        scheme.parameter: getattr(scheme, scheme.parameter),
        "seed": scheme.seed,
        "dtype": str(matrix.stored_dtype),
        "compression_factor": scheme.virtual_size / scheme.buckets,
        "virtual_bytes": 4 * scheme.virtual_size,
        "stored_bytes": matrix.w.nbytes,
        "resident_bytes": matrix.resident_bytes,
        "materialised": matrix.materialise,
        "finite": matrix.finite,
        "bucket_load": bucket_load(matrix),
    }


def bucket_load(matrix: HashedMatrix) -> dict[str, float]:
    """Virtual weights per bucket: the mean of all; the most, and the share of unused buckets, over a sample of rows."""
    scheme = matrix.scheme
    rows = max(1, min(scheme.rows, LOAD_SAMPLE // scheme.cols))
    cols = min(scheme.cols, LOAD_SAMPLE)
    bucket, _ = scheme.cells(np.arange(rows)[:, None], np.arange(cols)[None, :])
    used, counts = np.unique(bucket, return_counts=True)
    return {
        "mean": scheme.virtual_size / scheme.buckets,
        "sampled": rows * cols,
        "most_in_sample": int(counts.max()),
        "unused_in_sample": 1 - used.size / scheme.buckets,
    }
