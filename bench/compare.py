"""Time and memory of the shipped models against their dense twins in onnxruntime.

    python -m bench.compare [--out bench/results]

Times alternate between the two engines in one process, one thread each, after a warm-up: medians, and the ratio of each
pair. Memory is measured in fresh processes: what loading the model and running it once adds to a process that has
imported the engine.
Writes compare.json, compare.md and compare.png.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from bench.environment import environment

ROOT = Path(__file__).resolve().parent.parent
MODELS = ("mnist-dyadic-64x", "mnist-xxh32-64x", "mnist-dyadic-8x", "mnist-xxh32-8x")
BATCHES = (1, 8, 64)

_MEMORY_SCRIPT = """
import sys, pathlib
import numpy as np
import {engine} as engine
if "{engine}" == "hashinfer":
    import hashinfer.session.session
def status():
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    read = lambda key: next(int(l.split()[1]) for l in lines if l.startswith(key)) * 1024
    return read("RssAnon:"), read("VmHWM:")
anonymous, peak = status()
options = engine.SessionOptions()
options.intra_op_num_threads = 1
session = engine.InferenceSession(sys.argv[1], options)
x = np.load(sys.argv[2])[:1]
session.run(None, {{session.get_inputs()[0].name: x}})
after, high = status()
print(anonymous, peak, after, high)
"""


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--repeats", type=int, default=400)
    options = parser.parse_args()
    where = environment()
    print(json.dumps(where, indent=2))
    digits = ROOT / "models" / "mnist-test-1k.npy"
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in MODELS:
            path = ROOT / "models" / f"{name}.hnet"
            if path.exists():
                rows.append(
                    compare(name, path, Path(folder) / f"{name}.onnx", np.load(digits), digits, options.repeats)
                )
    text = table(rows)
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "compare.json").write_text(json.dumps({"environment": where, "models": rows}, indent=2) + "\n")
    (options.out / "compare.md").write_text(text + "\n")
    draw(rows, where, options.out / "compare.png")


def compare(name: str, hashed: Path, dense: Path, x: np.ndarray, digits: Path, repeats: int) -> dict[str, Any]:
    """All figures of one model."""
    import onnxruntime

    import hashinfer
    from hashinfer.model.dense import dense_twin

    dense.write_bytes(dense_twin(onnx.load(hashed), 2**31).SerializeToString())
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    ours = hashinfer.InferenceSession(hashed, threads=1)
    theirs = onnxruntime.InferenceSession(dense, settings, providers=["CPUExecutionProvider"])
    feed_name = ours.get_inputs()[0].name
    difference = np.abs(ours.run(None, {feed_name: x})[0] - theirs.run(None, {feed_name: x})[0]).max()
    assert difference < 1e-2, f"{name}: answers differ by {difference}"
    times = {}
    for batch in BATCHES:
        parts = [np.ascontiguousarray(x[k : k + batch]) for k in range(0, 64 * batch, batch) if k + batch <= len(x)]
        a, b = [], []
        for k in range(repeats):
            feed = {feed_name: parts[k % len(parts)]}
            for session, seen in ((ours, a), (theirs, b)):
                start = time.perf_counter()
                session.run(None, feed)
                seen.append(1e6 * (time.perf_counter() - start))
        a, b = a[repeats // 10 :], b[repeats // 10 :]
        ratios = sorted(q / p for p, q in zip(a, b, strict=True))
        times[str(batch)] = {
            "hashinfer_us": statistics.median(a),
            "onnxruntime_us": statistics.median(b),
            "faster": statistics.median(ratios),
            "faster_quartiles": [ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]],
        }
    return {
        "model": name,
        "largest_difference": float(difference),
        "file_bytes": {"hashinfer": hashed.stat().st_size, "onnxruntime": dense.stat().st_size},
        "weight_bytes": ours.weight_bytes,
        "plan_bytes": ours.plan().buffer_bytes,
        "memory": {
            "hashinfer": memory("hashinfer", hashed, digits),
            "onnxruntime": memory("onnxruntime", dense, digits),
        },
        "time": times,
    }


def memory(engine: str, model: Path, digits: Path) -> dict[str, int]:
    """Bytes that loading and one run add to the imported engine, and the floor itself; of the second process."""
    for _ in range(2):
        command = [sys.executable, "-c", _MEMORY_SCRIPT.format(engine=engine), str(model), str(digits)]
        line = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    anonymous, peak, after, high = map(int, line.split())
    return {"floor_peak": peak, "anonymous_added": after - anonymous, "peak_added": high - peak, "peak": high}


def table(rows: list[dict[str, Any]]) -> str:
    """The figures as a Markdown table."""
    lines = [
        "| model | file | dense file | batch 1: ours, onnxruntime | batch 8 | batch 64 | memory added by load, run |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = []
        for batch in BATCHES:
            t = row["time"][str(batch)]
            cells.append(f"{t['hashinfer_us']:.0f} us, {t['onnxruntime_us']:.0f} us: {t['faster']:.2f} x")
        ours, theirs = (row["memory"][e]["anonymous_added"] / 2**20 for e in ("hashinfer", "onnxruntime"))
        files = row["file_bytes"]
        lines.append(
            f"| {row['model']} | {files['hashinfer'] / 1024:.0f} KiB | {files['onnxruntime'] / 1024:.0f} KiB | "
            f"{' | '.join(cells)} | {ours:.1f} MiB, {theirs:.1f} MiB |"
        )
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], where: dict[str, Any], path: Path) -> None:
    """Time for each model and batch beside onnxruntime's, and file sizes."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), width_ratios=(3, 1.4), layout="constrained")
    width, labels = 0.38, []
    for k, (row, batch) in enumerate([(r, b) for r in rows for b in BATCHES]):
        t = row["time"][str(batch)]
        left.bar(
            k - width / 2, t["hashinfer_us"] / batch, width, color="#1b7f5c", label="hashinfer" if k == 0 else None
        )
        left.bar(
            k + width / 2,
            t["onnxruntime_us"] / batch,
            width,
            color="#9aa5b1",
            label="onnxruntime, dense" if k == 0 else None,
        )
        labels.append(f"{row['model'].removeprefix('mnist-')}\nbatch {batch}")
    left.set_xticks(range(len(labels)), labels, fontsize=7, rotation=45, ha="right")
    left.set_ylabel("microseconds a digit")
    left.legend(frameon=False)
    left.set_title(f"One thread, median. {where['cpu']}", fontsize=9, loc="left")
    names = [row["model"].removeprefix("mnist-") for row in rows]
    sizes = [row["file_bytes"]["hashinfer"] / 1024 for row in rows]
    dense = [row["file_bytes"]["onnxruntime"] / 1024 for row in rows]
    right.barh([n + " " for n in names], sizes, 0.38, color="#1b7f5c", align="edge")
    right.barh([n + " " for n in names], dense, -0.38, color="#9aa5b1", align="edge")
    right.set_xscale("log")
    right.set_xlim(left=10)
    right.set_xlabel("file, KiB")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
