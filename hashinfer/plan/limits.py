"""How many bytes a run may take when nobody says: what this machine, or this container, has."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_CGROUP_FILES = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
FALLBACK = 2**34


def physical_memory() -> int:
    """Bytes of RAM that this process may use: the machine's, or its cgroup's where that is less."""
    total = FALLBACK
    with suppress(AttributeError, ValueError, OSError):
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in _CGROUP_FILES:
        with suppress(OSError, ValueError):
            total = min(total, int(path.read_text()))
    return total
