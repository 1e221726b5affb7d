"""Times of whole nets: every variant of a net and its peers in turn, for each batch size and number of threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import peers
from bench.environment import processors
from bench.limits import processors_together
from bench.nets import COMPRESSIONS, NETS, Feed, Net, Variant
from bench.timing import LONG_SECONDS, NUMBERS, Run, Spread, alternate, once, ratios
from hashinfer.ops.emission import KernelCall
from hashinfer.plan.bound import worth_sharing

BATCHES, THREADS = (1, 8, 64, 512), (1, 2)
CHECKED_ROWS = 3
ONE_THREAD = ", 1 thread"
"""Ends the name of an engine that runs on one thread while the others have more: what these are measured against."""

COPIES = 3
"""Sessions of a model that take turns by rounds, where threads are compared: where a session's memory happens to lie
makes up to 8 % of a short run's time, on however many threads."""

TRIED = 3

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Effort:
    """seconds: for each engine of a case. slowest: seconds; a run that takes longer is not repeated but left out.

    Where a run should take TRIED times that by the batch before, it is not even tried.
    """

    seconds: float = 0.15
    slowest: float = 1.0
    batches: tuple[int, ...] = BATCHES
    threads: tuple[int, ...] = THREADS
    peers: tuple[str, ...] = peers.NAMES
    compressions: tuple[int, ...] = COMPRESSIONS


QUICK = Effort(0.08, 0.6, (1, 64), (1,), (peers.FP32, peers.INT8), COMPRESSIONS[:1])


def race(net: Net, effort: Effort, folder: Path, tell: Tell) -> dict[str, Any]:
    """Everything about one net, as data for JSON. Raises DisagreementError where an engine's answer is another."""
    variants = [v for v in net.variants if v.compression in effort.compressions or len(net.variants) == 1]
    models, about, twin = {}, {}, None
    for variant in variants:
        tell(f"{net.name}: {variant.label} against its dense twin")
        model = net.build(variant)
        own = peers.twin_of(model, folder)
        about[variant.label] = _checked(variant, model, own, net.feeds(CHECKED_ROWS)[0])
        models[variant] = model.SerializeToString()
        if twin is None:
            twin, expected = own, _answer(models[variant], net.feeds(CHECKED_ROWS)[0])
        else:
            own.drop()
    assert twin is not None
    out: dict[str, Any] = {"net": net.name, "variants": about, "dense_bytes": twin.fp32.stat().st_size, "cases": []}
    out["peers"] = {}
    for threads in effort.threads:
        if threads > processors():
            out.setdefault("left_out", []).append(f"{threads} threads: {processors()} processor(s)")
            continue
        with ExitStack() as stack:
            runners = _Runners(models, twin, threads, effort.peers, stack)
            for name, run in runners.peers.items():
                out["peers"][name] = {"error": peers.check(name, run(net.feeds(CHECKED_ROWS)[0]), expected)}
            out["peers"] |= {name: {"absent": why} for name, why in runners.absent.items()}
            for batch in effort.batches:
                tell(f"{net.name}: batch {batch}, {threads} thread{'s' if threads > 1 else ''}")
                out["cases"].append(_case(runners, net.feeds(batch), batch, threads, effort))
        del runners  # before the next ones are made: dense nets are large
    twin.drop()
    return out


def _checked(variant: Variant, model: Any, twin: peers.Twin, feed: Feed) -> dict[str, Any]:
    import hashinfer

    data = model.SerializeToString()
    with hashinfer.InferenceSession(data, threads=1) as session:
        found = session.run(None, feed)[0]
        stored = session.weight_bytes
    dense = twin.peer(peers.FP32, 1).run(feed)
    return {
        "scheme": variant.scheme_label,
        "compression": variant.compression,
        "file_bytes": len(data),
        "weight_bytes": stored,
        "error": peers.check(variant.label, found, dense),
    }


def _answer(model: bytes, feed: Feed) -> np.ndarray:
    import hashinfer

    with hashinfer.InferenceSession(model, threads=1) as session:
        answer: np.ndarray = session.run(None, feed)[0]
        return answer


class _Runners:
    """Sessions of all variants and peers for one number of threads, and how long each took last for one row."""

    def __init__(
        self, models: dict[Variant, bytes], twin: peers.Twin, threads: int, wanted: Iterable[str], stack: ExitStack
    ) -> None:
        import hashinfer

        self.sessions: dict[str, list[Any]] = {}
        self.ours: dict[str, list[Callable[[Feed], Any]]] = {}
        for variant, data in models.items():
            for count in {threads, 1}:
                copies = COPIES if threads > 1 else 1
                made = [stack.enter_context(hashinfer.InferenceSession(data, threads=count)) for _ in range(copies)]
                name = variant.label + (ONE_THREAD if count != threads else "")
                self.sessions[name] = made
                self.ours[name] = [_runner(session) for session in made]
        self.peers: dict[str, Callable[[Feed], Any]] = {}
        self.absent: dict[str, str] = {}
        for name in wanted:
            try:
                peer = twin.peer(name, threads)
            except (ImportError, ValueError) as error:
                self.absent[name] = str(error)
                continue
            stack.callback(peer.close)
            self.peers[name] = peer.run
        self.last: dict[str, float] = {}
        """Seconds a row, of the batch before."""

    def compile(self, feed: Feed) -> None:
        """Compile what a first run would, so that none is left out for that."""
        for name in self.sessions:
            for call in self.calls(name, feed):
                _ = call.kernel.address

    def calls(self, name: str, feed: Feed) -> Iterator[KernelCall]:
        """The kernel calls of an engine of ours."""
        plan = self.sessions[name][0].plan({key: array.shape for key, array in feed.items()})
        for step in plan.steps:
            yield from step.emission.calls if step.emission is not None else ()

    def all(self) -> Iterator[tuple[str, list[Callable[[Feed], Any]]]]:
        yield from self.ours.items()
        yield from ((name, [run]) for name, run in self.peers.items())


def _runner(session: Any) -> Callable[[Feed], Any]:
    return lambda feed: session.run(None, feed)[0]


def _case(runners: _Runners, feeds: list[Feed], batch: int, threads: int, effort: Effort) -> dict[str, Any]:
    runs: dict[str, Run] = {}
    left_out: dict[str, str] = {}
    long: dict[str, float] = {}
    runners.compile(feeds[0])
    for name, copies in runners.all():
        predicted = batch * runners.last.get(name, 0.0)
        if predicted > TRIED * effort.slowest:
            left_out[name] = f"about {predicted:.0f} s a run"
            continue
        run = _in_turn(copies, feeds)
        took = once(run)
        if took > effort.slowest:
            left_out[name] = f"{took:.1f} s a run"
            runners.last[name] = took / batch
        else:
            runs[name] = run
            for copy in copies[1:]:
                copy(feeds[0])
            if took > LONG_SECONDS:
                long[name] = took
    budget = effort.seconds * len(runs) / (2 if threads > 1 else 1)
    before = processors_together(threads) if threads > 1 else None
    samples = alternate(runs, budget, long)
    together = None if before is None else min(before, processors_together(threads))
    for name, seconds in samples.items():
        runners.last[name] = Spread.of(seconds).median / batch
    compared = [ours for ours in samples if ours + ONE_THREAD in samples]
    return {
        "batch": batch,
        "threads": threads,
        "processors_together": together,
        "us": {name: Spread.of(seconds).data(1e6) for name, seconds in samples.items()},
        "faster": {
            ours: {peer: ratios(samples[peer], samples[ours]).data() for peer in runners.peers if peer in samples}
            for ours in runners.ours
            if ours in samples and not ours.endswith(ONE_THREAD)
        },
        "more_threads": {ours: ratios(samples[ours + ONE_THREAD], samples[ours]).data() for ours in compared},
        # What is not worth sharing as a whole is not in the pieces that a run may be cut into.
        "alone": [ours for ours in compared if not worth_sharing(runners.calls(ours, feeds[0]))],
        "left_out": left_out,
    }


def _in_turn(copies: list[Callable[[Feed], Any]], feeds: list[Feed]) -> Run:
    return lambda number: copies[number // NUMBERS % len(copies)](feeds[number % len(feeds)])


def one_node_graph(seconds: float = 0.5) -> dict[str, Any]:
    """Microseconds of a run whose only node is a Relu of 16 numbers: the session's own cost, and onnxruntime's."""
    import onnx
    import onnxruntime
    from onnx import helper

    import hashinfer

    value = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 16]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", value[:1], value[1:])
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()
    feed, out = {"x": np.ones((1, 16), np.float32)}, [np.empty((1, 16), np.float32)]
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    theirs = onnxruntime.InferenceSession(data, settings, providers=["CPUExecutionProvider"])
    with hashinfer.InferenceSession(data, threads=1) as ours:
        runs: dict[str, Run] = {
            "run": lambda _: ours.run(None, feed),
            "run, out given": lambda _: ours.run(None, feed, out=out),
            "onnxruntime": lambda _: theirs.run(None, feed),
        }
        for run in runs.values():
            once(run)
        return {name: Spread.of(s).data(1e6) for name, s in alternate(runs, seconds).items()}


def chosen(names: Iterable[str]) -> list[Net]:
    """Nets by name."""
    return [NETS[name] for name in names]
