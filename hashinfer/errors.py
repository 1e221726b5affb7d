"""Typed errors, in three layers: what is wrong with a file, with a call, or with an op while it runs.

Every message names the node and the op where there is one, what was found and what was expected.
"""


class HashinferError(Exception):
    """Base of every error that hashinfer raises on purpose."""


class SchemeError(HashinferError, ValueError):
    """A hash scheme's parameter is out of its range, or disagrees with the weight vector."""


class ModelError(HashinferError, ValueError):
    """A model file cannot be loaded: not an ONNX model, malformed, out of a limit, or using what is unknown here."""


class UnsupportedError(ModelError):
    """A model asks for an op, an attribute or a version that this engine does not have."""


class InputError(HashinferError, ValueError):
    """What a caller passed to a run does not fit the model: a name, a dtype, a rank, a size."""


class OpError(HashinferError, RuntimeError):
    """An op met, while planning or running, values it is not defined for."""


class MemoryLimitError(HashinferError, MemoryError):
    """A plan, a tensor or a file needs more bytes than it may have. Raised before anything is allocated."""


class TimeLimitError(HashinferError, TimeoutError):
    """A run took longer than its time limit. Raised between two of its steps; the session stays usable."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message; the error's name where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def at_node(op: str, node: str, text: str) -> str:
    """`text` with the op and the node it is about in front, as every message about a node begins."""
    return f"{op} node {node!r}: {text}"
