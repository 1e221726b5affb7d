"""Environments of processes that tests start."""

from __future__ import annotations

import os


def unmeasured(**more: str) -> dict[str, str]:
    """This process's environment without coverage: for what runs compiled code alone, where it only takes time, and for
    what is interrupted on purpose, as an interrupt may leave the lock of coverage's own collector taken."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")} | more
