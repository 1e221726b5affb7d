"""MLServer with our runtime, over real sockets: many clients at once, malformed requests, a restart under load."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hashinfer

pytest.importorskip("mlserver")

MODELS = Path(__file__).parent.parent / "models"
MODEL = MODELS / "mnist-dyadic-64x.hnet"
CLIENTS = 32
FILTERED = pytest.mark.filterwarnings("ignore")
pytestmark = FILTERED


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(s.getsockname()[1]) for s in sockets]
    for made in sockets:
        made.close()
    return ports


class Server:
    """`mlserver start FOLDER` in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.http, self.grpc, metrics = free_ports(3)
        settings = {
            "host": "127.0.0.1",
            "http_port": self.http,
            "grpc_port": self.grpc,
            "metrics_port": metrics,
            "parallel_workers": 0,
        }
        model = {
            "name": "digits",
            "implementation": "hashinfer.serving.HashinferModel",
            "parameters": {"uri": str(MODEL), "extra": {"threads": 1}},
        }
        (folder / "settings.json").write_text(json.dumps(settings))
        (folder / "model-settings.json").write_text(json.dumps(model))

    def start(self) -> None:
        log = (self.folder / "log").open("a")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlserver.cli.main", "start", str(self.folder)], stdout=log, stderr=log
        )
        end = time.monotonic() + 120
        while time.monotonic() < end:
            if self.process.poll() is not None:
                break
            try:
                self.get("/v2/models/digits/ready")
            except OSError:
                time.sleep(0.1)
            else:
                return
        pytest.fail((self.folder / "log").read_text())

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        finally:
            self.process.kill()

    def get(self, path: str, data: bytes | None = None) -> Any:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.http}{path}", data, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            return json.loads(answer.read() or b"null")

    def classes(self, digits: np.ndarray) -> list[int]:
        answer = self.get("/v2/models/digits/infer", body(digits))
        (output,) = answer["outputs"]
        return np.array(output["data"]).reshape(output["shape"]).argmax(1).tolist()


def body(digits: np.ndarray, **changes: Any) -> bytes:
    value = {"name": "image", "datatype": "UINT8", "shape": list(digits.shape), "data": digits.ravel().tolist()}
    return json.dumps({"inputs": [value | changes]}).encode()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("serving"))
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    return np.load(MODELS / "mnist-test-1k.npy")


@pytest.fixture(scope="module")
def expected(digits: np.ndarray) -> list[int]:
    return hashinfer.InferenceSession(MODEL)(digits).argmax(1).tolist()


def test_what_it_says_of_the_model(server):
    about = server.get("/v2/models/digits")
    assert about["inputs"][0] | {"parameters": None} == {
        "name": "image",
        "datatype": "UINT8",
        "shape": [-1, 28, 28],
        "parameters": None,
    }
    assert [(o["name"], o["datatype"], o["shape"]) for o in about["outputs"]] == [("logits", "FP32", [-1, 10])]


def test_many_clients_at_once(server, digits, expected):
    with ThreadPoolExecutor(CLIENTS) as pool:
        starts = range(0, 960, 3)
        found = list(pool.map(lambda k: server.classes(digits[k : k + 3]), starts))
    assert found == [expected[k : k + 3] for k in starts]


def test_grpc(server, digits, expected):
    import grpc
    from mlserver.grpc import dataplane_pb2 as messages
    from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceStub

    value = messages.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=[5, 28, 28])
    request = messages.ModelInferRequest(model_name="digits", inputs=[value], raw_input_contents=[digits[:5].tobytes()])
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
        answer = GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=60)
        scores = np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(5, 10)
        assert scores.argmax(1).tolist() == expected[:5]
        request.inputs[0].ClearField("shape")
        request.inputs[0].shape.extend([5, 784])
        with pytest.raises(grpc.RpcError) as refused:
            GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=60)
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "expected [N, 28, 28]" in refused.value.details()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"not json", ""),
        (b"{}", ""),
        (b'{"inputs": []}', "missing"),
        (b'{"inputs": [{"name": "picture", "datatype": "UINT8", "shape": [1], "data": [1]}]}', "no input 'picture'"),
        (body(np.zeros((1, 28, 27), np.uint8)), "expected"),
        (body(np.zeros((1, 28, 28), np.uint8), datatype="FP32"), "expected uint8"),
        (body(np.zeros((1, 28, 28), np.uint8), shape=[2, 28, 28]), "image"),
        (body(np.zeros((1, 28, 28), np.uint8), shape=[-1, -28, 28]), "image"),
        (body(np.zeros((1, 28, 28), np.uint8), data=["a"] * 784), ""),
        (body(np.zeros((1, 28, 28), np.uint8), data=[300] * 784), ""),
    ],
)
def test_malformed_requests_are_refused_and_harm_nobody(server, digits, expected, data, said):
    with pytest.raises(urllib.error.HTTPError) as refused:
        server.get("/v2/models/digits/infer", data)
    assert 400 <= refused.value.code < 500
    text = refused.value.read().decode()
    assert said in text
    assert "Traceback" not in text
    assert server.classes(digits[:2]) == expected[:2]


def test_a_restart_under_load_loses_no_request_that_is_tried_again(server, digits, expected):
    end = time.monotonic() + 120

    def ask(k: int) -> list[int]:
        while time.monotonic() < end:
            try:
                return server.classes(digits[k % 1000 : k % 1000 + 1])
            except (OSError, ValueError):
                time.sleep(0.05)
        return []

    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = [pool.submit(ask, k) for k in range(2000)]
        while sum(a.done() for a in answers) < 50:
            time.sleep(0.01)
        server.stop()
        unanswered = sum(not a.done() for a in answers)
        server.start()
        assert unanswered > 0
        assert [a.result()[0] for a in answers] == expected * 2


def test_settings_that_make_no_sense_are_said(tmp_path):
    server = Server(tmp_path)
    settings = json.loads((tmp_path / "model-settings.json").read_text())
    settings["parameters"]["extra"] = {"speed": 11}
    (tmp_path / "model-settings.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "mlserver.cli.main", "start", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ)
    try:
        end = time.monotonic() + 60
        said = ""
        assert process.stdout is not None
        while "extra has speed" not in said and time.monotonic() < end:
            line = process.stdout.readline()
            if not line:
                break
            said += line
        assert "extra has speed" in said
        assert server.http
    finally:
        process.kill()
        process.wait()
