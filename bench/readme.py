"""The measured part of the README, between two marks: written by bench.compare, and held to compare.json by a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.peers import FP32, INT8
from bench.tables import duration, size, table, where
from bench.targets import figures
from hashinfer.files import atomic_write

END = "<!-- end of what was measured -->\n"
SHOWN = ("dyadic 64", "dyadic 8", "dyadic 512", "xxh32/16 64", "xxh32/1 64", "xxh32/16 1000")
BATCHES = (1, 64)


def render(parts: dict[str, Any]) -> str:
    """The figures to reach and one line for each net, as Markdown."""
    rows = [(f.what, f.target, f.measured, {True: "yes", False: "**no**", None: ""}[f.reached]) for f in figures(parts)]
    texts = [where(parts), table(("figure", "target", "measured", "reached"), rows)]
    if "nets" in parts:
        texts.append(table(("net, one thread", "file", *_headings()), _nets(parts["nets"])))
    return "\n\n".join(texts) + "\n"


def _headings() -> list[str]:
    return [f"batch {batch}: time; times faster than {FP32}, {INT8}" for batch in BATCHES]


def _nets(part: dict[str, Any]) -> list[tuple[str, ...]]:
    rows = []
    for net in part["nets"]:
        cases = {case["batch"]: case for case in net["cases"] if case["threads"] == 1}
        for label in [name for name in SHOWN if name in net["variants"]]:
            file = f"{size(net['variants'][label]['file_bytes'])} of {size(net['dense_bytes'])}"
            rows.append((f"{net['net']}, {label}", file, *(_cell(cases.get(batch), label) for batch in BATCHES)))
    return rows


def _cell(case: dict[str, Any] | None, label: str) -> str:
    if case is None or label not in case["us"]:
        return "not measured"
    faster = case["faster"].get(label, {})
    found = [f"{faster[peer]['median']:.3g}" if peer in faster else "-" for peer in (FP32, INT8)]
    return f"{duration(case['us'][label]['median'])}; {', '.join(found)}"


def begin(program: str) -> str:
    """The mark before what `python -m PROGRAM` measured."""
    return f"<!-- measured by python -m {program} -->\n"


def between(text: str, program: str = "bench.compare") -> str:
    """What stands between a program's marks. Raises ValueError where they are missing."""
    start = text.index(begin(program)) + len(begin(program))
    return text[start : text.index(END, start)]


def update(path: Path, measured: str, program: str = "bench.compare") -> None:
    """Write what a program measured into the README at `path`."""
    text = path.read_text()
    start = text.index(begin(program)) + len(begin(program))
    with atomic_write(path) as file:
        file.write((text[:start] + measured + text[text.index(END, start) :]).encode())
