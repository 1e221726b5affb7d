"""hashinfer: inference for neural networks compressed by the hashing trick, their weight matrices never built.

    import hashinfer
    session = hashinfer.InferenceSession("model.hnet")
    logits = session(images)

Nothing heavy is imported before it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PLACES = ("hashinfer.errors", "hashinfer.session.options", "hashinfer.session.choice")
"""The modules that hold the names of __all__, looked at in this order: the later ones take longer to import."""

if TYPE_CHECKING:
    from hashinfer.errors import (
        HashinferError,
        InputError,
        MemoryLimitError,
        ModelError,
        OpError,
        SchemeError,
        TimeLimitError,
        UnsupportedError,
    )
    from hashinfer.session.options import (
        ExecutionMode,
        GraphOptimizationLevel,
        ModelMetadata,
        NodeArg,
        RunOptions,
        SessionOptions,
        get_all_providers,
        get_available_providers,
        get_device,
    )
    from hashinfer.session.session import InferenceSession


def __getattr__(name: str) -> Any:
    if name in __all__:
        for place in _PLACES:
            if hasattr(module := import_module(place), name):
                return getattr(module, name)
    raise AttributeError(f"module 'hashinfer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = [
    "ExecutionMode",
    "GraphOptimizationLevel",
    "HashinferError",
    "InferenceSession",
    "InputError",
    "MemoryLimitError",
    "ModelError",
    "ModelMetadata",
    "NodeArg",
    "OpError",
    "RunOptions",
    "SchemeError",
    "SessionOptions",
    "TimeLimitError",
    "UnsupportedError",
    "get_all_providers",
    "get_available_providers",
    "get_device",
]
