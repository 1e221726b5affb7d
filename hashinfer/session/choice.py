"""hashinfer.InferenceSession: the engine for a model file, the compiled model for a shared library.

A stand-in for the class of hashinfer.session.session, so that opening a library imports no compiler.
"""

import os
import sys
from typing import Any

from hashinfer.native.runtime import SUFFIXES


def _engine() -> Any:
    from hashinfer.session.session import InferenceSession as Engine

    return Engine


class _Choice(type):
    """Calling the class opens a session; a subclass of it is one of the engine's class, as are its attributes."""

    def __new__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **more: Any) -> Any:
        if not bases:
            return super().__new__(cls, name, bases, namespace)
        engine = tuple(_engine() if isinstance(base, _Choice) else base for base in bases)
        return type(engine[0])(name, engine, namespace, **more)

    def __call__(cls, path_or_bytes: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(path_or_bytes, str | os.PathLike) and os.fspath(path_or_bytes).endswith(SUFFIXES):
            from hashinfer.session.compiled import CompiledSession

            return CompiledSession(path_or_bytes, *args, **kwargs)
        return _engine()(path_or_bytes, *args, **kwargs)

    def __instancecheck__(cls, instance: object) -> bool:
        from hashinfer.session.compiled import CompiledSession

        engine = sys.modules.get("hashinfer.session.session")
        return isinstance(instance, CompiledSession) or (engine is not None and isinstance(instance, _engine()))

    def __getattr__(cls, name: str) -> Any:
        return getattr(_engine(), name)


class InferenceSession(metaclass=_Choice):
    """A loaded model; see hashinfer.session.session.InferenceSession.

    A path that ends in .so, .dylib or .dll is a model compiled by `hashinfer build`. Opening it runs its code: trust it
    as you trust a program. Any other source is only data.
    """
