"""onnxruntime on a model's dense twin, as something to measure against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hashinfer.errors import InputError, first_line
from hashinfer.plan.limits import physical_memory
from hashinfer.session.face import Array

if TYPE_CHECKING:
    from hashinfer.session.session import InferenceSession


@dataclass(frozen=True, slots=True)
class Rival:
    """Sessions of the dense twin by threads, the runtime's name with its version, and the twin's size as a file."""

    name: str
    file_bytes: int
    sessions: Mapping[int, Any]

    def run(self, feed: Mapping[str, Array], threads: int) -> list[Any]:
        """All outputs."""
        return list(self.sessions[threads].run(None, feed))

    def difference(self, ours: InferenceSession, feed: Mapping[str, Array]) -> float:
        """The largest difference of an output from ours, relative to that output's largest value."""
        expected = ours.run(None, feed)
        outputs = (pair for count in self.sessions for pair in zip(expected, self.run(feed, count), strict=True))
        return max((relative_error(np.asarray(a), np.asarray(b)) for a, b in outputs), default=0.0)


def relative_error(x: Array, y: Array) -> float:
    """The largest |x - y| over the largest finite |y|; Inf where they differ in kind or NaN or Inf
    stand in different places."""
    if x.shape != y.shape or x.dtype != y.dtype:
        return float("inf")
    if x.dtype.kind not in "fc":
        return 0.0 if np.array_equal(x, y) else float("inf")
    finite = np.isfinite(y)
    if not np.array_equal(finite, np.isfinite(x)) or not np.array_equal(x[~finite], y[~finite], equal_nan=True):
        return float("inf")
    if not finite.any():
        return 0.0
    wide, other = x[finite].astype(np.float64), y[finite].astype(np.float64)
    difference, largest = float(np.abs(wide - other).max()), float(np.abs(other).max())
    return difference / largest if largest else difference


def open_runtime(model: bytes, threads: int = 0) -> Any:
    """A session of onnxruntime. threads: of a run, 0 for its default. Raises what onnxruntime raises."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def open_rival(model: str, threads: Sequence[int]) -> Rival:
    """onnxruntime on the dense twin, for each number of threads.

    Raises InputError where onnxruntime is not installed or refuses the model, MemoryLimitError where the dense
    matrices take more than this machine's memory.
    """
    import onnx

    from hashinfer.model.dense import dense_twin

    try:
        import onnxruntime
    except ImportError:
        raise InputError("onnxruntime is not installed: nothing to run the dense twin with") from None
    data = dense_twin(onnx.load(model), physical_memory()).SerializeToString()
    try:
        sessions = {count: open_runtime(data, count) for count in threads}
    except Exception as error:
        raise InputError(f"onnxruntime refuses the dense twin: {first_line(error)}") from None
    return Rival(f"onnxruntime {onnxruntime.__version__}", len(data), sessions)
