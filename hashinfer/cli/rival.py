"""onnxruntime on a model's dense twin, as something to measure against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hashinfer.errors import InputError
from hashinfer.plan.limits import physical_memory

if TYPE_CHECKING:
    from hashinfer.session.session import InferenceSession

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Rival:
    """An onnxruntime session of the dense twin, its name with the version, and the twin's size as a file."""

    name: str
    file_bytes: int
    session: Any

    def run(self, feed: Mapping[str, Array]) -> list[Any]:
        """All outputs."""
        return list(self.session.run(None, feed))

    def difference(self, ours: InferenceSession, feed: Mapping[str, Array]) -> float:
        """The largest difference of an output from ours, relative to that output's largest value."""
        from hashinfer.cli.verify import relative_error  # noqa: PLC0415

        worst = 0.0
        for a, b in zip(ours.run(None, feed), self.run(feed), strict=True):
            x, y = np.asarray(a), np.asarray(b)
            if x.shape != y.shape or x.dtype != y.dtype:
                return float("inf")
            worst = max(worst, relative_error(x, y))
        return worst


def open_rival(model: str, threads: Sequence[int]) -> dict[int, Rival]:
    """A session for each number of threads.

    Raises InputError where onnxruntime is not installed or refuses the model, MemoryLimitError where the dense
    matrices take more than this machine's memory.
    """
    import onnx  # noqa: PLC0415

    from hashinfer.model.dense import dense_twin  # noqa: PLC0415

    try:
        import onnxruntime  # noqa: PLC0415
    except ImportError:
        raise InputError("onnxruntime is not installed: nothing to run the dense twin with") from None
    data = dense_twin(onnx.load(model), physical_memory()).SerializeToString()
    made = {}
    for count in threads:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = count
        options.log_severity_level = 4
        try:
            session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(f"onnxruntime refuses the dense twin: {line}") from None
        made[count] = Rival(f"onnxruntime {onnxruntime.__version__}", len(data), session)
    return made
