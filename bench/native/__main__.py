"""Sizes and instructions of compiled models on each target, and start-up and memory beside other runtimes.

    python -m bench.native [--out bench/results] [--only targets,peers]

Prints both tables, writes native.json and, where --out is as it is, the README's part. Targets whose tools are missing
are named and left out. Instructions are counted by QEMU, or by callgrind for x86-64, over digits that the shipped test
set begins with: the count of ten rows less that of two, divided by eight.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import readme
from bench.environment import environment
from bench.native import peers, targets
from hashinfer.files import atomic_write

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "bench" / "results"
PARTS: dict[str, Callable[[Path], Any]] = {"targets": targets.measure, "peers": peers.measure}


def render(parts: dict[str, Any]) -> str:
    """The tables of what was measured, as Markdown."""
    texts = [targets.render(parts["targets"])] if "targets" in parts else []
    texts += [peers.render(parts["peers"])] if "peers" in parts else []
    return "\n\n".join(texts) + "\n"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--only", default=",".join(PARTS))
    options = parser.parse_args()
    chosen = options.only.split(",")
    if not set(chosen) <= set(PARTS):
        parser.error(f"--only {options.only}: the parts are {', '.join(PARTS)}")
    saved = options.out / "native.json"
    parts: dict[str, Any] = json.loads(saved.read_text()) if saved.exists() else {}
    for name in chosen:
        with tempfile.TemporaryDirectory() as folder:
            parts[name] = {"environment": environment(), "rows": PARTS[name](Path(folder))}
    options.out.mkdir(parents=True, exist_ok=True)
    with atomic_write(saved) as file:
        file.write((json.dumps(parts, indent=1) + "\n").encode())
    print(render({name: parts[name] for name in chosen}))
    if options.out == RESULTS:
        readme.update(ROOT / "README.md", render(parts), "bench.native")


if __name__ == "__main__":
    sys.exit(main())
