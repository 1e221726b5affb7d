"""Heavy use that takes longer than a test may: `python -m tests.heavy [--loads N] [--runs N] [--threads N]`.

Loads and closes sessions, and runs one, from several threads; prints the resident memory as it goes, as JSON lines, and
ends with exit code 1 where it grew by more than `--allowed` MiB after the first tenth, or where an answer changed.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import hashinfer
from tests import nets
from tests.nets import node

F32 = np.float32


def resident() -> int:
    """Bytes of this process in memory. Raises OSError where the system does not say."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def models() -> dict[str, bytes]:
    """One of each way to run: native, shapes that depend on data, the reference implementation, a subgraph."""
    body = onnx.helper.make_graph(
        [node("Relu", ["d"], ["t"])], "then", [], [onnx.helper.make_tensor_value_info("t", 1, None)]
    )
    other = onnx.helper.make_graph(
        [node("Neg", ["d"], ["t"])], "else", [], [onnx.helper.make_tensor_value_info("t", 1, None)]
    )
    dynamic = nets.model(
        [
            node("NonZero", ["x"], ["z"]),
            node("Cast", ["z"], ["c"], to=1),
            node("Concat", ["c", "one"], ["d"], axis=1),
            node("ReduceMax", ["d"], ["m"], keepdims=0),
            node("Greater", ["m", "two"], ["g"]),
            node("If", ["g"], ["y"], then_branch=body, else_branch=other),
        ],
        {"x": (F32, ["N", 9])},
        {"y": (F32, None)},
        {"one": np.ones((2, 1), F32), "two": np.array(2, F32)},
    )
    reference = nets.model(
        [node("LpPool", ["x3"], ["p"], kernel_shape=[2]), node("Flatten", ["p"], ["y"])],
        {"x": (F32, ["N", 9])},
        {"y": (F32, None)},
        {},
    )
    reference.graph.node.insert(0, node("Unsqueeze", ["x", "at"], ["x3"]))
    reference.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "at"))
    return {
        "dyadic": nets.hashed_mlp([9, 300, 7], "dyadic", 8).SerializeToString(),
        "xxh32": nets.hashed_mlp([9, 300, 7], "xxh32", 8).SerializeToString(),
        "dynamic": dynamic.SerializeToString(),
        "reference": reference.SerializeToString(),
    }


def batch(rows: int, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((rows, 9)).astype(F32)
    x[:, ::3] = 0
    return x


def repeat(count: int, action: Callable[[], Any], threads: int, what: str) -> Iterator[int]:
    """Call `action` in threads; yields the resident bytes after each tenth."""
    with ThreadPoolExecutor(threads) as pool:
        for tenth in range(10):
            start = time.time()
            for _ in pool.map(lambda _: action(), range(max(1, count // 10))):
                pass
            gc.collect()
            size = resident()
            rate = round(max(1, count // 10) / (time.time() - start))
            print(json.dumps({what: (tenth + 1) * count // 10, "resident": size, "a second": rate}), flush=True)
            yield size


def grown(sizes: list[int]) -> float:
    """MiB that memory grew by after the first tenth."""
    return (max(sizes[1:]) - sizes[0]) / 2**20


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.heavy", description=(__doc__ or "").split("\n", maxsplit=1)[0]
    )
    parser.add_argument("--loads", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--allowed", type=float, default=8.0, help="MiB")
    given = parser.parse_args()
    files, x = models(), batch(5)
    expected = {name: hashinfer.InferenceSession(data, threads=2)(x) for name, data in files.items()}
    wrong = 0

    def load_all() -> None:
        nonlocal wrong
        for name, data in files.items():
            with hashinfer.InferenceSession(data, threads=2) as session:
                wrong += not np.array_equal(session(x), expected[name])

    shared = {name: hashinfer.InferenceSession(data, threads=2) for name, data in files.items()}
    names = ["dyadic", "xxh32"] * 20 + list(files)

    def run_some() -> None:
        nonlocal wrong
        for name in names:
            wrong += not np.array_equal(shared[name](x), expected[name])

    growth = {}
    if given.loads:
        growth["loads"] = grown(list(repeat(given.loads // len(files), load_all, given.threads, "loads of each")))
    if given.runs:
        rounds = given.runs // len(names)
        growth["runs"] = grown(list(repeat(rounds, run_some, given.threads, f"rounds of {len(names)} runs")))
    print(json.dumps({"grown MiB": growth, "wrong answers": wrong}))
    return int(wrong > 0 or max(growth.values(), default=0) > given.allowed)


if __name__ == "__main__":
    sys.exit(main())
