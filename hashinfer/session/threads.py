"""How many threads a session uses when nobody says."""

import math
import os
from contextlib import suppress
from pathlib import Path

from hashinfer.errors import InputError

ENVIRONMENT = "HASHINFER_NUM_THREADS"
MAX_THREADS = 1024


def default_threads() -> int:
    """HASHINFER_NUM_THREADS; without it, the processors this process may run on, within its cgroup's quota.

    Raises InputError where the variable is no number from 1 to 1024.
    """
    chosen = os.environ.get(ENVIRONMENT)
    if chosen:
        if not chosen.isdecimal() or not 1 <= int(chosen) <= MAX_THREADS:
            raise InputError(f"{ENVIRONMENT} is {chosen!r}; expected a whole number from 1 to {MAX_THREADS}")
        return int(chosen)
    allowed = os.cpu_count() or 1
    with suppress(AttributeError, OSError):
        allowed = len(os.sched_getaffinity(0))
    return max(1, min(allowed, _quota()))


def _quota() -> int:
    """Processors that the cgroup (version 2 or 1) pays for, rounded up; a large number where there is no limit."""
    with suppress(OSError, ValueError):
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return math.ceil(int(limit) / int(period))
    with suppress(OSError, ValueError):
        limit_us = int(Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").read_text())
        period_us = int(Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us").read_text())
        if limit_us > 0:
            return math.ceil(limit_us / period_us)
    return 2**20
