"""Heavy use: many threads, processes, forks, interrupts, errors and closing, to the bits of the quiet case.

`python -m tests.heavy` does the same for longer.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import hashinfer
from hashinfer.errors import InputError, OpError
from hashinfer.model.write import expand_node
from hashinfer.schemes import Xxh32
from tests import heavy, nets
from tests.nets import node
from tests.processes import unmeasured

F32 = np.float32
KINDS = ("dyadic", "xxh32", "dynamic", "reference")
LARGE = nets.hashed_mlp([784, 1000, 1000, 10], "xxh32", 16)
"""Runs of 40 rows are shared between a session's threads."""


@cache
def file(kind: str) -> bytes:
    return heavy.models()[kind]


def quiet(kind: str, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """What a session that nobody else uses answers."""
    with hashinfer.InferenceSession(file(kind), threads=1) as session:
        return [session(x) for x in inputs]


INPUTS = [heavy.batch(rows, rows) for rows in (1, 2, 3, 5, 8, 13)]


@pytest.mark.parametrize("shared", [True, False], ids=["one session", "a session each"])
@pytest.mark.parametrize("kind", KINDS)
def test_64_threads(kind, shared):
    expected = quiet(kind, INPUTS)
    session = hashinfer.InferenceSession(file(kind), threads=2)
    together = threading.Barrier(64)

    def work(k: int) -> bool:
        mine = session if shared else hashinfer.InferenceSession(file(kind), threads=2)
        together.wait(60)
        order = np.random.default_rng(k).permutation(len(INPUTS))
        return all(np.array_equal(mine(INPUTS[i]), expected[i]) for i in order)

    with ThreadPoolExecutor(64) as pool:
        assert all(pool.map(work, range(64)))
    session.close()


def test_64_threads_that_want_the_workers_of_one_session():
    x = np.random.default_rng(0).standard_normal((40, 784)).astype(F32)
    session = hashinfer.InferenceSession(LARGE.SerializeToString(), threads=2)
    with hashinfer.InferenceSession(LARGE.SerializeToString(), threads=1) as alone:
        expected = alone(x)
    with ThreadPoolExecutor(64) as pool:
        assert all(pool.map(lambda _: np.array_equal(session(x), expected), range(128)))
    session.close()


@pytest.mark.parametrize("kind", KINDS)
def test_asyncio(kind):
    expected = quiet(kind, INPUTS)
    session = hashinfer.InferenceSession(file(kind), threads=2)

    async def everything() -> list[np.ndarray]:
        return list(await asyncio.gather(*(asyncio.to_thread(session, x) for x in INPUTS * 10)))

    found = asyncio.run(everything())
    assert all(np.array_equal(a, b) for a, b in zip(found, expected * 10, strict=True))


def answer(session: hashinfer.InferenceSession, x: np.ndarray) -> np.ndarray:
    return session(x)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pool_of_spawned_processes(kind):
    """The session travels by pickle."""
    expected = quiet(kind, INPUTS)
    session = hashinfer.InferenceSession(file(kind), threads=2)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(answer, [session] * 6, INPUTS))
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def child(script: str, *arguments: str, timeout: float = 300) -> str:
    """The output of a script in a process of its own, which has to end well."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script, *arguments]
    root, env = Path(__file__).parents[1], unmeasured()
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, cwd=root, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


FORK = """
import os, sys, threading
import numpy as np
import hashinfer
from tests import heavy
sessions = {name: hashinfer.InferenceSession(data, threads=2) for name, data in heavy.models().items()}
x = heavy.batch(5)
expected = {name: session(x) for name, session in sessions.items()}
stop = False
def keep_busy(name):
    while not stop:
        sessions[name](x)
threads = [threading.Thread(target=keep_busy, args=(name,)) for name in sessions for _ in range(2)]
for t in threads:
    t.start()
for _ in range(20):
    pid = os.fork()
    if pid == 0:
        os._exit(0 if all(np.array_equal(s(x), expected[n]) for n, s in sessions.items()) else 1)
    assert os.waitpid(pid, 0)[1] == 0
stop = True
for t in threads:
    t.join()
print("same", all(np.array_equal(s(x), expected[n]) for n, s in sessions.items()))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_forks_while_threads_run():
    """A child inherits locks that threads held which it does not have."""
    assert child(FORK) == "same True"


def test_errors_in_some_threads_leave_the_others_alone():
    model = nets.model(
        [expand_node(Xxh32(20, 9, 8, 3, 2), "w", "W"), node("Gather", ["W", "ids"], ["y"])],
        {"ids": (np.int64, ["N"])},
        {"y": (F32, ["N", 8])},
        {"w": nets.weights(20)},
    )
    session = hashinfer.InferenceSession(model.SerializeToString(), threads=2)
    good, bad = np.array([0, 8, -9]), np.array([0, 9, 0])
    expected = session(good)

    def work(k: int) -> bool:
        if k % 3:
            return np.array_equal(session(good), expected)
        with pytest.raises(OpError, match="expected -9 to 8"):
            session(bad)
        with pytest.raises(InputError, match="float64"):
            session(good.astype(float))
        return True

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(work, range(300)))


@pytest.mark.parametrize("kind", KINDS)
def test_closing_while_many_run(kind):
    expected = quiet(kind, INPUTS)
    for _ in range(3):
        session = hashinfer.InferenceSession(file(kind), threads=2)

        def work(k: int, session: hashinfer.InferenceSession = session) -> bool:
            try:
                return np.array_equal(session(INPUTS[k % 6]), expected[k % 6])
            except InputError as error:
                return "closed" in str(error)

        with ThreadPoolExecutor(16) as pool:
            running = pool.map(work, range(200))
            session.close()
            assert all(running)
        with pytest.raises(InputError, match="closed"):
            session(INPUTS[0])


INTERRUPT = """
import signal, sys, threading, time
import numpy as np
import hashinfer
from tests import heavy, nets
files = heavy.models() | {"large": nets.hashed_mlp([784, 1000, 1000, 10], "xxh32", 16).SerializeToString()}
data = files[sys.argv[1]]
x = np.ones((40, 784), np.float32) if sys.argv[1] == "large" else heavy.batch(5)
session = hashinfer.InferenceSession(data, threads=2)
expected, interrupted, rng = session(x), 0, np.random.default_rng(0)
for _ in range(60):
    signal.setitimer(signal.ITIMER_REAL, float(rng.uniform(0.0005, 0.01)))
    try:
        while True:
            assert np.array_equal(session(x), expected)
    except KeyboardInterrupt:
        interrupted += 1
    assert np.array_equal(session(x), expected)
session.close()
print(interrupted)
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no interval timer")
@pytest.mark.parametrize("kind", [*KINDS, "large"])
def test_interrupts_in_the_middle_of_runs(kind):
    """Ctrl-C, sixty times at odd moments: the session answers as before, and still closes."""
    handler = "import signal; signal.signal(signal.SIGALRM, signal.default_int_handler)\n"
    assert child(handler + INTERRUPT, kind) == "60"


@pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="this system does not say how much memory a process has"
)
def test_memory_does_not_grow():
    """A few hundred loads and ten thousand runs; the command in heavy.py does many more."""
    script = "import sys; from tests import heavy; "
    script += "sys.argv[1:] = ['--loads', '800', '--runs', '9000']; sys.exit(heavy.main())"
    assert "wrong answers" in child(script)
