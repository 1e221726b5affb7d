"""The Ray recipe on a data set larger than the memory Ray is given, one of the workers killed."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from tests.outgrown import MODEL, check_scores, recipe, wait_for_parts, write_digits

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")

ROWS, TASK, STORE = 200_000, 2000, 80 * 2**20
pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.unmeasured,
    pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="workers are found in /proc"),
]


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
    assert write_digits(tmp_path / "x.npy", ROWS) > STORE
    killed, target = [], tmp_path / "out" / "y.npy"
    target.parent.mkdir()

    def kill() -> None:
        """End one worker once a third of the parts are there."""
        wait_for_parts(target.parent, ROWS // TASK // 3)
        for pid in workers()[:1]:
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    score_all = recipe("score_ray").score_all
    assert score_all(MODEL.read_bytes(), tmp_path / "x.npy", target, TASK, workers=2) == ROWS
    killer.join(60)
    assert killed
    check_scores(target, ROWS)
