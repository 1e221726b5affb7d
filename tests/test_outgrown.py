"""More than one process: the Dask recipe on a data set larger than a worker's memory, one of the workers killed."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import hashinfer

pytest.importorskip("distributed")
from dask.distributed import Client, LocalCluster

MODELS = Path(__file__).parent.parent / "models"
MODEL = MODELS / "mnist-dyadic-64x.hnet"
ROWS, TASK = 400_000, 2000
pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no process can be killed here"),
]


def recipe() -> ModuleType:
    """The example as a module that workers can import too."""
    spec = importlib.util.spec_from_file_location("score_dask", MODELS / "examples" / "score_dask.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(MODELS / "examples"), *sys.path]))
    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        memory_limit="256MiB",
        dashboard_address=None,
        local_directory=str(tmp_path),
    ) as made:
        yield made


def test_nothing_is_lost_or_counted_twice_when_a_worker_is_killed(tmp_path, cluster):
    module = recipe()
    digits = np.load(MODELS / "mnist-test-1k.npy")
    source = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.uint8, (ROWS, 28, 28))
    for start in range(0, ROWS, len(digits)):
        source[start : start + len(digits)] = np.roll(digits, start // len(digits), axis=0)
    source.flush()
    assert source.nbytes > 256 * 2**20
    killed = []

    def kill(parts: Path) -> None:
        """End one worker once a third of the parts are there."""
        while len(list(parts.glob("*/*.npy"))) < ROWS // TASK // 3:
            time.sleep(0.01)
        pid = next(iter(client.run(os.getpid).values()))
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)

    (tmp_path / "out").mkdir()
    with Client(cluster) as client:
        killer = threading.Thread(target=kill, args=(tmp_path / "out",))
        killer.start()
        target = tmp_path / "out" / "y.npy"
        assert module.score_all(client, MODEL.read_bytes(), tmp_path / "x.npy", target, TASK) == ROWS
        killer.join()
    assert killed
    scores = np.load(target, mmap_mode="r")
    assert scores.shape == (ROWS, 10)
    expected = hashinfer.InferenceSession(MODEL, threads=1)(digits)
    for start in range(0, ROWS, len(digits)):
        found = scores[start : start + len(digits)]
        np.testing.assert_allclose(found, np.roll(expected, start // len(digits), axis=0), rtol=0, atol=1e-3)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["y.npy"]
