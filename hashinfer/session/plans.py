"""A session's plans and the buffers that no call is using: both are kept within bounds."""

import threading
from collections import OrderedDict
from collections.abc import Callable

from hashinfer.plan.bound import BoundPlan
from hashinfer.plan.planner import Plan

PLANS_KEPT = 8

PlanKey = tuple[tuple[str, tuple[int, ...]], ...]


class PlanCache:
    """Plans by input types, the last used ones, each with its idle bound copies.

    All idle copies together take at most `idle_bytes`, except that the last one given back is always kept.
    """

    def __init__(self, idle_bytes: int, bind: Callable[[Plan], BoundPlan]) -> None:
        self.idle_bytes = idle_bytes
        self._bind = bind
        self.lock = threading.Lock()
        self._plans: OrderedDict[PlanKey, Plan] = OrderedDict()
        self._idle: list[BoundPlan] = []
        self.last: list[BoundPlan] = []
        """At most one idle copy, for whom the next call is like the last: taken and left without the lock."""

    def plan(self, key: PlanKey, make: Callable[[], Plan]) -> Plan:
        """The plan for `key`, made if it is not there."""
        with self.lock:
            plan = self._plans.get(key)
            if plan is None:
                plan = self._plans[key] = make()
                while len(self._plans) > PLANS_KEPT:
                    _, gone = self._plans.popitem(last=False)
                    self._idle = [b for b in self._idle if b.plan is not gone]
                    self.last = [b for b in self.last if b.plan is not gone]
            else:
                self._plans.move_to_end(key)
            return plan

    def take(self, plan: Plan) -> BoundPlan:
        """An idle copy of this plan, or a new one, for which others make room."""
        with self.lock:
            for at in range(len(self._idle) - 1, -1, -1):
                if self._idle[at].plan is plan:
                    return self._idle.pop(at)
            self._make_room(plan.buffer_bytes)
        return self._bind(plan)

    def give(self, bound: BoundPlan) -> None:
        """Keep a copy that a call has finished with."""
        with self.lock:
            if any(plan is bound.plan for plan in self._plans.values()):
                self._make_room(bound.plan.buffer_bytes)
                self._idle.append(bound)

    def clear(self) -> None:
        """Forget every plan and buffer."""
        with self.lock:
            self._plans.clear()
            self._idle.clear()
            self.last = []

    def _make_room(self, size: int) -> None:
        total = size + sum(bound.plan.buffer_bytes for bound in (*self._idle, *self.last))
        if total > self.idle_bytes:
            total -= sum(bound.plan.buffer_bytes for bound in self.last)
            self.last.clear()
        while self._idle and total > self.idle_bytes:
            total -= self._idle.pop(0).plan.buffer_bytes
