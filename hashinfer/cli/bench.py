"""`hashinfer bench`: cold start, warm times, memory and a profile of a model, beside its dense twin where asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from hashinfer.cli.cold import STAGES
from hashinfer.cli.console import compiling_notice, print_json, report_console, report_table
from hashinfer.cli.inputs import load_inputs
from hashinfer.cli.memory import readable
from hashinfer.cli.rival import Rival, open_rival
from hashinfer.cli.shapes import chosen_shapes, dtype_name, random_array
from hashinfer.cli.stream import batch_axis
from hashinfer.cli.timing import alternate, ratio
from hashinfer.cli.trade import budget_option
from hashinfer.errors import HashinferError, InputError
from hashinfer.files import atomic_write
from hashinfer.session.face import Array
from hashinfer.session.options import NodeArg

if TYPE_CHECKING:
    from hashinfer.plan.profile import Profile
    from hashinfer.session.session import InferenceSession

Feed = dict[str, Array]

COLD_STARTS = 3
PROFILE_REPEATS = 100
DEFAULT_BATCHES = (1, 64)


@click.command()
@click.argument("model", type=click.Path())
@click.argument("inputs", nargs=-1, metavar="[INPUT...]")
@click.option(
    "--batch", "batches", multiple=True, type=click.IntRange(1), help="Rows of a run. Repeatable. Default: 1 and 64."
)
@click.option("--threads", multiple=True, type=click.IntRange(1, 1024), help="Threads of a run. Repeatable. Default 1.")
@click.option("--shape", "shapes", multiple=True, metavar="NAME=D0,D1,...", help="The shape of one random input.")
@click.option("--against", type=click.Choice(["onnxruntime"]), help="Run the dense twin there as well, in turn.")
@click.option("--seconds", default=1.0, show_default=True, type=click.FloatRange(0.01, 3600), help="Time for a case.")
@click.option("--first", is_flag=True, help="Also start once with no compiled kernels at hand, as on a new machine.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of random inputs.")
@click.option(
    "--tolerance",
    default=1e-3,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Largest difference from the dense twin allowed, relative to an output's largest value.",
)
@budget_option
@click.option("--trace", type=click.Path(), help="Write the profiles there, as Chrome trace JSON.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def command(
    model: str,
    inputs: tuple[str, ...],
    batches: tuple[int, ...],
    threads: tuple[int, ...],
    shapes: tuple[str, ...],
    against: str | None,
    seconds: float,
    first: bool,
    seed: int,
    tolerance: float,
    memory_budget: str | None,
    trace: str | None,
    as_json: bool,
) -> None:
    """Measure MODEL: cold start, warm times, memory, and where the time of a run goes.

    INPUT is what `run` takes; a batch is made of its rows, in turn and over again where there are too few. Inputs that
    are not given are random. Exit code 1 where the dense twin's answers differ: nothing is timed then.
    """
    from hashinfer.session.session import InferenceSession

    with compiling_notice(), _progress() as tell:
        tell("loading")
        session = InferenceSession(model, threads=1, memory_budget=memory_budget)
        given = load_inputs(inputs, [v.name for v in session.get_inputs()])
        cases = list(_cases(session, given, batches, shapes, seed))
        counts = tuple(dict.fromkeys(threads)) or (1,)
        figures: dict[str, Any] = {
            "model": model,
            "file_bytes": session.file_bytes,
            "weight_bytes": session.weight_bytes,
            "materialised_bytes": session.materialised_bytes,
            "seed": None if len(given) == len(session.get_inputs()) else seed,
            "against": None,
        }
        rival = None
        if against is not None:
            tell("expanding the dense twin")
            rival = open_rival(model, counts)
            worst = max(rival.difference(session, feed) for _, feed in cases)
            figures["against"] = {"name": rival.name, "dense_file_bytes": rival.file_bytes, "largest_difference": worst}
            if not worst <= tolerance:
                text = f"its answers differ by {worst:.3g} of the largest value; at most {tolerance:g} is allowed"
                print(f"hashinfer: mismatch: {rival.name}: {text}", file=sys.stderr)
                sys.exit(1)
        session.run(None, cases[0][1])
        tell("cold starts, in fresh processes")
        figures["cold"] = _cold(model, cases[0][1], counts[0], first)
        figures["warm"] = []
        for count in counts:
            with InferenceSession(model, threads=count, memory_budget=memory_budget) as timed:
                for rows, feed in cases:
                    tell(f"{_batch_text(rows)}, {_threads_text(count)}")
                    figures["warm"].append(_warm(timed, rows, feed, rival, seconds))
        tell("profile")
        profiles = [(rows, _profile(session, feed, seconds)) for rows, feed in cases]
        figures["profiles"] = [_profile_figures(rows, found) for rows, found in profiles]
        if trace is not None:
            _write_trace(trace, profiles)
    if as_json:
        print_json(figures)
    else:
        _show(figures)


def _cases(
    session: InferenceSession, given: Feed, batches: Sequence[int], shapes: Sequence[str], seed: int
) -> Iterator[tuple[int | None, Feed]]:
    """(rows, inputs) of each batch; rows is None for a model that has no batch dimension of its own."""
    values = session.get_inputs()
    wanted = chosen_shapes(values, 1, shapes)
    rng = np.random.default_rng(seed)
    tables = _tables(session, wanted)

    def made(value: NodeArg, shape: tuple[int, ...]) -> Array:
        return random_array(rng, value.type, shape, tables.get(value.name, 2))

    whole = {v.name: given[v.name] if v.name in given else made(v, wanted[v.name]) for v in values}
    axis = batch_axis(session, whole)
    if axis is None or (shapes and not batches):
        if batches:
            raise InputError("--batch is given, and the model has no open first dimension that all inputs share")
        yield axis, _checked(session, whole)
        return
    for rows in dict.fromkeys(batches or DEFAULT_BATCHES):
        feed = {}
        for value in values:
            if value.name in given:
                array = given[value.name]
                if not len(array):
                    raise InputError(f"input {value.name!r} has no rows")
                feed[value.name] = np.ascontiguousarray(array[np.arange(rows) % len(array)])
            else:
                feed[value.name] = made(value, (rows, *wanted[value.name][1:]))
        yield rows, _checked(session, feed)


def _tables(session: InferenceSession, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Rows of the smallest table that each name picks from: random ids are to reach over all of it."""
    from hashinfer.ops.hashed import HashedLookup

    found: dict[str, int] = {}
    plan = session.plan(shapes)
    for step in plan.program.steps:
        if isinstance(step.op, HashedLookup):
            name, rows = step.inputs[0], step.op.matrix.scheme.rows
        elif step.op_type == "Gather" and len(step.inputs) > 1 and step.inputs[0] in plan.constants:
            table = plan.constants[step.inputs[0]]
            name, rows = step.inputs[1], table.shape[int(step.call.get("axis", 0))]
        else:
            continue
        found[name] = max(1, min(rows, found.get(name, rows)))
    return found


def _checked(session: InferenceSession, feed: Feed) -> Feed:
    """The inputs, whose types and shapes the model takes. Raises InputError."""
    session.plan({name: array.shape for name, array in feed.items()})
    for value in session.get_inputs():
        array = feed[value.name]
        expected = dtype_name(value.type)
        if expected != "object" and str(array.dtype) != expected:
            raise InputError(f"input {value.name!r} is {array.dtype}{list(array.shape)}; expected {expected}")
    return feed


def _cold(model: str, feed: Feed, threads: int, first: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "inputs.npz"
        arrays: Any = feed
        np.savez(inputs, **arrays)
        starts = [_start(model, inputs, threads) for _ in range(COLD_STARTS)]
        out: dict[str, Any] = {"threads": threads, "starts": COLD_STARTS, "ms": _stages(starts)}
        if first:
            empty = Path(folder) / "kernels"
            out["first_ms"] = _stages([_start(model, inputs, threads, HASHINFER_CACHE_DIR=str(empty))])
    last = starts[-1]
    if "rss" in last["floor"]:
        floor, loaded, done = last["floor"], last["loaded"], last["done"]
        out["memory_bytes"] = {
            "engine_floor": floor["rss"],
            "engine_floor_anonymous": floor["anonymous"],
            "anonymous_after_load": loaded["anonymous"] - floor["anonymous"],
            "anonymous_after_run": done["anonymous"] - floor["anonymous"],
            "peak_over_floor": done["peak"] - floor["rss"],
        }
    return out


def _start(model: str, inputs: Path, threads: int, **environment: str) -> dict[str, Any]:
    # Without the current folder, whose files may bear the names of modules.
    command_line = [sys.executable, "-P", "-m", "hashinfer.cli.cold", model, str(inputs), str(threads)]
    package = str(Path(__file__).resolve().parents[2])
    paths = {"PYTHONPATH": os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))}
    given = os.environ | paths | environment
    done = subprocess.run(command_line, capture_output=True, text=True, env=given, check=False)  # noqa: S603
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise HashinferError(f"a fresh process could not run the model: {last}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _stages(starts: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Median milliseconds of each stage."""
    return {stage: 1000 * float(np.median([s["seconds"][stage] for s in starts])) for stage in STAGES}


def _warm(
    session: InferenceSession, rows: int | None, feed: Feed, rival: Rival | None, seconds: float
) -> dict[str, Any]:
    functions: dict[str, Callable[[], Any]] = {"hashinfer": lambda: session.run(None, feed)}
    if rival is not None:
        functions["against"] = lambda: rival.run(feed, session.threads)
    seen = alternate(functions, seconds, settled=rival is not None and session.threads > 1)
    out: dict[str, Any] = {
        "batch": rows,
        "threads": session.threads,
        "hashinfer": seen["hashinfer"].summary(),
        "plan_buffer_bytes": session.plan({name: a.shape for name, a in feed.items()}).buffer_bytes,
    }
    if rival is not None:
        out["against"] = seen["against"].summary()
        out["times_faster"] = ratio(seen["against"], seen["hashinfer"])
    return out


def _profile(session: InferenceSession, feed: Feed, seconds: float) -> Profile:
    once = alternate({"run": lambda: session.run(None, feed)}, 0.01)["run"].median
    return session.profile(feed, max(3, min(PROFILE_REPEATS, int(1e9 * seconds / (4 * once)))))


def _write_trace(path: str, profiles: Sequence[tuple[int | None, Profile]]) -> None:
    """One trace of all profiles, a row for each."""
    traces = [found.chrome_trace(_batch_text(rows), k) for k, (rows, found) in enumerate(profiles, 1)]
    whole = traces[0] | {"traceEvents": [event for t in traces for event in t["traceEvents"]]}
    with atomic_write(path) as file:
        file.write(json.dumps(whole, indent=1).encode())


def _profile_figures(rows: int | None, found: Profile) -> dict[str, Any]:
    return {
        "batch": rows,
        "threads": 1,
        "repeats": found.repeats,
        "run_us": found.run_ns / 1000,
        "overhead_us": found.overhead_ns / 1000,
        "steps": [
            {"op": s.label, "nodes": list(s.nodes), "runs": s.runs, "kernel": s.kernel, "us": s.ns / 1000}
            for s in found.steps
        ],
    }


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """What is being measured, on standard error, where that is a terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _text: None
        return
    with console.status("") as status:
        yield lambda text: status.update(f"measuring: {text}")


def _batch_text(rows: int | None) -> str:
    return "as the model has it" if rows is None else f"batch {rows}"


def _threads_text(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _microseconds(value: float) -> str:
    if abs(value) < 9.95:
        return f"{value:.2f} us"
    if abs(value) < 9950:
        return f"{value:.0f} us" if abs(value) >= 99.5 else f"{value:.1f} us"
    return f"{value / 1000:.1f} ms"


def _show(figures: Mapping[str, Any]) -> None:
    from rich.markup import escape

    console = report_console(160)
    console.print(f"{figures['model']}  {readable(figures['file_bytes'])}", markup=False)
    if figures["seed"] is not None:
        console.print(f"inputs that were not given are random, seed {figures['seed']}")
    rival = figures["against"]
    if rival is not None:
        console.print(
            f"against {rival['name']} on the dense twin ({readable(rival['dense_file_bytes'])}); largest difference "
            f"{rival['largest_difference']:.2g} of the largest value",
            markup=False,
        )
    cold = figures["cold"]
    shown = report_table(f"Cold start, ms (median of {cold['starts']} fresh processes)", "", *STAGES, left=1)
    for what, key in (("kernels from the cache", "ms"), ("kernels compiled", "first_ms")):
        if key in cold:
            shown.add_row(what, *(f"{cold[key][stage]:.1f}" for stage in STAGES))
    console.print(shown)
    shown = report_table(
        "Warm runs", "batch", "threads", "", "p50", "p90", "p99", "calls", "a row", "times faster", left=0
    )
    for case in figures["warm"]:
        rows = case["batch"]
        for who in ("hashinfer", "against"):
            if who not in case:
                continue
            t = case[who]
            faster = case.get("times_faster") if who == "hashinfer" else None
            shown.add_row(
                "-" if rows is None else str(rows),
                str(case["threads"]),
                who if who == "hashinfer" else rival["name"].split()[0],
                *(_microseconds(t[f"{p}_us"]) for p in ("p50", "p90", "p99")),
                str(t["calls"]),
                _microseconds(t["p50_us"] / (rows or 1)),
                "" if faster is None else f"{faster['median']:.2f} ({faster['p25']:.2f} to {faster['p75']:.2f})",
            )
    console.print(shown)
    _show_memory(console, figures)
    for profile in figures["profiles"]:
        title = f"Profile, {_batch_text(profile['batch'])}, 1 thread (medians of {profile['repeats']} runs)"
        shown = report_table(title, "step", "runs", "kernel", "time", "share", left=3)
        whole = profile["run_us"]
        for step in profile["steps"]:
            share = f"{100 * step['us'] / whole:.0f} %"
            shown.add_row(escape(step["op"]), step["runs"], step["kernel"], _microseconds(step["us"]), share)
        overhead = profile["overhead_us"]
        shown.add_row("overhead", "", "", _microseconds(overhead), f"{100 * overhead / whole:.0f} %")
        shown.add_row("whole run", "", "", _microseconds(whole), "100 %")
        console.print(shown)


def _show_memory(console: Any, figures: Mapping[str, Any]) -> None:
    shown = report_table("Memory", "", "", left=1)
    shown.add_row("stored weights (w and spectra)", readable(figures["weight_bytes"]))
    for case in figures["warm"]:
        what = f"plan buffers, {_batch_text(case['batch'])}, {_threads_text(case['threads'])}"
        shown.add_row(what, readable(case["plan_buffer_bytes"]))
    memory = figures["cold"].get("memory_bytes")
    if memory is not None:
        for what, key in (
            ("engine floor (resident after its imports)", "engine_floor"),
            ("anonymous over the floor, after load", "anonymous_after_load"),
            ("anonymous over the floor, after the first run", "anonymous_after_run"),
            ("peak over the floor", "peak_over_floor"),
        ):
            shown.add_row(what, readable(memory[key]))
    console.print(shown)
