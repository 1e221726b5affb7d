"""What every session does alike, over whatever runs the model. Imports NumPy alone."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from hashinfer.errors import InputError, MemoryLimitError
from hashinfer.session.options import PROVIDER, NodeArg, SessionOptions

Array = npt.NDArray[Any]
Feed = Mapping[str, Any]
Providers = Sequence[str | tuple[str, Mapping[str, Any]]]
Out = Sequence[Array] | Mapping[str, Array]
Kind = tuple[np.dtype[Any], tuple[int, ...]]
"""dtype and shape of an array."""


def seconds_of(time_limit: float | None) -> float | None:
    """A time limit as it was given. Raises InputError where it is no number of seconds above 0."""
    wrong = isinstance(time_limit, bool) or not isinstance(time_limit, int | float) or not time_limit > 0
    if time_limit is not None and wrong:
        raise InputError(f"time_limit is {time_limit!r}; expected a number of seconds above 0")
    return time_limit


@dataclass(frozen=True, slots=True)
class Value:
    """An input or output of a model.

    dtype: None where it is no tensor. shape: None where the rank is not said; a dimension is a number, a name, or None.
    """

    name: str
    type: str
    dtype: np.dtype[Any] | None
    shape: Sequence[int | str | None] | None

    @property
    def _shape_text(self) -> str:
        if self.shape is None:
            return "of any shape"
        return "[" + ", ".join("?" if d is None else str(d) for d in self.shape) + "]"

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise InputError for a shape that the input does not take."""
        if self.shape is None:
            return
        fits = len(shape) == len(self.shape)
        for expected, found in zip(self.shape, shape, strict=False):
            fits = fits and (expected == found or not isinstance(expected, int))
        if not fits:
            raise InputError(f"input {self.name!r} has shape {list(shape)}; expected {self._shape_text}")

    def array(self, given: Any, limit: float) -> Any:
        """`given` as a C-contiguous native array of the input's dtype; as it is, where the input is no tensor.

        Raises InputError where it does not fit, MemoryLimitError where it must be copied and has more bytes than limit.
        """
        if self.dtype is None:
            return given
        try:
            array = np.asarray(given)
        except (ValueError, TypeError) as error:
            raise InputError(f"input {self.name!r} cannot be made an array: {error}") from None
        if self.dtype.kind in "OUS" and array.dtype.kind in "US":
            array = array.astype(object)
        if array.dtype is not self.dtype and array.dtype.newbyteorder("=") != self.dtype:
            found = f"{array.dtype}{list(array.shape)}"
            raise InputError(f"input {self.name!r} is {found}; expected {self.dtype}{self._shape_text}")
        self.check_shape(array.shape)
        if array.dtype.isnative and array.flags.c_contiguous:
            return array
        if array.nbytes > limit:
            raise MemoryLimitError(
                f"input {self.name!r} must be copied, {array.nbytes} bytes; at most {limit} are allowed"
            )
        return np.array(array, self.dtype, order="C")


class Session:
    """What every session does alike. A subclass says what the inputs and outputs are, and runs the model."""

    _inputs: Mapping[str, Value]
    _outputs: Sequence[Value]
    _limit: float = math.inf
    """Bytes of an input that has to be copied, at most."""
    run: Callable[..., list[Any]]

    def __init__(
        self,
        sess_options: SessionOptions | None,
        providers: Providers | None,
        max_memory: int | None,
        time_limit: float | None,
    ) -> None:
        names = [p if isinstance(p, str) else p[0] for p in providers or ()]
        if names and PROVIDER not in names:
            raise InputError(f"providers are {', '.join(map(repr, names))}; this engine has {PROVIDER!r}")
        if max_memory is not None and (not isinstance(max_memory, int) or max_memory < 1):
            raise InputError(f"max_memory is {max_memory!r}; expected a number of bytes above 0")
        self._options = sess_options or SessionOptions()
        self._max_memory = max_memory
        self._time_limit = seconds_of(time_limit)
        self._closed = False

    def __call__(self, x: Any) -> Any:
        """The first output for a model of one input."""
        if len(self._inputs) != 1:
            raise InputError(f"the model has {len(self._inputs)} inputs ({', '.join(self._inputs)}); use run")
        return self.run(None, {next(iter(self._inputs)): x})[0]

    def get_inputs(self) -> list[NodeArg]:
        """The model's inputs."""
        return [NodeArg(v.name, v.type, list(v.shape or ())) for v in self._inputs.values()]

    def get_outputs(self) -> list[NodeArg]:
        """The model's outputs."""
        return [NodeArg(v.name, v.type, list(v.shape or ())) for v in self._outputs]

    def get_overridable_initializers(self) -> list[NodeArg]:
        """None: initializers are constants here."""
        return []

    def get_providers(self) -> list[str]:
        """The one provider there is."""
        return [PROVIDER]

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        """No options are set."""
        return {PROVIDER: {}}

    def get_session_options(self) -> SessionOptions:
        """The options the session was made with."""
        return self._options

    def close(self) -> None:
        """Later calls raise InputError."""
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _names(self, names: Sequence[str] | None) -> Sequence[str]:
        """The names of the outputs asked for: all where there are none."""
        known = [v.name for v in self._outputs]
        if names is None or len(names) == 0:
            return known
        if isinstance(names, str):
            raise InputError(f"output_names is the string {names!r}; expected a list of names")
        for name in names:
            if name not in known:
                raise InputError(f"the model has no output {name!r}; it has {', '.join(map(repr, known))}")
        return names

    def _arrays(self, feed: Feed) -> list[Array]:
        """The feed's values in the order of the inputs."""
        if not isinstance(feed, Mapping):
            raise InputError(f"input_feed is a {type(feed).__name__}; expected a dict of name -> array")
        for name in feed:
            if name not in self._inputs:
                raise InputError(f"the model has no input {name!r}; it has {', '.join(map(repr, self._inputs))}")
        arrays = []
        for name, value in self._inputs.items():
            if name not in feed:
                raise InputError(f"input {name!r} is missing; given are {', '.join(map(repr, feed)) or 'none'}")
            arrays.append(value.array(feed[name], self._limit))
        return arrays


def given_outputs(out: Out | None, names: Sequence[str], kinds: Mapping[str, Kind | None]) -> dict[str, Array]:
    """The caller's output arrays by name. Raises InputError unless they fit, and are of their kinds where known."""
    if out is None:
        return {}
    if len(set(names)) != len(names):
        raise InputError(f"out is given and an output is asked for twice: {', '.join(map(repr, names))}")
    given = dict(out) if isinstance(out, Mapping) else dict(zip(names, out, strict=False))
    if set(given) != set(names) or len(out) != len(names):
        raise InputError(f"out holds {len(out)} arrays; expected one for each of {', '.join(map(repr, names))}")
    for name, array in given.items():
        if not isinstance(array, np.ndarray):
            raise InputError(f"out for {name!r} is a {type(array).__name__}; expected an array")
        kind = kinds[name]
        if kind is not None and (array.dtype, array.shape) != kind:
            found, expected = (f"{dtype}{list(shape)}" for dtype, shape in ((array.dtype, array.shape), kind))
            raise InputError(f"out for {name!r} is {found}; expected {expected}")
        if not (array.flags.c_contiguous and array.flags.writeable and array.dtype.isnative):
            raise InputError(f"out for {name!r} is not a C-contiguous writable array")
    if any(np.may_share_memory(a, b) for a, b in combinations(given.values(), 2)):
        raise InputError("two arrays of out share memory")
    return given


def apart(arrays: Sequence[Array], targets: Mapping[str, Array]) -> list[Array]:
    """The arrays, those copied that share memory with a target."""
    return [a.copy() if any(np.may_share_memory(a, t) for t in targets.values()) else a for a in arrays]
