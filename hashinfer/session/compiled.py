"""The face of a session over a model compiled by `hashinfer build`: no compiler, no model format, NumPy alone."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np

from hashinfer.errors import InputError, MemoryLimitError, TimeLimitError
from hashinfer.native.runtime import LARGEST_BATCH, Library
from hashinfer.session.face import Array, Feed, Kind, Out, Providers, Session, Value, apart, given_outputs, seconds_of
from hashinfer.session.options import ModelMetadata, RunOptions, SessionOptions


class CompiledSession(Session):
    """A loaded shared library. Arguments, calls and errors are those of hashinfer.InferenceSession.

    A run uses the calling thread alone: threads, intra_op_num_threads and memory_budget are accepted and change
    nothing. A time limit is looked at between the rows of a batch: a row once begun, or a run without a batch, is
    finished. What only a plan knows (plan, report, profile) is not here.
    """

    _inputs: dict[str, _Port]
    _outputs: list[_Port]

    def __init__(
        self,
        path: str | os.PathLike[str],
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
        self._library = Library(path)
        about = self._library.about
        needed = self.weight_bytes + self._library.scratch_bytes
        if max_memory is not None and needed > max_memory:
            raise MemoryLimitError(f"the compiled model takes {needed} bytes; at most {max_memory} are allowed")
        self._batched = bool(about["batched"])
        self._inputs = {v["name"]: _Port.of(v) for v in about["inputs"]}
        self._outputs = [_Port.of(v) for v in about["outputs"]]
        self._growing = [(k, v.name) for k, v in enumerate(self._inputs.values()) if v.grows]

    def run(
        self,
        output_names: Sequence[str] | None,
        input_feed: Feed,
        run_options: RunOptions | None = None,
        *,
        out: Out | None = None,
        time_limit: float | None = None,
    ) -> list[Any]:
        """The outputs named (all where None), in that order. As InferenceSession.run, its errors among it."""
        if self._closed:
            raise InputError("the session is closed")
        seconds = self._time_limit if time_limit is None else seconds_of(time_limit)
        names = self._names(output_names)
        arrays = self._arrays(input_feed)
        batch = self._batch(arrays)
        kinds = {v.name: v.kind(batch) for v in self._outputs}
        given = given_outputs(out, names, kinds)
        targets = [self._target(v.name, kinds[v.name], given) for v in self._outputs]
        if given:
            arrays = apart(arrays, given)
        if seconds is not None and self._batched:
            self._run_in_time(arrays, targets, batch, seconds)
        elif batch or not self._batched:
            self._library.run(arrays, targets, batch if self._batched else 1)
        by_name = {v.name: t for v, t in zip(self._outputs, targets, strict=True)}
        return [by_name[name] for name in names]

    def _run_in_time(self, arrays: list[Array], targets: list[Array], batch: int, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        for row in range(batch):
            if time.monotonic() > deadline:
                over = f"the run's time limit of {seconds:g} s is over after {row} of {batch} rows"
                raise TimeLimitError(f"{self._library.path}: {over}")
            ins = [a[row : row + 1] if v.grows else a for v, a in zip(self._inputs.values(), arrays, strict=True)]
            outs = [
                t[row * v.rows : (row + 1) * v.rows] if v.grows else t
                for v, t in zip(self._outputs, targets, strict=True)
            ]
            self._library.run(ins, outs, 1)

    def get_modelmeta(self) -> ModelMetadata:
        """What the model's file said of itself when it was compiled."""
        return ModelMetadata(**self._library.about["meta"])

    @property
    def threads(self) -> int:
        """Threads of one run: the caller's."""
        return 1

    @property
    def weight_bytes(self) -> int:
        """Bytes of constants in the library."""
        return int(self._library.about["weights"])

    @property
    def file_bytes(self) -> int:
        """Size of the library."""
        return os.path.getsize(self._library.path)  # noqa: PTH202

    def __reduce__(self) -> tuple[Any, ...]:
        opened = partial(CompiledSession, max_memory=self._max_memory, time_limit=self._time_limit)
        return opened, (self._library.path, self._options)

    def _batch(self, arrays: Sequence[Array]) -> int:
        """Rows of the inputs that have a batch dimension."""
        batch, first = 1, ""
        for k, name in self._growing:
            if first and len(arrays[k]) != batch:
                raise InputError(f"input {name!r} has {len(arrays[k])} rows and {first!r} has {batch}")
            batch, first = len(arrays[k]), name
        if batch > LARGEST_BATCH:
            raise InputError(f"a batch of {batch} rows; a compiled model takes at most {LARGEST_BATCH} at once")
        return batch

    def _target(self, name: str, kind: Kind, given: Mapping[str, Array]) -> Array:
        if name in given:
            return given[name]
        dtype, shape = kind
        if self._max_memory is not None and (size := dtype.itemsize * math.prod(shape)) > self._max_memory:
            raise MemoryLimitError(f"output {name!r} takes {size} bytes; at most {self._max_memory} are allowed")
        return np.empty(shape, dtype)


@dataclass(frozen=True, slots=True)
class _Port(Value):
    """An input or output as the library describes it. rows: an output's, for each row of the batch, where it grows."""

    dtype: np.dtype[Any]
    shape: list[int | str | None]
    grows: bool
    rows: int

    @classmethod
    def of(cls, about: Mapping[str, Any]) -> Self:
        """From the library's JSON."""
        return cls(**{**about, "dtype": np.dtype(about["dtype"])})

    def kind(self, batch: int) -> Kind:
        """dtype and shape for a batch."""
        shape = [d if isinstance(d, int) else batch for d in self.shape]
        return self.dtype, tuple([self.rows * batch, *shape[1:]] if self.grows else shape)
