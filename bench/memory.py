"""Memory of one model in one engine, in fresh processes: after the import, after loading, after the first run.

    python -m bench.memory ENGINE MODEL FEED.npz      (the child: one line of JSON)

Bytes are what Linux counts: RssAnon, VmRSS and VmHWM, the peak. The engine floor is the process after the import. What
a second session of the same model adds is the model alone: the first one's share also holds compiled code and whatever
the engine loads when it is first used.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from hashinfer.cli.memory import process_memory

ROOT = Path(__file__).resolve().parent.parent
HASHINFER, ONNXRUNTIME = "hashinfer", "onnxruntime"


def measure(engine: str, model: Path, feed: Path) -> dict[str, Any]:
    """Figures of one model; of the second process, as the first may compile. Raises CalledProcessError if it fails."""
    for _ in range(2):
        command = [sys.executable, "-m", "bench.memory", engine, str(model), str(feed)]
        line = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    stages = json.loads(line)
    floor, loaded, ran = (stages[name] for name in ("imported", "loaded", "ran"))
    return {
        "file_bytes": model.stat().st_size,
        **{name: stages[name] for name in ("weight_bytes", "plan_bytes") if name in stages},
        "floor": floor,
        "resident_after_load": loaded["anonymous"] - floor["anonymous"],
        "resident_after_run": ran["anonymous"] - floor["anonymous"],
        "peak_over_floor": ran["peak"] - floor["rss"],
        "another_session": stages["another"]["anonymous"] - ran["anonymous"],
        "peak": ran["peak"],
    }


def main() -> None:
    """The child."""
    engine, model, feed_path = sys.argv[1:]
    import numpy as np

    if engine == HASHINFER:
        from hashinfer.session.options import SessionOptions
        from hashinfer.session.session import InferenceSession
    else:
        from onnxruntime import InferenceSession, SessionOptions
    with np.load(feed_path) as file:
        feed = {name: file[name] for name in file.files}
    out: dict[str, Any] = {"imported": process_memory()}
    options = SessionOptions()
    options.intra_op_num_threads = 1
    session = InferenceSession(model, options, providers=["CPUExecutionProvider"])
    out["loaded"] = process_memory()
    session.run(None, feed)
    out["ran"] = process_memory()
    another = InferenceSession(model, options, providers=["CPUExecutionProvider"])
    another.run(None, feed)
    out["another"] = process_memory()
    if engine == HASHINFER:
        out["weight_bytes"] = session.weight_bytes
        out["plan_bytes"] = session.plan({name: a.shape for name, a in feed.items()}).buffer_bytes
    print(json.dumps(out))


if __name__ == "__main__":
    main()
