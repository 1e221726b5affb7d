"""Printing: results to standard output, progress and notes to standard error, JSON where asked."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO


def print_json(data: Any, file: TextIO | None = None) -> None:
    """One JSON document; NaN and infinities as strings, which JSON has no numbers for."""
    print(json.dumps(_finite(data), indent=2, allow_nan=False, default=str), file=file or sys.stdout)


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return str(data) if isinstance(data, float) and not math.isfinite(data) else data


@contextmanager
def row_progress(rows: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error while rows are worked through, where that is a terminal; yields what to tell it."""
    if not sys.stderr.isatty():
        yield lambda _done: None
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import Progress  # noqa: PLC0415

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("rows", total=rows)
        yield lambda done: progress.update(task, completed=done)


@contextmanager
def compiling_notice() -> Iterator[None]:
    """Say on standard error that kernels are being compiled, while they are and only then."""
    from hashinfer.kernels import jit  # noqa: PLC0415

    status: Any = None
    started = False

    def listener(name: str) -> None:
        nonlocal status, started
        if not sys.stderr.isatty():
            if not started:
                print("compiling kernels, once; later runs reuse them ...", file=sys.stderr)
        else:
            text = f"compiling kernel {name} (once; later runs reuse it)"
            if status is None:
                from rich.console import Console  # noqa: PLC0415

                status = Console(stderr=True).status(text)
                status.start()
            status.update(text)
        started = True

    jit.compile_listeners.append(listener)
    try:
        yield
    finally:
        jit.compile_listeners.remove(listener)
        if status is not None:
            status.stop()
