"""The Ray recipe on a data set larger than the memory Ray is given, one of the workers killed."""

from __future__ import annotations

import importlib.util
import os
import signal
import threading
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import hashinfer

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")

MODELS = Path(__file__).parent.parent / "models"
MODEL = MODELS / "mnist-dyadic-64x.hnet"
ROWS, TASK, STORE = 200_000, 2000, 80 * 2**20
pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.unmeasured,
    pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="workers are found in /proc"),
]


def recipe() -> ModuleType:
    """The example as a module."""
    spec = importlib.util.spec_from_file_location("score_ray", MODELS / "examples" / "score_ray.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def cluster(monkeypatch):
    monkeypatch.setenv("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False, object_store_memory=STORE)
    yield
    ray.shutdown()


def workers() -> list[int]:
    """Process numbers of the actors that score."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"MapWorker" in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def test_nothing_is_lost_or_counted_twice_when_a_worker_is_killed(tmp_path, cluster):
    digits = np.load(MODELS / "mnist-test-1k.npy")
    source = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.uint8, (ROWS, 28, 28))
    for start in range(0, ROWS, len(digits)):
        source[start : start + len(digits)] = np.roll(digits, start // len(digits), axis=0)
    source.flush()
    assert source.nbytes > STORE
    killed = []

    def kill(parts: Path) -> None:
        """End one worker once a third of the parts are there."""
        while len(list(parts.glob("*/*.npy"))) < ROWS // TASK // 3:
            time.sleep(0.01)
        for pid in workers()[:1]:
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    (tmp_path / "out").mkdir()
    killer = threading.Thread(target=kill, args=(tmp_path / "out",), daemon=True)
    killer.start()
    target = tmp_path / "out" / "y.npy"
    assert recipe().score_all(MODEL.read_bytes(), tmp_path / "x.npy", target, TASK, workers=2) == ROWS
    killer.join(60)
    assert killed
    scores = np.load(target, mmap_mode="r")
    assert scores.shape == (ROWS, 10)
    expected = hashinfer.InferenceSession(MODEL, threads=1)(digits)
    for start in range(0, ROWS, len(digits)):
        found = scores[start : start + len(digits)]
        np.testing.assert_allclose(found, np.roll(expected, start // len(digits), axis=0), rtol=0, atol=1e-3)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["y.npy"]
