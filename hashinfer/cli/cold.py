"""A cold start, stage by stage: run in a fresh process, `python -m hashinfer.cli.cold MODEL INPUTS.npz THREADS`.

Prints one JSON document: seconds of each stage, and what the process took after it. It imports nothing that an
ordinary program with a session would not.
"""

import time

_BEGUN = time.perf_counter()

import json  # noqa: E402
import sys  # noqa: E402
from collections.abc import Mapping  # noqa: E402
from typing import Any  # noqa: E402

from hashinfer.cli.memory import process_memory, reset_peak  # noqa: E402

STAGES = ("import", "load", "plan", "compile", "first_run", "second_run")


def main(model: str, inputs: str, threads: int) -> dict[str, Any]:
    """Seconds of each of STAGES, and bytes: `floor` after the imports, `loaded`, `done` after the first run."""
    clock, seconds = time.perf_counter, {}

    from hashinfer.kernels import driver  # noqa: PLC0415
    from hashinfer.session.session import InferenceSession  # noqa: PLC0415

    seconds["import"] = clock() - _BEGUN
    reset_peak()
    floor, start = process_memory(), clock()
    session = InferenceSession(model, threads=threads)
    seconds["load"] = clock() - start
    loaded = process_memory()

    import numpy as np  # noqa: PLC0415

    with np.load(inputs) as arrays:
        feed: Mapping[str, Any] = {name: arrays[name] for name in arrays.files}
    start = clock()
    plan = session.plan({name: array.shape for name, array in feed.items()})
    seconds["plan"] = clock() - start
    start = clock()
    kernels = {call.kernel for planned in plan.steps if planned.emission is not None for call in planned.emission.calls}
    for kernel in (*kernels, driver.run_alone):
        _ = kernel.address
    seconds["compile"] = clock() - start
    for stage in ("first_run", "second_run"):
        start = clock()
        session.run(None, feed)
        seconds[stage] = clock() - start
    return {"seconds": seconds, "floor": floor, "loaded": loaded, "done": process_memory()}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
