"""`hashinfer run`: outputs, top classes, accuracy, time and memory of a model on given inputs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from hashinfer.cli.console import compiling_notice, print_json, row_progress
from hashinfer.cli.inputs import load_inputs, load_labels
from hashinfer.cli.memory import process_memory, readable
from hashinfer.cli.stream import batch_axis, chunk_rows, chunks
from hashinfer.cli.trade import budget_option
from hashinfer.errors import InputError
from hashinfer.files import NpyWriter, atomic_write
from hashinfer.session.face import Array

if TYPE_CHECKING:
    from hashinfer.session.session import InferenceSession

SHOWN_ROWS = 10


@click.command()
@click.argument("model", type=click.Path())
@click.argument("inputs", nargs=-1, metavar="INPUT...")
@click.option("-o", "--output", help="Write the output here: .npy, .npz for several outputs, - for standard output.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Threads of a run. Default: the processors there are.")
@click.option("--labels", "labels_path", help="An .npy file of class numbers [N]: adds the accuracy.")
@click.option(
    "--top-k", type=click.IntRange(1), default=1, help="Show the K best classes of the first rows (1 by default)."
)
@click.option("--chunk", type=click.IntRange(1), help="Rows to run at a time. Default: see above.")
@budget_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text.")
def command(
    model: str,
    inputs: tuple[str, ...],
    output: str | None,
    threads: int | None,
    labels_path: str | None,
    top_k: int,
    chunk: int | None,
    memory_budget: str | None,
    as_json: bool,
) -> None:
    """Run MODEL on INPUT... and show what comes out.

    INPUT is an .npy file, an .npz file, NAME=FILE, or - for an .npy array on standard input; an input without a name
    goes to the model's next one. Where no row depends on another, or the whole would take more than a quarter of the
    memory, rows are run in chunks.
    """
    from hashinfer.session.session import InferenceSession

    if output is not None and output != "-" and Path(output).suffix not in (".npy", ".npz"):
        raise InputError(f"the output is {output!r}; expected a name that ends in .npy or .npz, or -")
    floor = process_memory()
    with compiling_notice():
        started = time.perf_counter()
        session = InferenceSession(model, threads=threads, memory_budget=memory_budget)
        loaded = time.perf_counter()
        feed = load_inputs(inputs, [v.name for v in session.get_inputs()])
        labels = None if labels_path is None else load_labels(labels_path)
        run = _Run(session, feed, labels, top_k, chunk)
        run.prepare()
        compiled = time.perf_counter()
        run.everything(output)
    figures = {
        "model": model,
        "threads": session.threads,
        "chunk_rows": run.chunk,
        "rows_independent": run.independent,
        **run.figures(),
        "time_ms": {
            "load": 1000 * (loaded - started),
            "first_run": 1000 * (compiled - loaded),
            "run": 1000 * run.seconds,
            "per_row": 1000 * run.seconds / max(run.rows, 1),
        },
        "memory_bytes": _memory(session, run, floor),
    }
    to = sys.stderr if output == "-" else sys.stdout
    if as_json:
        print_json(figures, to)
    else:
        _show(figures, to, top_k)


@dataclass
class _Run:
    session: InferenceSession
    feed: dict[str, Array]
    labels: Array | None
    top_k: int
    chosen: int | None
    rows: int = 0
    seconds: float = 0.0
    kinds: list[tuple[str, list[int]]] = field(default_factory=list)
    correct: int = 0
    top: list[list[dict[str, Any]]] = field(default_factory=list)
    chunk: int | None = None
    independent: bool = False

    def __post_init__(self) -> None:
        self.names = [v.name for v in self.session.get_outputs()]

    def prepare(self) -> None:
        """Check everything and compile what is needed, before an output file is begun."""
        rows = batch_axis(self.session, self.feed)
        if rows is not None:
            self._check_labels(rows)
        if all(v.name in self.feed for v in self.session.get_inputs()):
            self.chunk, self.independent = chunk_rows(self.session, self.feed, self.chosen)
        outputs = self.session.run(None, self.first_part())
        if self.labels is not None:
            scores = np.asarray(outputs[0])
            if scores.ndim != 2 or scores.dtype.kind not in "fiu":
                found = f"{scores.dtype}{list(scores.shape)}"
                raise InputError(f"output {self.names[0]!r} is {found}; labels need scores of shape [N, classes]")

    def _check_labels(self, rows: int) -> None:
        if self.labels is not None and len(self.labels) != rows:
            raise InputError(f"there are {len(self.labels)} labels for {rows} rows of {self.names[0]!r}")

    def first_part(self) -> dict[str, Array]:
        """The inputs of the first chunk."""
        return self.feed if self.chunk is None else {name: a[: self.chunk] for name, a in self.feed.items()}

    def everything(self, output: str | None) -> None:
        """Run all chunks; write them to `output` as they come."""
        rows = batch_axis(self.session, self.feed) or 1
        with _sink(output, self.names) as sink, row_progress(rows) as told:
            started = time.perf_counter()
            for start, rows, outputs in chunks(self.session, self.feed, self.chunk):
                self.seconds += time.perf_counter() - started
                self._note(start, rows, outputs)
                if sink is not None:
                    sink(outputs, rows, self.chunk is not None)
                told(start + (self.chunk or rows))
                started = time.perf_counter()

    def _note(self, start: int, rows: int, outputs: list[Any]) -> None:
        self.rows = rows
        arrays = [np.asarray(value) for value in outputs]
        if not self.kinds:
            shapes = [a.shape if self.chunk is None else (rows, *a.shape[1:]) for a in arrays]
            self.kinds = [(str(a.dtype), list(shape)) for a, shape in zip(arrays, shapes, strict=True)]
        scores = arrays[0]
        if self.labels is not None:
            if self.chunk is None:
                self._check_labels(len(scores))
            part = self.labels[start : start + len(scores)]
            self.correct += int((scores.argmax(axis=-1) == part).sum())
        if scores.ndim == 2 and scores.dtype.kind in "fiu" and scores.shape[1] > 1:
            for row in scores[: max(0, SHOWN_ROWS - len(self.top))]:
                best = np.argsort(-row.astype(np.float64), kind="stable")[: self.top_k]
                self.top.append([{"class": int(k), "score": float(row[k])} for k in best])

    def figures(self) -> dict[str, Any]:
        out: dict[str, Any] = {
            "outputs": [
                {"name": name, "dtype": dtype, "shape": shape}
                for name, (dtype, shape) in zip(self.names, self.kinds, strict=True)
            ],
            "rows": self.rows,
        }
        if self.top:
            out["top"] = self.top
        if self.labels is not None:
            out["accuracy"] = self.correct / len(self.labels) if len(self.labels) else None
            out["correct"] = self.correct
        return out


@contextmanager
def _sink(output: str | None, names: list[str]) -> Iterator[Callable[[list[Any], int, bool], None] | None]:
    """A function that takes each chunk's outputs, or None where nothing is written."""
    if output is None:
        yield None
    elif output.endswith(".npz"):
        parts: dict[str, list[Array]] = {name: [] for name in names}

        def collect(outputs: list[Any], _rows: int, _split: bool) -> None:
            for name, value in zip(names, outputs, strict=True):
                parts[name].append(np.asarray(value))

        with atomic_write(output) as file:
            yield collect
            joined: Any = {n: p[0] if len(p) == 1 else np.concatenate(p) for n, p in parts.items()}
            np.savez(file, **joined)
    elif len(names) > 1:
        raise InputError(f"the model has {len(names)} outputs; an .npy file holds one: give a name that ends in .npz")
    else:
        with nullcontext(sys.stdout.buffer) if output == "-" else atomic_write(output) as file:
            writer = NpyWriter(file)
            yield lambda outputs, rows, split: writer.write(np.asarray(outputs[0]), rows, split)


def _memory(session: InferenceSession, run: _Run, floor: dict[str, int]) -> dict[str, Any]:
    now = process_memory()
    plan = session.plan({name: a.shape for name, a in run.first_part().items()})
    out: dict[str, Any] = {
        "model_file": session.file_bytes,
        "weights": session.weight_bytes,
        "plan_buffers": plan.buffer_bytes,
    }
    if "rss" in floor:
        out["engine_floor"] = floor["rss"]
        out["peak"] = now["peak"]
        out["peak_over_floor"] = now["peak"] - floor["rss"]
    return out


def _show(figures: dict[str, Any], to: Any, top_k: int) -> None:
    say = partial(print, file=to)
    for entry in figures["outputs"]:
        say(f"output {entry['name']}  {entry['dtype']}{entry['shape']}")
    if "top" in figures:
        _show_classes(figures["top"], figures["rows"], top_k, say)
    if figures.get("accuracy") is not None:
        wrong = figures["rows"] - figures["correct"]
        say(
            f"accuracy {100 * figures['accuracy']:.2f} %  ({figures['correct']} of {figures['rows']} right, "
            f"error {100 * wrong / figures['rows']:.2f} %)"
        )
    times, memory = figures["time_ms"], figures["memory_bytes"]
    if figures["chunk_rows"] is not None:
        known = "" if figures["rows_independent"] else ": right where no row depends on another"
        say(f"chunks   of {figures['chunk_rows']} rows{known}")
    say(
        f"time     load {times['load']:.0f} ms, first run with compiling {times['first_run']:.0f} ms, "
        f"then {times['run']:.2f} ms for {figures['rows']} rows ({1000 * times['per_row']:.1f} us a row), "
        f"{figures['threads']} threads"
    )
    split = f"memory   weights {readable(memory['weights'])}, plan buffers {readable(memory['plan_buffers'])}"
    if "peak" in memory:
        split += (
            f", engine floor {readable(memory['engine_floor'])}, peak {readable(memory['peak'])} "
            f"({readable(memory['peak_over_floor'])} over the floor)"
        )
    say(split)


def _show_classes(top: list[list[dict[str, Any]]], rows: int, best: int, say: Callable[[str], None]) -> None:
    say("row  class  score" if best == 1 else f"row  top {best} classes (score)")
    for number, classes in enumerate(top):
        if best == 1:
            say(f"{number:3}  {classes[0]['class']:<5}  {classes[0]['score']:.4g}")
        else:
            say(f"{number:3}  " + "  ".join(f"{c['class']} ({c['score']:.4g})" for c in classes))
    if rows > len(top):
        say(f"... and {rows - len(top)} more rows")
