"""What `hashinfer compress` keeps of a dense MNIST net: the README's figures of distilling.

    python -m bench.distil --data DIR --out FOLDER [--net mlp] [--net cnn]

DIR holds MNIST's four standard files. A dense net is trained on the labels and written as ONNX; the command then
compresses it from the training digits without their labels, with its own defaults. Prints the test errors, and the
processor time that each compression took.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.train_mnist import read_set

BATCH, RATE = 128, 2e-3
RUNS = {"mlp": (("8",), ("64",)), "cnn": (("64", "--layers", "node_linear*"),)}
"""Ratios, and for the CNN its dense layers alone."""


def mlp() -> nn.Module:
    """784-1000-10."""
    return nn.Sequential(
        nn.Flatten(), nn.Dropout(0.2), nn.Linear(784, 1000), nn.ReLU(), nn.Dropout(0.3), nn.Linear(1000, 10)
    )


def cnn() -> nn.Module:
    """Two convolutions of 16 and 32 maps, 1568-128-10."""
    convolutions = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    convolutions += [nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(
        *convolutions, nn.Flatten(), nn.Dropout(0.3), nn.Linear(1568, 128), nn.ReLU(), nn.Linear(128, 10)
    )


NETS: dict[str, tuple[Callable[[], nn.Module], int, tuple[int, ...]]] = {
    "mlp": (mlp, 20, (28, 28)),
    "cnn": (cnn, 8, (1, 28, 28)),
}
"""How each is made, its epochs, the shape of a digit."""


def train(net: nn.Module, x: Tensor, labels: Tensor, epochs: int) -> None:
    """Adam, its rate up and down once."""
    steps = epochs * (len(x) // BATCH)
    optimizer = torch.optim.Adam(net.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps)
    net.train()
    for _ in range(epochs):
        for at in torch.randperm(len(x)).split(BATCH)[: len(x) // BATCH]:
            loss = nn.functional.cross_entropy(net(x[at]), labels[at])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    net.eval()


def test_error(model: Path, x: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> float:
    """Per cent, in this engine."""
    import hashinfer

    with hashinfer.InferenceSession(model) as session:
        return float(100 * (session(x).argmax(1) != labels).mean())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--net", choices=tuple(NETS), action="append")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.net or NETS:
        make, epochs, shape = NETS[name]
        (x, labels), (x_test, labels_test) = (
            (images.float().div(255).view(-1, *shape), answers)
            for images, answers in (read_set(options.data, part) for part in ("train", "t10k"))
        )
        torch.manual_seed(1)
        net = make()
        train(net, x, labels, epochs)
        dense, digits = options.out / f"{name}.onnx", options.out / f"{name}-digits.npy"
        torch.onnx.export(
            net,
            (x[:2],),
            dense,
            dynamo=True,
            input_names=["x"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("N")},),
            external_data=False,
        )
        np.save(digits, x.numpy())
        print(f"{name}, dense: {test_error(dense, x_test.numpy(), labels_test.numpy()):.2f} %", flush=True)
        for ratio, *more in RUNS[name]:
            target = options.out / f"{name}-{ratio}.hnet"
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            command = [sys.executable, "-m", "hashinfer", "compress", str(dense), "-o", str(target), "--ratio", ratio]
            subprocess.run([*command, "--data", str(digits), *more], check=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            minutes = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / 60
            error = test_error(target, x_test.numpy(), labels_test.numpy())
            print(f"{name}, 1/{ratio}: {error:.2f} %, {minutes:.1f} processor minutes", flush=True)


if __name__ == "__main__":
    main()
