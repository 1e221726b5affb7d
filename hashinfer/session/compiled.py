"""The face of a session over a model compiled by `hashinfer build`: no compiler, no model format, NumPy alone."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hashinfer.errors import InputError, MemoryLimitError, TimeLimitError
from hashinfer.native.runtime import LARGEST_BATCH, Array, Library
from hashinfer.session.options import (
    PROVIDER,
    ModelMetadata,
    NodeArg,
    RunOptions,
    SessionOptions,
    check_providers,
    seconds_of,
)


class CompiledSession:
    """A loaded shared library. Arguments, calls and errors are those of hashinfer.InferenceSession.

    A run uses the calling thread alone: threads, intra_op_num_threads and memory_budget are accepted and change
    nothing. A time limit is looked at between the rows of a batch: a row once begun, or a run without a batch, is
    finished. What only a plan knows (plan, report, profile) is not here.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        sess_options: SessionOptions | None = None,
        providers: Sequence[str | tuple[str, Mapping[str, Any]]] | None = None,
        provider_options: Sequence[Mapping[str, Any]] | None = None,
        *,
        threads: int | None = None,
        max_memory: int | None = None,
        time_limit: float | None = None,
        memory_budget: int | float | str | None = None,
    ) -> None:
        check_providers(providers)
        self._time_limit = seconds_of(time_limit)
        if max_memory is not None and (not isinstance(max_memory, int) or max_memory < 1):
            raise InputError(f"max_memory is {max_memory!r}; expected a number of bytes above 0")
        self._options = sess_options or SessionOptions()
        self._max_memory = max_memory
        self._library = Library(path)
        about = self._library.about
        if max_memory is not None and self.weight_bytes + self._library.scratch_bytes > max_memory:
            needed = self.weight_bytes + self._library.scratch_bytes
            raise MemoryLimitError(f"the compiled model takes {needed} bytes; at most {max_memory} are allowed")
        self._batched = bool(about["batched"])
        self._inputs = [_Value(v) for v in about["inputs"]]
        self._outputs = [_Value(v) for v in about["outputs"]]
        self._closed = False

    def run(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Any],
        run_options: RunOptions | None = None,
        *,
        out: Sequence[Array] | Mapping[str, Array] | None = None,
        time_limit: float | None = None,
    ) -> list[Any]:
        """The outputs named (all where None), in that order. As InferenceSession.run, its errors among it."""
        if self._closed:
            raise InputError("the session is closed")
        seconds = self._time_limit if time_limit is None else seconds_of(time_limit)
        names = self._names(output_names)
        arrays, batch = self._arrays(input_feed)
        given = self._given(out, names, batch)
        targets = [self._target(v, given, batch) for v in self._outputs]
        if given and any(np.may_share_memory(t, x) for t in given.values() for x in arrays):
            arrays = [x.copy() for x in arrays]
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
            ins = [a[row : row + 1] if v.grows else a for v, a in zip(self._inputs, arrays, strict=True)]
            outs = [
                t[row * v.rows : (row + 1) * v.rows] if v.grows else t
                for v, t in zip(self._outputs, targets, strict=True)
            ]
            self._library.run(ins, outs, 1)

    def __call__(self, x: Any) -> Any:
        """The first output for a model of one input."""
        if len(self._inputs) != 1:
            names = ", ".join(v.name for v in self._inputs)
            raise InputError(f"the model has {len(self._inputs)} inputs ({names}); use run")
        return self.run(None, {self._inputs[0].name: x})[0]

    def get_inputs(self) -> list[NodeArg]:
        """The model's inputs."""
        return [NodeArg(v.name, v.type, list(v.shape)) for v in self._inputs]

    def get_outputs(self) -> list[NodeArg]:
        """The model's outputs."""
        return [NodeArg(v.name, v.type, list(v.shape)) for v in self._outputs]

    def get_overridable_initializers(self) -> list[NodeArg]:
        """None: initializers are constants here."""
        return []

    def get_modelmeta(self) -> ModelMetadata:
        """What the model's file said of itself when it was compiled."""
        return ModelMetadata(**self._library.about["meta"])

    def get_providers(self) -> list[str]:
        """The one provider there is."""
        return [PROVIDER]

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        """No options are set."""
        return {PROVIDER: {}}

    def get_session_options(self) -> SessionOptions:
        """The options the session was made with."""
        return self._options

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

    def close(self) -> None:
        """Later calls raise InputError. The library stays mapped: other sessions may use it."""
        self._closed = True

    def __enter__(self) -> CompiledSession:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reload, (self._library.path, self._options, self._max_memory, self._time_limit)

    def _names(self, names: Sequence[str] | None) -> Sequence[str]:
        known = [v.name for v in self._outputs]
        if names is None or len(names) == 0:
            return known
        if isinstance(names, str):
            raise InputError(f"output_names is the string {names!r}; expected a list of names")
        for name in names:
            if name not in known:
                raise InputError(f"the model has no output {name!r}; it has {', '.join(map(repr, known))}")
        return names

    def _arrays(self, feed: Mapping[str, Any]) -> tuple[list[Array], int]:
        if not isinstance(feed, Mapping):
            raise InputError(f"input_feed is a {type(feed).__name__}; expected a dict of name -> array")
        known = [v.name for v in self._inputs]
        for name in feed:
            if name not in known:
                raise InputError(f"the model has no input {name!r}; it has {', '.join(map(repr, known))}")
        arrays, batch, first = [], 1, ""
        for value in self._inputs:
            if value.name not in feed:
                raise InputError(f"input {value.name!r} is missing; given are {', '.join(map(repr, feed)) or 'none'}")
            array = value.array(feed[value.name])
            if value.grows:
                if first and len(array) != batch:
                    raise InputError(f"input {value.name!r} has {len(array)} rows and {first!r} has {batch}")
                batch, first = len(array), value.name
            arrays.append(array)
        if batch > LARGEST_BATCH:
            raise InputError(f"a batch of {batch} rows; a compiled model takes at most {LARGEST_BATCH} at once")
        return arrays, batch

    def _given(
        self, out: Sequence[Array] | Mapping[str, Array] | None, names: Sequence[str], batch: int
    ) -> dict[str, Array]:
        if out is None:
            return {}
        if len(set(names)) != len(names):
            raise InputError(f"out is given and an output is asked for twice: {', '.join(map(repr, names))}")
        given = dict(out) if isinstance(out, Mapping) else dict(zip(names, out, strict=False))
        if set(given) != set(names) or len(out) != len(names):
            raise InputError(f"out holds {len(out)} arrays; expected one for each of {', '.join(map(repr, names))}")
        values = {v.name: v for v in self._outputs}
        for name, array in given.items():
            shape = values[name].full_shape(batch)
            if not isinstance(array, np.ndarray):
                raise InputError(f"out for {name!r} is a {type(array).__name__}; expected an array")
            if array.dtype != values[name].dtype or array.shape != shape:
                found = f"{array.dtype}{list(array.shape)}"
                raise InputError(f"out for {name!r} is {found}; expected {values[name].dtype}{list(shape)}")
            if not (array.flags.c_contiguous and array.flags.writeable and array.dtype.isnative):
                raise InputError(f"out for {name!r} is not a C-contiguous writable array")
        found_arrays = list(given.values())
        if any(np.may_share_memory(a, b) for k, a in enumerate(found_arrays) for b in found_arrays[:k]):
            raise InputError("two arrays of out share memory")
        return given

    def _target(self, value: _Value, given: Mapping[str, Array], batch: int) -> Array:
        array = given.get(value.name)
        if array is not None:
            return array
        shape = value.full_shape(batch)
        size = value.dtype.itemsize
        for d in shape:
            size *= d
        if self._max_memory is not None and size > self._max_memory:
            raise MemoryLimitError(f"output {value.name!r} takes {size} bytes; at most {self._max_memory} are allowed")
        return np.empty(shape, value.dtype)


def _reload(path: str, options: SessionOptions, max_memory: int | None, time_limit: float | None) -> CompiledSession:
    return CompiledSession(path, options, max_memory=max_memory, time_limit=time_limit)


class _Value:
    """An input or output as the library describes it."""

    __slots__ = ("dtype", "grows", "name", "rows", "shape", "type")

    def __init__(self, about: Mapping[str, Any]) -> None:
        self.name: str = about["name"]
        self.type: str = about["type"]
        self.dtype = np.dtype(about["dtype"])
        self.shape: list[int | str | None] = about["shape"]
        self.grows: bool = about["grows"]
        self.rows: int = about["rows"]

    def full_shape(self, batch: int) -> tuple[int, ...]:
        """The shape for a batch; an output's first dimension may be several rows for each of the input's."""
        shape = [d if isinstance(d, int) else batch for d in self.shape]
        return tuple([self.rows * batch, *shape[1:]] if self.grows else shape)

    def _fits(self, shape: tuple[int, ...]) -> bool:
        return len(shape) == len(self.shape) and all(
            not isinstance(e, int) or e == d for e, d in zip(self.shape, shape, strict=True)
        )

    def array(self, given: Any) -> Array:
        """`given` as a C-contiguous array of this type. Raises InputError where it does not fit."""
        if (
            type(given) is np.ndarray
            and given.dtype is self.dtype
            and given.flags.c_contiguous
            and self._fits(given.shape)
        ):
            return given
        what = f"input {self.name!r}"
        try:
            array = np.asarray(given)
        except (ValueError, TypeError) as error:
            raise InputError(f"{what} cannot be made an array: {error}") from None
        expected = "[" + ", ".join("?" if d is None else str(d) for d in self.shape) + "]"
        if array.dtype.newbyteorder("=") != self.dtype:
            raise InputError(f"{what} is {array.dtype}{list(array.shape)}; expected {self.dtype}{expected}")
        if not self._fits(array.shape):
            raise InputError(f"{what} has shape {list(array.shape)}; expected {expected}")
        return np.ascontiguousarray(array, self.dtype).reshape(array.shape)
