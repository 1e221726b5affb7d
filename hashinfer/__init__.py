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

_PLACES = {
    "InferenceSession": "hashinfer.session.choice",
    "ExecutionMode": "hashinfer.session.options",
    "GraphOptimizationLevel": "hashinfer.session.options",
    "ModelMetadata": "hashinfer.session.options",
    "NodeArg": "hashinfer.session.options",
    "RunOptions": "hashinfer.session.options",
    "SessionOptions": "hashinfer.session.options",
    "get_all_providers": "hashinfer.session.options",
    "get_available_providers": "hashinfer.session.options",
    "get_device": "hashinfer.session.options",
    "HashinferError": "hashinfer.errors",
    "InputError": "hashinfer.errors",
    "MemoryLimitError": "hashinfer.errors",
    "ModelError": "hashinfer.errors",
    "OpError": "hashinfer.errors",
    "SchemeError": "hashinfer.errors",
    "TimeLimitError": "hashinfer.errors",
    "UnsupportedError": "hashinfer.errors",
}

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
    if name not in _PLACES:
        raise AttributeError(f"module 'hashinfer' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})


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
