"""More than one process: the Dask recipe on a data set larger than a worker's memory, one of the workers killed."""

from __future__ import annotations

import os
import signal
import sys
import threading

import pytest

from tests.outgrown import MODEL, MODELS, check_scores, recipe, wait_for_parts, write_digits

pytest.importorskip("distributed")
from dask.distributed import Client, LocalCluster

ROWS, TASK = 400_000, 2000
pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no process can be killed here"),
]


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(MODELS / "examples"), *sys.path]))
    with LocalCluster(
        n_workers=2, threads_per_worker=1, memory_limit="256MiB", dashboard_address=None, local_directory=str(tmp_path)
    ) as made:
        yield made


def test_nothing_is_lost_or_counted_twice_when_a_worker_is_killed(tmp_path, cluster):
    assert write_digits(tmp_path / "x.npy", ROWS) > 256 * 2**20
    killed, target = [], tmp_path / "out" / "y.npy"
    target.parent.mkdir()

    def kill() -> None:
        """End one worker once a third of the parts are there."""
        wait_for_parts(target.parent, ROWS // TASK // 3)
        pid = next(iter(client.run(os.getpid).values()))
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)

    with Client(cluster) as client:
        killer = threading.Thread(target=kill)
        killer.start()
        score_all = recipe("score_dask").score_all
        assert score_all(client, MODEL.read_bytes(), tmp_path / "x.npy", target, TASK) == ROWS
        killer.join()
    assert killed
    check_scores(target, ROWS)
