"""The benchmarks measure what they say: answers are checked, engines take turns, tables hold what was measured."""

from __future__ import annotations

import itertools
import json
import re
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hashinfer
from bench import kernels, limits, memory, nets, ops, peers, race, readme, tables, targets
from bench.environment import environment
from bench.timing import ROUNDS, Spread, alternate, ratios, settle
from hashinfer.ops.registry import REGISTRY

ROOT = Path(__file__).parent.parent
SMALL = nets.Net(
    "32-48-10",
    (nets.Variant("dyadic", 0, 8), nets.Variant("xxh32", 16, 8)),
    lambda v: nets.plain_mlp((32, 48, 10), v),
    lambda batch: nets.normal_feeds((32,), batch),
)
EFFORT = race.Effort(0.01, 1.0, (1, 3), (1,), (peers.FP32, peers.NUMPY))
PEAKS = limits.Limits(1e11, 1e11, 1e11, 1e11, 1e11, 1e10, 1e10)


def test_engines_take_turns_and_get_the_same_number_of_samples() -> None:
    calls: list[str] = []

    def engine(name: str) -> Any:
        def run(_number: int) -> None:
            calls.append(name)
            time.sleep(0.0005)

        return run

    samples = alternate({"a": engine("a"), "b": engine("b")}, 0.05)
    assert len(samples["a"]) == len(samples["b"]) >= ROUNDS[0]
    turns = [name for name, _ in itertools.groupby(calls)]
    assert len(turns) > len(samples["a"])
    assert min(map(min, samples.values())) >= 0.0005


def test_copies_of_a_session_take_turns_by_rounds_each_with_all_inputs() -> None:
    calls: list[tuple[str, int]] = []
    copies = [lambda feed, name=name: calls.append((name, feed)) or time.sleep(0.0002) for name in "abc"]
    samples = alternate({"x": race._in_turn(copies, [0, 1])}, 0.05)["x"]
    turns = [name for name, _ in itertools.groupby(name for name, _ in calls)]
    assert len(turns) == len(samples) >= ROUNDS[0]
    assert turns == list(itertools.islice(itertools.cycle("abc"), len(turns)))
    assert {feed for name, feed in calls if name == "b"} == {0, 1}


def test_an_engine_waits_for_threads_that_still_spin() -> None:
    until = time.perf_counter() + 0.05

    def spin() -> None:
        while time.perf_counter() < until:
            pass

    thread = threading.Thread(target=spin)
    thread.start()
    settle()
    assert time.perf_counter() >= until
    thread.join()


def test_spread_and_ratios() -> None:
    assert Spread.of([3.0, 1.0, 2.0, 4.0, 5.0]) == Spread(3.0, 2.0, 4.0, 5)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0, 1)
    assert ratios([2.0, 8.0, 6.0], [1.0, 2.0, 2.0]).median == 3.0


@pytest.mark.parametrize("name", [n for n in nets.NETS if n not in ("8192-8192-8192-10", "embedding")])
def test_nets_are_the_same_at_every_run_and_load(name: str) -> None:
    net = nets.NETS[name]
    variant = net.variants[0]
    data = net.build(variant).SerializeToString(deterministic=True)
    assert data == net.build(variant).SerializeToString(deterministic=True)
    (feed,) = net.feeds(1)[:1]
    with hashinfer.InferenceSession(data, threads=1) as session:
        y = session.run(None, feed)[0]
    assert y.shape == (1, 10)
    assert np.isfinite(y).all()


def test_numbers_stored_are_the_compression_factor_fewer() -> None:
    for variant in nets.ALL:
        scheme = variant.fit(1000, 1000, 1)
        assert scheme.buckets <= 10**6 // variant.compression
        assert scheme.buckets > 10**6 // variant.compression / 2


def test_race_reports_every_engine(tmp_path: Path) -> None:
    told: list[str] = []
    found = race.race(SMALL, EFFORT, tmp_path, told.append)
    assert told
    assert [c["batch"] for c in found["cases"]] == [1, 3]
    for case in found["cases"]:
        assert set(case["us"]) == {"dyadic 8", "xxh32/16 8", peers.FP32, peers.NUMPY}
        assert set(case["faster"]["dyadic 8"]) == {peers.FP32, peers.NUMPY}
    assert all(v["error"] < peers.TOLERANCES[peers.FP32] for v in found["variants"].values())
    part = {"nets": [found], "environment": environment(), "quick": True}
    text = tables.report({"nets": part})
    assert "### 32-48-10, 1 thread" in text
    assert "Quick run" in text
    assert not list(tmp_path.iterdir())


def test_an_answer_that_differs_is_never_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: peers.Twin, name: str, threads: int) -> peers.Peer:
        return peers.Peer(name, lambda feed: np.ones((len(feed["x"]), 10), np.float32))

    monkeypatch.setattr(peers.Twin, "peer", wrong)
    with pytest.raises(peers.DisagreementError, match="differs by"):
        race.race(SMALL, EFFORT, tmp_path, lambda _: None)


def test_int8_is_held_to_its_own_error(tmp_path: Path) -> None:
    model = SMALL.build(SMALL.variants[0])
    twin = peers.twin_of(model, tmp_path)
    feed = SMALL.feeds(4)[0]
    with hashinfer.InferenceSession(model.SerializeToString(), threads=1) as session:
        y = session.run(None, feed)[0]
    error = peers.check(peers.INT8, twin.peer(peers.INT8, 1).run(feed), y)
    assert peers.TOLERANCES[peers.FP32] < error < peers.TOLERANCES[peers.INT8]


def test_convolutions_reach_peers_with_plain_weights(tmp_path: Path) -> None:
    net = nets.NETS["cnn"]
    twin = peers.twin_of(net.build(net.variants[0]), tmp_path)
    assert {n.op_type for n in twin.model.graph.node} == {"Conv", "Relu", "MaxPool", "Flatten", "MatMul", "Add"}
    with pytest.raises(ValueError, match="not one call in NumPy"):
        twin.peer(peers.NUMPY, 1)


@pytest.mark.parametrize("scheme", nets.SCHEMES)
def test_kernels_are_checked_timed_and_judged(scheme: tuple[str, int]) -> None:
    grid = kernels.Grid(rows=(1, 4), seconds=0.005)
    found, left_out = kernels.table(nets.Variant(*scheme, 8), (40, 48), 0.5, grid, PEAKS)
    assert not left_out
    assert [e["rows"] for e in found] == [1, 4]
    for entry in found:
        assert entry["picked"] in entry["kernels"]
        assert entry["picked_over_fastest"] >= 1
        assert all(k["virtual_per_second"] > 0 and k["share"] > 0 for k in entry["kernels"].values())
    part = {"limits": PEAKS.data(), "verdicts": {"all": kernels.verdict(found)}, "cases": found, "left_out": []}
    part |= {"environment": environment(), "quick": False}
    assert f"**{found[0]['picked']}**" in tables.kernel_cases({"kernels": part})
    assert "planner's pick" in tables.report({"kernels": part})


def test_slow_kernels_are_left_out_and_named() -> None:
    grid = kernels.Grid(rows=(1, 8), seconds=0.005, slowest=0.0)
    found, left_out = kernels.table(nets.Variant("dyadic", 0, 8), (40, 48), 0.0, grid, PEAKS)
    assert len(left_out) == 2
    assert "40 x 48, dyadic 8, 8 rows: about" in left_out[1]
    assert [e["kernels"] for e in found] == [{}, {}]
    assert kernels.verdict(found)["judged"] == 0


def test_slow_engines_are_left_out_and_named(tmp_path: Path) -> None:
    found = race.race(SMALL, race.Effort(0.01, 0.0, (1, 3), (1,), (peers.FP32,)), tmp_path, lambda _: None)
    first, second = found["cases"]
    assert first["us"] == second["us"] == {}
    assert first["left_out"].keys() == {"dyadic 8", "xxh32/16 8", peers.FP32}
    assert second["left_out"][peers.FP32].startswith("about")
    assert "left out, about" in tables.report({"nets": {"nets": [found], "environment": environment(), "quick": False}})


def test_additions_of_a_transform_are_at_most_all_of_them() -> None:
    for cols in (1, 10, 200):
        scheme = nets.Variant("dyadic", 0, 8).fit(64, cols, 1)
        stages = scheme.width.bit_length() - 1
        whole = scheme.rows + scheme.width * stages + scheme.buckets * (stages + 1)
        assert 0 < kernels.transform_additions(scheme) <= whole


def test_memory_is_that_of_a_fresh_process(tmp_path: Path) -> None:
    model, feed = tmp_path / "net.hnet", tmp_path / "feed.npz"
    model.write_bytes(SMALL.build(SMALL.variants[0]).SerializeToString())
    np.savez(feed, **SMALL.feeds(1)[0])
    found = memory.measure(memory.HASHINFER, model, feed)
    assert found["file_bytes"] == model.stat().st_size
    assert found["weight_bytes"] > 0
    assert found["plan_bytes"] > 0
    assert found["resident_after_run"] >= found["resident_after_load"] > 0
    assert "another_session" in found
    assert found["peak"] >= found["floor"]["rss"]


def test_figures_say_no_where_a_target_is_missed() -> None:
    spread = {"median": 2.0, "quartiles": [1.9, 2.1], "count": 5}
    gain = {"median": 0.9, "quartiles": [0.8, 0.95], "count": 5}
    case = {"batch": 1, "faster": {"dyadic 64": {peers.FP32: spread}}, "us": {"dyadic 64": spread}}
    two = case | {"threads": 2, "more_threads": {"dyadic 64": gain}, "alone": []}
    net = {"net": "784-1000-1000-10", "cases": [case | {"threads": 1, "more_threads": {}}, two]}
    found = {f.what: f for f in targets.figures({"nets": {"nets": [net]}})}
    missed = found["784-1000-1000-10, dyadic 64, batch 1, against onnxruntime fp32"]
    assert (missed.reached, missed.target, missed.measured) == (False, "12 x", "2.00 x (1.90 to 2.10)")
    assert found["two threads, all shared runs"].reached is False
    assert not any("free" in what for what in found)
    two["processors_together"] = 1.95
    found = {f.what: f for f in targets.figures({"nets": {"nets": [net]}})}
    assert found["two threads, all shared runs; both processors 95 % free"].measured.startswith("1 of 1 slower")
    two["alone"] = ["dyadic 64"]
    assert not any("shared" in f.what for f in targets.figures({"nets": {"nets": [net]}}))
    net["cases"][0]["faster"]["dyadic 64"][peers.FP32] = spread | {"median": 12.0}
    assert targets.figures({"nets": {"nets": [net]}})[0].reached is True


def test_nothing_measured_gives_no_figures() -> None:
    assert targets.figures({}) == []


def test_the_readme_says_what_was_measured() -> None:
    saved = ROOT / "bench" / "results" / "compare.json"
    assert readme.between((ROOT / "README.md").read_text()) == readme.render(json.loads(saved.read_text()))


def test_the_measured_part_alone_is_replaced(tmp_path: Path) -> None:
    path, mark = tmp_path / "README.md", readme.begin("bench.compare")
    path.write_text(f"before\n{mark}old\n{readme.END}after\n")
    parts = json.loads((ROOT / "bench" / "results" / "compare.json").read_text())
    readme.update(path, readme.render(parts))
    assert path.read_text() == f"before\n{mark}{readme.render(parts)}{readme.END}after\n"


def test_random_ids_of_the_command_reach_over_the_whole_table() -> None:
    from hashinfer.cli.bench import _cases
    from hashinfer.model.write import expand_node
    from tests import nets as small

    table = small.scheme("xxh32", 1000, 8, 64, parameter=8)
    model = small.model(
        [expand_node(table, "w", "W"), small.node("Gather", ["W", "ids"], ["y"], axis=0)],
        {"ids": (np.int64, ["N", 3])},
        {"y": (np.float32, ["N", 3, 8])},
        {"w": small.weights(64)},
    )
    with hashinfer.InferenceSession(model.SerializeToString(), threads=1) as session:
        ((rows, feed),) = _cases(session, {}, [200], (), 0)
    assert rows == 200
    assert 0 <= feed["ids"].min() < 100
    assert 900 < feed["ids"].max() < 1000


def test_a_cold_start_of_the_command_imports_nothing_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hashinfer.cli.bench import _cold

    (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')")
    model = tmp_path / "net.hnet"
    model.write_bytes(SMALL.build(SMALL.variants[0]).SerializeToString())
    monkeypatch.chdir(tmp_path)
    assert _cold(str(model), SMALL.feeds(1)[0], 1, first=False)["ms"]["import"] > 0


def test_every_native_op_is_timed_by_itself() -> None:
    timed = {case.op for case in ops.cases()}
    # A Constant is folded away; Scatter is ScatterElements by its old name.
    assert set(REGISTRY) - timed == {"Constant", "Scatter"}


@pytest.mark.parametrize("op", ["Relu", "QLinearConv", "TopK"])
def test_an_op_is_timed_beside_onnxruntime(op: str) -> None:
    case = next(case for case in ops.cases() if case.op == op)
    row = ops.measure(case, 0.01)
    assert row is not None
    assert row["op"] == op
    assert row["times"] == row["us"]["ours"] / row["us"]["theirs"] > 0


def test_answers_that_are_not_onnxruntimes_stop_the_timing() -> None:
    exact = ops.Case("MatMulInteger", [np.ones(3, np.uint8)])
    close = ops.Case("QuantizeLinear", [np.ones(3, np.float32)], exact=False)
    x = np.arange(5, dtype=np.int32)
    assert ops.apart(exact, x, x) == 0
    assert ops.apart(exact, x, x + 1) == 1
    assert ops.apart(close, x, x + 1) == 0
    assert ops.apart(close, x, x + 3) == 2
    assert ops.apart(exact, np.float32([1, 2]), np.float32([1, 4])) == 0.5
    with pytest.raises(ValueError, match="int32"):
        ops.apart(exact, x, x.astype(np.int64))


def test_the_kept_table_of_ops_is_of_these_cases_and_the_readme_says_what_it_says() -> None:
    text = (ROOT / "bench" / "results" / "ops.md").read_text()
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ") and line.endswith(" |")][1:]
    times = {row[0].removeprefix("| "): float(row[3].removesuffix(" |")) for row in rows}
    known = [case.name for case in ops.cases()]
    assert len(set(known)) == len(known) == len(rows)
    assert sorted(times) == sorted(known)
    assert max(times.values()) <= ops.MOST
    readme_text = " ".join((ROOT / "README.md").read_text().split())
    said = re.search(
        r"about (\d+) standard ops are native, and none takes over five times onnxruntime's time", readme_text
    )
    assert said is not None
    assert abs(int(said[1]) - len(REGISTRY)) < 5
