"""Where a run's time goes: each step timed on its own, and what is left of the whole run as overhead."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from hashinfer.kernels.driver import ROW
from hashinfer.kernels.pool import Pool, Program
from hashinfer.ops.base import Array
from hashinfer.plan.bound import Action, BoundPlan
from hashinfer.plan.planner import Plan, PlannedStep


@dataclass(frozen=True, slots=True)
class ProfiledStep:
    """One step: its ops and nodes, how it runs ("native", "numpy", ...), its kernel or "", its median time."""

    label: str
    nodes: tuple[str, ...]
    runs: str
    kernel: str
    ns: float


@dataclass(frozen=True, slots=True)
class Profile:
    """Medians in nanoseconds over `repeats` runs. The steps' times and `overhead_ns` add up to `run_ns`.

    run_ns: a whole run, as a caller sees it. A native step's time is what its call took less `call_ns`, the time of
    a call that does nothing. Timed apart, steps lose what they gain from each other, so that the overhead of a run of
    large steps may come out a little below zero.
    """

    steps: tuple[ProfiledStep, ...]
    run_ns: float
    call_ns: float
    repeats: int

    @property
    def overhead_ns(self) -> float:
        """What a run takes beside its steps: checks, buffers, calls."""
        return self.run_ns - sum(step.ns for step in self.steps)

    def as_dict(self) -> dict[str, Any]:
        """All of it as data that JSON can hold; times in nanoseconds."""
        return asdict(self) | {"overhead_ns": self.overhead_ns}

    def chrome_trace(self, name: str = "run", row: int = 1) -> dict[str, Any]:
        """The profile in Chrome's trace event format, for chrome://tracing and https://ui.perfetto.dev.

        One event for the run and, below it, one for each step, end to end in their order, as long as their medians: no
        single run took just this course. Times in the events are in microseconds, as the format has them. name: of the
        run; row: the number of the row that it is drawn in, for traces put together.
        """
        about: dict[str, Any] = {"repeats": self.repeats, "overhead_ns": self.overhead_ns}
        events = [_event(name, "run", row, 0.0, self.run_ns, about)]
        start = 0.0
        for step in self.steps:
            about = {"nodes": list(step.nodes), "runs": step.runs, "kernel": step.kernel}
            events.append(_event(step.label, step.runs, row, start, step.ns, about))
            start += step.ns
        return {"traceEvents": events, "displayTimeUnit": "ns"}


def _event(name: str, category: str, row: int, start_ns: float, ns: float, about: dict[str, Any]) -> dict[str, Any]:
    """A complete event ("X") of the trace event format."""
    times = {"ts": start_ns / 1000, "dur": ns / 1000}
    return {"name": name, "cat": category, "ph": "X", **times, "pid": 1, "tid": row, "args": about}


class _Apart(BoundPlan):
    """A bound plan whose steps are actions apart. owners: each action's step, and whether it is a kernel call."""

    owners: list[tuple[PlannedStep, bool]]

    def _actions(self) -> list[Action]:
        actions: list[Action] = []
        self.owners = []
        plan = self.plan
        for planned in plan.steps:
            self.plan = replace(plan, steps=[planned])
            made = super()._actions()
            actions += made
            # Where a native step looks at its inputs' values, that is an action in front of the kernels.
            self.owners += [(planned, planned.kind == "native" and action is made[-1]) for action in made]
        self.plan = plan
        return actions


def profile_plan(
    plan: Plan, pool: Pool, limit: int, inputs: Sequence[Array], whole: Callable[[], Any], repeats: int
) -> Profile:
    """Time the steps of `plan` on `inputs`, in turn with `whole`, which runs it as a caller would."""
    bound = _Apart(plan, pool, limit)
    clock = time.perf_counter_ns
    times = np.zeros((repeats, len(bound.actions)), np.int64)
    row = 0

    def timed(number: int, action: Action) -> Action:
        def run() -> None:
            start = clock()
            action()
            times[row, number] = clock() - start

        return run

    bound.actions = [timed(k, action) for k, action in enumerate(bound.actions)]
    outputs = [None if kind is None else np.empty(kind.shape, kind.dtype) for kind in plan.outputs]
    nothing = Program(np.zeros((0, ROW), np.int64), 0, 0)
    runs, calls = np.zeros(repeats, np.int64), np.zeros(repeats, np.int64)
    bound.run(inputs, outputs)
    whole()
    for row in range(repeats):
        bound.run(inputs, outputs)
        start = clock()
        nothing.run()
        calls[row] = clock() - start
        # Twice, the second one timed: as in steady use, the caches hold what a run itself has left there.
        whole()
        start = clock()
        whole()
        runs[row] = clock() - start
    call_ns = float(np.median(calls))
    spent: dict[int, float] = {}
    for number, (owner, native) in enumerate(bound.owners):
        took = float(np.median(times[:, number])) - (call_ns if native else 0.0)
        spent[id(owner)] = spent.get(id(owner), 0.0) + max(took, 0.0)
    steps = tuple(
        ProfiledStep(p.step.label, p.step.nodes, p.kind, p.emission.choice if p.emission else "", spent[id(p)])
        for p in plan.steps
        if id(p) in spent
    )
    return Profile(steps, float(np.median(runs)), call_ns, repeats)
