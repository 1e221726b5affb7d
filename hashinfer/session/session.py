"""InferenceSession: load a model once, run it from any number of threads."""

import logging
import os
import threading
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hashinfer.errors import HashinferError, InputError, MemoryLimitError
from hashinfer.kernels.pool import Pool
from hashinfer.model.graph import ValueType
from hashinfer.model.read import ModelSource, read_model, read_stream
from hashinfer.ops.base import Array, TensorType
from hashinfer.plan.bound import BoundPlan
from hashinfer.plan.budget import budget_bytes, chosen, offers
from hashinfer.plan.control import interpret
from hashinfer.plan.fuse import fuse
from hashinfer.plan.limits import Limits, physical_memory
from hashinfer.plan.planner import HASHED_OPS, Plan, make_plan, matrices, weight_bytes
from hashinfer.plan.profile import Profile, profile_plan
from hashinfer.plan.report import plan_report
from hashinfer.session.face import Feed, Out, Providers, Session, Value, apart, given_outputs, seconds_of
from hashinfer.session.options import ModelMetadata, RunOptions, SessionOptions
from hashinfer.session.plans import PlanCache
from hashinfer.session.repeated import Repeated
from hashinfer.session.threads import MAX_THREADS, default_threads

log = logging.getLogger("hashinfer")

IDLE_BYTES = 2**28
"""Buffers of this size at most wait for the next call, or less where max_memory allows less."""


class InferenceSession(Session):
    """A loaded model.

    path_or_bytes: a path, the file's bytes, or a binary file object.
    sess_options, providers, provider_options: as in onnxruntime. The only provider is CPUExecutionProvider; others in
    the list are passed over as long as it is there, or no list is given.
    threads: threads of one run. Default: `sess_options.intra_op_num_threads` where not 0, then HASHINFER_NUM_THREADS,
    then the processors that affinity and the cgroup quota leave.
    max_memory: bytes that weights, buffers and outputs of one run may take together. Default: the machine's memory.
    time_limit: seconds after which a run begins no further step. Default: none.
    memory_budget: bytes, "8MiB", or a share of the free memory (0.1, "10%") that weight matrices held as they are may
    take, where that makes a run faster. Default: none, and no W is ever held.

    Raises ModelError, UnsupportedError or OSError where the model cannot be loaded, InputError for an argument that
    makes no sense, MemoryLimitError where the file or its weights alone exceed max_memory. Safe to use from many
    threads at once.
    """

    def __init__(
        self,
        path_or_bytes: ModelSource,
        sess_options: SessionOptions | None = None,
        providers: Providers | None = None,
        provider_options: Sequence[Mapping[str, Any]] | None = None,
        *,
        threads: int | None = None,
        max_memory: int | None = None,
        time_limit: float | None = None,
        memory_budget: int | float | str | None = None,
    ) -> None:
        super().__init__(sess_options, providers, max_memory, time_limit)
        self._threads = _thread_count(threads, self._options)
        self._limit: int = physical_memory() if max_memory is None else max_memory
        self._budget = memory_budget
        budget = budget_bytes(memory_budget)
        self._source = _reread(path_or_bytes)
        model = read_model(self._source, self._limit)
        if not isinstance(self._source, bytes):
            self._source = str(Path(self._source).absolute())
        self._program = fuse(model.graph)
        self._model = model
        self._inputs = {v.name: _value(v) for v in model.graph.inputs}
        self._outputs = [_value(v) for v in model.graph.outputs]
        if budget:
            self._spend(budget)
        self._weight_bytes = weight_bytes(self._program)
        if self._weight_bytes > self._limit:
            raise MemoryLimitError(
                f"the model's weights take {self._weight_bytes} bytes; at most {self._limit} are allowed"
            )
        _tell_of_odd_weights(self._program)
        log.info(
            "loaded %s: %d nodes in %d steps, %d bytes of weights, %d threads",
            self._source if isinstance(self._source, str) else f"a model of {model.file_bytes} bytes",
            len(model.graph.nodes),
            len(self._program.steps),
            self._weight_bytes,
            self._threads,
        )
        self._pool = pool = Pool(self._threads)
        limit = self._limit
        self._plans = PlanCache(min(IDLE_BYTES, limit - self._weight_bytes), lambda plan: BoundPlan(plan, pool, limit))
        self._repeated: Repeated | None = None
        _sessions.add(self)

    def _spend(self, budget: int) -> None:
        """Mark the matrices that are worth it, for runs of one row, as held."""
        try:
            plan = make_plan(self._program, self._types(None), self._threads, self._limit)
        except HashinferError as error:
            log.info("the memory budget buys nothing: %s", error)
            return
        taken = chosen(offers(plan), budget)
        for offer in taken:
            offer.matrix.materialise = True
        log.info("the memory budget holds %d matrices, %d bytes", len(taken), sum(offer.bytes for offer in taken))

    def run(
        self,
        output_names: Sequence[str] | None,
        input_feed: Feed,
        run_options: RunOptions | None = None,
        *,
        out: Out | None = None,
        time_limit: float | None = None,
    ) -> list[Any]:
        """The outputs named (all where None), in that order, as arrays of their own.

        input_feed: name -> array of the input's dtype and shape; any strides and byte order. out: arrays to write into,
        one for each output asked for (a sequence or by name): C-contiguous, writable, of the right dtype and shape.
        time_limit: seconds, in place of the session's. It is looked at between steps: one that runs is not interrupted.

        Raises InputError for names, dtypes, ranks or sizes that do not fit, OpError where data is not what an op is
        defined for, MemoryLimitError beyond max_memory; all but data errors before any work, except where shapes hang
        on data. Raises TimeLimitError where steps are left once the time is over; what `out` holds then is undefined.
        """
        if self._closed:
            raise InputError("the session is closed")
        seconds = self._time_limit if time_limit is None else seconds_of(time_limit)
        repeated = self._repeated
        if repeated is not None and not output_names:
            results = repeated.run(input_feed, out, seconds)
            if results is not None:
                return results
        names = self._names(output_names)
        arrays = self._arrays(input_feed)
        if not all(isinstance(a, np.ndarray) for a in arrays):
            return self._interpret(names, arrays, out, seconds)
        plan = self._plan_for([TensorType(a.dtype, a.shape) for a in arrays])
        self._repeated = Repeated.of(self._inputs, plan, self._plans)
        kinds = {
            name: None if kind is None else (kind.dtype, kind.shape)
            for name, kind in zip(plan.program.outputs, plan.outputs, strict=True)
        }
        wanted = given_outputs(out, names, kinds)
        outputs = self._targets(plan, wanted)
        if wanted:
            arrays = apart(arrays, wanted)
        bound = self._plans.take(plan)
        try:
            results = bound.run(arrays, outputs, seconds)
        finally:
            self._plans.give(bound)
        by_name = dict(zip(plan.program.outputs, results, strict=True))
        for name, target in wanted.items():
            if by_name[name] is not target:
                _copy_out(name, by_name[name], target)
        return [wanted.get(name, by_name[name]) for name in names]

    def _interpret(self, names: Sequence[str], values: Sequence[Any], out: object, seconds: float | None) -> list[Any]:
        """Run step by step, for inputs that are no tensors (sequences, optionals)."""
        if out is not None:
            raise InputError("out is given; a model whose inputs are not all tensors writes no arrays of the caller's")
        made = interpret(self._program, values, {}, Limits.starting(self._limit - self._weight_bytes, seconds))
        by_name = dict(zip(self._program.outputs, made, strict=True))
        return [by_name[name] for name in names]

    def get_modelmeta(self) -> ModelMetadata:
        """What the file says of itself."""
        m = self._model
        return ModelMetadata(
            m.producer, m.graph.name, m.domain, m.description, m.graph_description, m.version, dict(m.metadata)
        )

    @property
    def threads(self) -> int:
        """Threads of one run."""
        return self._threads

    @property
    def weight_bytes(self) -> int:
        """Bytes of constants, stored weight vectors and spectra."""
        return self._weight_bytes

    @property
    def materialised_bytes(self) -> int:
        """Bytes of weight matrices that the memory budget holds, among weight_bytes."""
        return sum(m.materialised_bytes for m in matrices(self._program))

    @property
    def file_bytes(self) -> int:
        """Size of the model file."""
        return self._model.file_bytes

    def plan(self, shapes: Mapping[str, Sequence[int] | None] | None = None) -> Plan:
        """The plan for inputs of these shapes; a dimension that the model leaves open is 1 where none is given.

        Raises what `run` raises before any work.
        """
        return self._plan_for(self._types(shapes))

    def _types(self, shapes: Mapping[str, Sequence[int] | None] | None) -> list[TensorType]:
        types = []
        for name, value in self._inputs.items():
            given = (shapes or {}).get(name)
            shape = tuple((d if isinstance(d, int) else 1 for d in value.shape or ()) if given is None else given)
            value.check_shape(shape)
            types.append(TensorType(value.dtype or np.dtype(np.float32), shape))
        return types

    def report(self, shapes: Mapping[str, Sequence[int] | None] | None = None) -> dict[str, Any]:
        """The plan for such inputs as data that JSON can hold: layers, kernels and why, buffers, bytes, fallbacks."""
        return plan_report(self._model, self.plan(shapes))

    def profile(self, input_feed: Feed, repeats: int = 100) -> Profile:
        """Where the time of a run on these inputs goes, step by step. Raises what `run` raises."""
        if repeats < 1:
            raise InputError(f"repeats is {repeats!r}; expected a whole number above 0")
        feed = dict(input_feed)
        self.run(None, feed)
        arrays = self._arrays(feed)
        if not all(isinstance(a, np.ndarray) for a in arrays):
            raise InputError("the model takes inputs that are no tensors: its steps cannot be timed one by one")
        plan = self.plan({name: a.shape for name, a in zip(self._inputs, arrays, strict=True)})
        return profile_plan(plan, self._pool, self._limit, arrays, lambda: self.run(None, feed), repeats)

    def close(self) -> None:
        """End the worker threads and drop the buffers. A running call ends well; later ones raise InputError."""
        super().close()
        self._repeated = None
        self._plans.clear()
        self._pool.close()

    def __getstate__(self) -> dict[str, Any]:
        # A model with external data can only be read from where it lies; any other travels with the pickle.
        data = self._source
        if isinstance(data, str) and not self._model.external:
            data = Path(data).read_bytes()
        return {
            "path_or_bytes": data,
            "sess_options": self._options,
            "threads": self._threads,
            "max_memory": self._max_memory,
            "time_limit": self._time_limit,
            "memory_budget": self._budget,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        InferenceSession.__init__(self, **state)

    def _plan_for(self, types: Sequence[TensorType]) -> Plan:
        key = tuple((t.dtype.str, t.shape) for t in types)
        return self._plans.plan(key, lambda: self._made_plan(types))

    def _made_plan(self, types: Sequence[TensorType]) -> Plan:
        plan = make_plan(self._program, types, self._threads, self._limit)
        if log.isEnabledFor(logging.INFO):
            kinds = Counter(step.kind for step in plan.steps)
            shown = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "none"
            inputs = ", ".join(map(str, types)) or "no inputs"
            log.info("planned for %s: steps %s; %d bytes of buffers", inputs, shown, plan.buffer_bytes)
        if log.isEnabledFor(logging.DEBUG):
            for step in plan.steps:
                kernel = "" if step.emission is None else f", {step.emission.choice}: {step.emission.reason}"
                log.debug("%s", step.step.explain(f"{step.kind}{kernel}"))
        return plan

    @staticmethod
    def _targets(plan: Plan, wanted: Mapping[str, Array]) -> list[Array | None]:
        """An array for each output whose type is known: the caller's where it fits, else a new one."""
        left = dict(wanted)
        targets: list[Array | None] = []
        for name, kind in zip(plan.program.outputs, plan.outputs, strict=True):
            given = left.pop(name, None)
            if kind is None:
                targets.append(None)
            else:
                targets.append(np.empty(kind.shape, kind.dtype) if given is None else given)
        return targets


def _value(declared: ValueType) -> Value:
    return Value(declared.name, declared.onnx_type, declared.dtype, declared.shape)


def _thread_count(threads: int | None, options: SessionOptions) -> int:
    chosen = threads if threads is not None else (int(options.intra_op_num_threads) or None)
    if chosen is None:
        return default_threads()
    if isinstance(chosen, bool) or not isinstance(chosen, int) or not 1 <= chosen <= MAX_THREADS:
        raise InputError(f"threads is {chosen!r}; expected a whole number from 1 to {MAX_THREADS}")
    return chosen


def _reread(source: ModelSource) -> str | bytes:
    """The source in a form that can be read again, for pickling: a path as it is, anything else as bytes."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    return read_stream(source)


def _tell_of_odd_weights(program: Any) -> None:
    for step in program.steps:
        if isinstance(step.op, HASHED_OPS) and not step.op.matrix.finite:
            log.warning("%s", step.explain("its weight vector holds NaN or Inf; zero inputs are not skipped"))


def _copy_out(name: str, value: Any, target: Array) -> None:
    """A result whose type was not known before the run, into the caller's array."""
    if not isinstance(value, np.ndarray) or value.dtype != target.dtype or value.shape != target.shape:
        found = f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
        raise InputError(f"out for {name!r} is {target.dtype}{list(target.shape)}; the result is {found}")
    np.copyto(target, value)


_sessions: weakref.WeakSet[InferenceSession] = weakref.WeakSet()


def _forget_locks() -> None:
    """In a forked child a lock may be held by a thread that is not there."""
    for session in list(_sessions):
        session._plans.lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_locks)
