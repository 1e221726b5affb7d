"""What this process takes, as the system counts it. Linux tells; elsewhere only the peak is known, or nothing."""

import sys
from contextlib import suppress
from pathlib import Path

_FIELDS = {"VmRSS": "rss", "RssAnon": "anonymous", "VmHWM": "peak"}


def process_memory() -> dict[str, int]:
    """Bytes: rss, anonymous, peak; fewer where the system does not say."""
    found: dict[str, int] = {}
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name in _FIELDS:
                found[_FIELDS[name]] = int(rest.split()[0]) * 1024
        return found
    with suppress(ImportError):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        found["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return found


def reset_peak() -> None:
    """Let `peak` count from what the process takes now, where the system allows that."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def readable(size: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"
