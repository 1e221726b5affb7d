"""Printing: results to standard output, progress and notes to standard error, JSON where asked."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console, OverflowMethod
    from rich.table import Table


def print_json(data: Any, file: TextIO | None = None) -> None:
    """One JSON document; NaN and infinities as strings, which JSON has no numbers for."""
    print(json.dumps(_finite(data), indent=2, allow_nan=False, default=str), file=file)


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return str(data) if isinstance(data, float) and not math.isfinite(data) else data


def report_console(width: int = 200) -> Console:
    """Standard output, of this width where that is no terminal."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = width
    return console


def report_table(
    title: str | None, *columns: str, left: int | None = None, overflow: OverflowMethod = "ellipsis"
) -> Table:
    """A table without lines. left: how many of the columns are aligned to the left, by default all."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for k, column in enumerate(columns):
        table.add_column(column, justify="left" if left is None or k < left else "right", overflow=overflow)
    return table


@contextmanager
def row_progress(rows: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error while rows are worked through, where that is a terminal; yields what to tell it."""
    if not sys.stderr.isatty():
        yield lambda _done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("rows", total=rows)
        yield lambda done: progress.update(task, completed=done)


@contextmanager
def compiling_notice() -> Iterator[None]:
    """Say on standard error that kernels are being compiled, while they are and only then."""
    from hashinfer.kernels import jit

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
                from rich.console import Console

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
