"""From a dense net to a small one that runs anywhere, in six steps, on the digits that are shipped.

    pip install '.[torch]'
    python models/examples/tutorial.py --out /tmp/tutorial

Each step says what it did. A thousand digits are few: 800 of them train here, 200 judge, so expect some ten per cent of
error; what to watch is how little of it the compression costs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import hashinfer
from hashinfer.compress import Options, compress
from hashinfer.native.emit.build import build
from hashinfer.native.emit.targets import resolve

MODELS = Path(__file__).resolve().parent.parent
SEEN = 800


class Dense(nn.Module):
    """784-500-10 on grey levels in 0..1."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(784, 500), nn.Linear(500, 10)

    def forward(self, image: Tensor) -> Tensor:
        """[N, 28, 28] -> logits [N, 10]."""
        logits: Tensor = self.out(torch.relu(self.hidden(image.flatten(1))))
        return logits


def train(net: nn.Module, image: Tensor, label: Tensor, epochs: int) -> None:
    """Adam on the labels."""
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(epochs):
        for at in torch.randperm(len(image)).split(64):
            loss = functional.cross_entropy(net(image[at]), label[at])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def judge(path: Path, image: np.ndarray, label: np.ndarray) -> tuple[float, float]:
    """(error in per cent, median microseconds of one digit) of a model in this engine, on one thread."""
    with hashinfer.InferenceSession(path, threads=1) as session:
        error = 100 * float((session(image).argmax(1) != label).mean())
        one, times = image[:1], []
        for _ in range(300):
            started = time.perf_counter()
            session(one)
            times.append(time.perf_counter() - started)
    return error, 1e6 * statistics.median(times)


def main() -> None:
    """The six steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder for what is made")
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    dense, hashed = options.out / "dense.onnx", options.out / "hashed.hnet"
    image = np.load(MODELS / "mnist-test-1k.npy").astype(np.float32) / 255
    label = np.load(MODELS / "mnist-test-1k-labels.npy")

    print("1. train a dense net in PyTorch")
    torch.manual_seed(0)
    net = Dense()
    train(net, torch.from_numpy(image[:SEEN]), torch.from_numpy(label[:SEEN]).long(), options.epochs)

    print("2. export it as ONNX")
    torch.onnx.export(
        net.eval(),
        (torch.zeros(2, 28, 28),),
        dense,
        dynamo=True,
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("N")},),
        external_data=False,
        verbose=False,
    )

    print("3. compress it to 1/16, from the digits without their labels")
    report = compress(dense, hashed, Options(ratio=16, epochs=4 * options.epochs), {"image": image[:SEEN]})
    print(f"   {report.numbers[0]:,} numbers -> {report.numbers[1]:,}")

    print("4. run both, and measure")
    for path in (dense, hashed):
        error, us = judge(path, image[SEEN:], label[SEEN:])
        print(f"   {path.name:12} {path.stat().st_size:9,} bytes  error {error:5.1f} %  {us:6.1f} us a digit")

    print("5. look at how it runs")
    with hashinfer.InferenceSession(hashed) as session:
        for step in session.report({"image": (1, 28, 28)})["steps"]:
            if "kernel" in step:
                print(f"   {step['op']}: {step['kernel']}, {step['reason']}")

    print("6. compile it for a Cortex-M4")
    built = build(hashed, resolve("cortex-m4"), "o", "digits")
    (options.out / "digits.o").write_bytes(built.data)
    (options.out / "digits.h").write_text(built.header)
    print(f"   {len(built.data):,} bytes of object code, {built.about['scratch']:,} bytes of scratch")


if __name__ == "__main__":
    main()
