"""A cold start, stage by stage: run in a fresh process, `python -m hashinfer.cli.cold MODEL INPUTS.npz THREADS`.

Prints one JSON document: seconds of each stage, and what the process took after it. It imports nothing that an
ordinary program with a session would not.
"""
# ruff: noqa: E402

import time

_BEGUN = time.perf_counter()

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from hashinfer.cli.memory import process_memory, reset_peak

STAGES = ("import", "load", "plan", "compile", "first_run", "second_run")

Result = TypeVar("Result")


def main(model: str, inputs: str, threads: int) -> dict[str, Any]:
    """Seconds of each of STAGES, and bytes: `floor` after the imports, `loaded`, `done` after the first run."""
    seconds = {}

    def timed(stage: str, work: Callable[[], Result]) -> Result:
        start = time.perf_counter()
        result = work()
        seconds[stage] = time.perf_counter() - start
        return result

    from hashinfer.kernels import driver
    from hashinfer.session.session import InferenceSession

    seconds["import"] = time.perf_counter() - _BEGUN
    reset_peak()
    floor = process_memory()
    session = timed("load", lambda: InferenceSession(model, threads=threads))
    loaded = process_memory()

    import numpy as np

    with np.load(inputs) as arrays:
        feed: Mapping[str, Any] = {name: arrays[name] for name in arrays.files}
    plan = timed("plan", lambda: session.plan({name: array.shape for name, array in feed.items()}))
    emissions = [planned.emission for planned in plan.steps if planned.emission is not None]
    kernels = {driver.run_alone, *(call.kernel for emission in emissions for call in emission.calls)}
    timed("compile", lambda: [kernel.address for kernel in kernels])
    for stage in ("first_run", "second_run"):
        timed(stage, lambda: session.run(None, feed))
    return {"seconds": seconds, "floor": floor, "loaded": loaded, "done": process_memory()}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
