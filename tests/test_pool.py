"""The pool of workers: where they run, how they sleep, when they end."""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable

import numpy as np
import pytest

import hashinfer
from hashinfer.errors import UnsupportedError
from hashinfer.kernels import driver, parking, pool
from hashinfer.kernels.jit import entry
from hashinfer.kernels.parking import BARRED, MASK_BYTES, PARKED, SEAT, THREAD_ID
from hashinfer.kernels.vectors import intp_array
from tests import nets

SIZES = (784, 1000, 1000, 10)
affine = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no processor affinity")


def session(threads: int) -> hashinfer.InferenceSession:
    return hashinfer.InferenceSession(nets.hashed_mlp(SIZES, "xxh32", 16).SerializeToString(), threads=threads)


def batch() -> np.ndarray:
    return np.random.default_rng(3).standard_normal((40, SIZES[0])).astype(np.float32)


def workers() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("hashinfer-")]


def wait_for(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 30
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def asleep(control: np.ndarray, worker: int) -> bool:
    return bool(control[driver.SEATS + SEAT * worker + PARKED])


def test_arrays_keep_their_address_where_the_driver_reads_it(tmp_path) -> None:
    numbers = np.arange(6.0)
    frozen = np.arange(3, dtype=np.uint8)
    frozen.flags.writeable = False
    mapped = np.memmap(tmp_path / "numbers", np.float32, "w+", shape=(4,))
    for array in (numbers, numbers[2:], numbers[:0], numbers.reshape(2, 3).T, np.array(1.0), frozen, mapped):
        found = ctypes.c_int64.from_address(id(array) + driver.DATA_AT).value
        assert found == array.ctypes.data


def test_another_layout_of_arrays_is_refused_before_any_is_read(monkeypatch) -> None:
    monkeypatch.setattr(driver, "DATA_AT", 0)
    with pytest.raises(UnsupportedError, match="do not begin with their address"):
        importlib.reload(pool)


def test_what_runs_a_program_keeps_its_memory() -> None:
    code = np.zeros((1, driver.ROW), np.int64)
    program = pool.Program(code, 0, 0)
    run, seen = program.run, [weakref.ref(code), weakref.ref(program.arrays.obj)]
    del code, program
    gc.collect()
    assert all(ref() is not None for ref in seen)
    run()
    del run
    gc.collect()
    assert all(ref() is None for ref in seen)


@entry("owners", "work", "tiles", "taken")
def sign_slowly(args, tile, scratch):
    """owners[tile] = where the thread's scratch is, and one more in taken[tile], after some work."""
    intp_array(args[0], args[2])[tile] = scratch
    for k in range(100_000):
        intp_array(args[1], args[2])[tile] ^= (k * tile) >> 3
    intp_array(args[3], args[2])[tile] += 1


@pytest.mark.parametrize("tiles", [64, 2 * driver.GROUPS + 45])
@pytest.mark.parametrize("threads", [2, 3])
def test_tiles_are_taken_once_and_every_other_thread_begins_with_the_second_half(threads: int, tiles: int) -> None:
    owners, work, taken = np.empty(tiles, np.int64), np.zeros(tiles, np.int64), np.empty(tiles, np.int64)
    code = np.zeros((1, driver.ROW), np.int64)
    code[0, :4] = owners.ctypes.data, work.ctypes.data, tiles, taken.ctypes.data
    code[0, driver.TILES], code[0, driver.ADDRESS] = owners.size, sign_slowly.address
    program, shared = pool.Program(code, 1000, 8), pool.Pool(threads)

    def each_began_with_its_half() -> bool:
        owners[:], taken[:] = -1, 0
        shared.run(program)
        assert (taken == 1).all()
        thread = (owners - 1000) // 8
        assert set(thread.tolist()) <= set(range(threads))
        own = (thread & 1) == (np.arange(tiles) >= (tiles + 1) // 2)
        return all(part[: tiles // 8].all() for part in np.array_split(own, 2))

    assert wait_for(each_began_with_its_half)
    shared.close()


@pytest.mark.parametrize("tiles", range(4))
def test_fewer_tiles_than_threads(tiles: int) -> None:
    owners, work, taken = np.empty(tiles, np.int64), np.zeros(tiles, np.int64), np.zeros(tiles, np.int64)
    code = np.zeros((1, driver.ROW), np.int64)
    code[0, :4] = owners.ctypes.data, work.ctypes.data, tiles, taken.ctypes.data
    code[0, driver.TILES], code[0, driver.ADDRESS] = tiles, sign_slowly.address
    shared = pool.Pool(3)
    for runs in range(1, 4):
        shared.run(pool.Program(code, 1000, 8))
        assert (taken == runs).all()
    shared.close()


def test_workers_end_where_one_of_them_cannot_start(monkeypatch) -> None:
    start, before = threading.Thread.start, len(workers())

    def limited(thread: threading.Thread) -> None:
        if thread.name == "hashinfer-2":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    with pytest.raises(RuntimeError, match="new thread"):
        pool._State(3)
    assert wait_for(lambda: len(workers()) <= before)


def test_workers_sleep_between_runs_and_wake_for_the_next() -> None:
    x = batch()
    expected = session(1)(x)
    with session(3) as shared:
        for _ in range(5):
            assert np.array_equal(shared(x), expected)
            control = shared._pool._state.control
            assert wait_for(lambda c=control: asleep(c, 0) and asleep(c, 1))
        before = time.process_time()
        time.sleep(0.2)
        assert time.process_time() - before < 0.1, "a worker that sleeps takes no processor time"


def test_workers_end_with_their_session() -> None:
    before = set(workers())
    with session(3) as shared:
        shared(batch())
        assert len(set(workers()) - before) == 2
    assert wait_for(lambda: not set(workers()) - before)


def test_a_stop_reaches_workers_that_are_awake() -> None:
    """Right after a run they still look for the next one."""
    before, x = set(workers()), batch()
    for _ in range(20):
        with session(3) as shared:
            shared(x)
    assert wait_for(lambda: not set(workers()) - before)


ALONE = """
import os, sys
import numpy as np
import hashinfer
from hashinfer.kernels import driver, parking
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
session, x = hashinfer.InferenceSession(sys.argv[1], threads=3), np.ones((40, 784), np.float32)
expected = hashinfer.InferenceSession(sys.argv[1], threads=1)(x)
assert all(np.array_equal(session(x), expected) for _ in range(20))
seats = session._pool._state.control[driver.SEATS:].reshape(-1, parking.SEAT)
assert not seats[:, parking.BARRED].any()
print("same")
"""


@affine
def test_on_one_processor(tmp_path) -> None:
    (tmp_path / "m.hnet").write_bytes(nets.hashed_mlp(SIZES, "xxh32", 16).SerializeToString())
    command = [sys.executable, "-c", ALONE, str(tmp_path / "m.hnet")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout.strip(), done.returncode) == ("same", 0), done.stderr


@affine
@pytest.mark.skipif(not parking.NATIVE, reason="workers sleep in Python here")
def test_a_bar_keeps_a_sleeping_worker_off_the_callers_processor_and_is_lifted() -> None:
    allowed = os.sched_getaffinity(0)
    if len(allowed) < 2:
        pytest.skip("one processor")
    released, ready = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: (ready.set(), released.wait()))
    thread.start()
    ready.wait()
    own = min(allowed)
    try:
        os.sched_setaffinity(0, {own})
        seat = np.zeros(SEAT, np.int64)
        seat[PARKED], seat[THREAD_ID] = 1, thread.native_id
        parking.call(seat.ctypes.data)
        assert seat[PARKED] == 0
        assert seat[BARRED] == 1
        assert os.sched_getaffinity(thread.native_id) == allowed - {own}
        # A second bar, before the first is lifted, still knows what was allowed before.
        seat[PARKED] = 1
        parking.call(seat.ctypes.data)
        kept = seat[parking.ALLOWED : parking.ALLOWED + MASK_BYTES // 8].view(np.uint8)
        assert set(np.flatnonzero(np.unpackbits(kept, bitorder="little"))) == allowed
        assert parking.sleep(seat.ctypes.data)
        assert seat[BARRED] == 0
        assert os.sched_getaffinity(0) == allowed
    finally:
        os.sched_setaffinity(0, allowed)
        released.set()
        thread.join()
