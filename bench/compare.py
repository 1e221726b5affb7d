"""Measure hashinfer beside dense engines, print the tables, keep them and draw them.

    python -m bench.compare [--quick] [--only nets,memory,growth,kernels] [--out bench/results]

Every figure is a median after a warm-up, of engines that take turns (bench.timing), with as many threads for one as for
the other, and after each engine's answer was held against ours (bench.peers). Writes compare.json, compare.md,
kernels.md, a picture of each part and, where --out is as it is, the measured part of the README. With --only, the other
parts stay as they were saved.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench import growth, kernels, limits, memory, nets, peers, race, readme, tables
from bench.environment import environment
from hashinfer.files import atomic_write

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
PARTS = ("nets", "memory", "growth", "kernels")

Tell = Callable[[str], None]


def main() -> None:
    """Measure what is asked for; save after each part."""
    options = _options()
    saved = options.out / "compare.json"
    parts: dict[str, Any] = json.loads(saved.read_text()) if saved.exists() and options.only != PARTS else {}
    where = environment()
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        for name in options.only:
            started, load = time.perf_counter(), os.getloadavg()[0] if hasattr(os, "getloadavg") else None
            with _Progress(name) as tell, tempfile.TemporaryDirectory() as folder:
                found = MEASURE[name](options, Path(folder), tell)
            took = time.perf_counter() - started
            part = {"environment": where, "quick": options.quick, "load_before": load, "seconds": round(took, 1)}
            part |= found
            parts = {key: part if key == name else parts[key] for key in PARTS if key == name or key in parts}
            _save(parts, options.out)
            print(f"{name}: {took:.0f} s", file=sys.stderr)
    except peers.DisagreementError as error:
        sys.exit(f"bench: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    print(tables.report({name: parts[name] for name in options.only}))
    from bench.draw import draw

    for path in draw(parts, options.out):
        print(f"wrote {path}", file=sys.stderr)
    if options.out == RESULTS:
        readme.update(ROOT / "README.md", readme.render(parts))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--quick", action="store_true", help="fewer cases and repeats: under two minutes")
    parser.add_argument("--only", type=_list_of("part", PARTS), default=PARTS, help="parts, with commas between them")
    parser.add_argument("--nets", type=_list_of("net", tuple(nets.NETS)), help="of the part nets, only these")
    return parser.parse_args()


def _list_of(what: str, known: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        asked = [name.strip() for name in text.split(",")]
        unknown = [name for name in asked if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is no {what}; expected some of {', '.join(known)}")
        return tuple(name for name in known if name in asked)

    return parse


class _Progress:
    """Tells on standard error what is being measured: one line that changes on a terminal, lines elsewhere."""

    def __init__(self, part: str) -> None:
        from rich.console import Console

        self.part = part
        self.console = Console(stderr=True, highlight=False)
        self.status = self.console.status(part)

    def __enter__(self) -> Tell:
        if self.console.is_terminal:
            self.status.start()
        return self._tell

    def __exit__(self, *_exception: object) -> None:
        self.status.stop()

    def _tell(self, text: str) -> None:
        if self.console.is_terminal:
            self.status.update(f"{self.part}: {text}")
        else:
            print(f"{self.part}: {text}", file=sys.stderr, flush=True)


def _nets(options: argparse.Namespace, folder: Path, tell: Tell) -> dict[str, Any]:
    effort = race.QUICK if options.quick else race.Effort()
    names = options.nets or (nets.QUICK if options.quick else tuple(nets.NETS))
    found = [race.race(nets.NETS[name], effort, folder, tell) for name in names]
    tell("a graph of one node")
    return {"nets": found, "overhead": race.one_node_graph()}


def _memory(options: argparse.Namespace, folder: Path, tell: Tell) -> dict[str, Any]:
    models = []
    for name in nets.QUICK if options.quick else nets.NETS:
        net, dense = nets.NETS[name], None
        for variant in net.variants[:2]:
            tell(f"{name}, {variant.label}")
            model, feed = folder / "model.hnet", folder / "feed.npz"
            proto = net.build(variant)
            model.write_bytes(proto.SerializeToString())
            np.savez(feed, **net.feeds(1)[0])
            engines = {memory.HASHINFER: memory.measure(memory.HASHINFER, model, feed)}
            if dense is None:
                dense = twin = peers.twin_of(proto, folder)
                for peer, path in ((peers.FP32, twin.fp32), (peers.INT8, twin.int8)):
                    tell(f"{name}, {peer}")
                    engines[peer] = memory.measure(memory.ONNXRUNTIME, path, feed)
                twin.drop()
            models.append({"net": name, "variant": variant.label, "engines": engines})
    return {"models": models}


def _growth(options: argparse.Namespace, folder: Path, tell: Tell) -> dict[str, Any]:
    widths = []
    for width in growth.QUICK_WIDTHS if options.quick else growth.WIDTHS:
        tell(f"width {width}")
        widths.append(growth.grow(width, 0.05 if options.quick else 0.3, folder))
    return {"widths": widths}


def _kernels(options: argparse.Namespace, folder: Path, tell: Tell) -> dict[str, Any]:
    tell("this machine's limits")
    peaks = limits.measure()
    grid = kernels.QUICK if options.quick else kernels.Grid()
    entries: list[dict[str, Any]] = []
    left_out: list[str] = []
    for variant, shape, zeros in kernels.cases(grid):
        tell(f"{shape[0]} x {shape[1]}, {variant.label}, {100 * zeros:.0f} % zeros")
        found, skipped = kernels.table(variant, shape, zeros, grid, peaks)
        entries += found
        left_out += skipped
    verdicts = {
        f"{100 * zeros:.0f} % zero inputs": kernels.verdict([e for e in entries if e["zeros"] == zeros])
        for zeros in grid.zeros
    }
    return {"limits": peaks.data(), "verdicts": verdicts, "cases": entries, "left_out": left_out}


MEASURE = {"nets": _nets, "memory": _memory, "growth": _growth, "kernels": _kernels}


def _save(parts: dict[str, Any], folder: Path) -> None:
    whole = parts | {}
    texts = {"compare.json": json.dumps(whole, indent=1) + "\n", "compare.md": tables.report(parts)}
    if "kernels" in parts:
        texts["kernels.md"] = tables.kernel_cases(parts)
    for name, text in texts.items():
        with atomic_write(folder / name) as file:
            file.write(text.encode())


if __name__ == "__main__":
    main()
