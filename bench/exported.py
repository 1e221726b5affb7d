"""Networks as PyTorch exports them, two of them quantised, beside onnxruntime.

    python -m bench.exported [--seconds S] [--json]

Weights are random: times do not depend on them. Answers are held against onnxruntime's first.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.environment import environment
from bench.tables import duration, table
from bench.timing import Run, alternate


class Residual(nn.Module):
    """Two 3x3 convolutions with batch normalisation around a shortcut (He et al., 2015)."""

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.first, self.last = (nn.Conv2d(maps, maps, 3, padding=1, bias=False) for _ in range(2))
        self.norm, self.norm2 = nn.BatchNorm2d(maps), nn.BatchNorm2d(maps)

    def forward(self, x: Tensor) -> Tensor:
        """[N, maps, h, w] -> the same."""
        y = torch.relu(self.norm(self.first(x)))
        return torch.relu(x + self.norm2(self.last(y)))


class Recurrent(nn.Module):
    """An LSTM over a sequence and a layer over its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(32, 64, batch_first=True), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, 32] -> [N, 10]."""
        states, _ = self.lstm(x)
        y: Tensor = self.out(states[:, -1])
        return y


def mlp() -> nn.Module:
    """784-512-256-10 with GELU and layer normalisation."""
    return nn.Sequential(
        nn.Linear(784, 512), nn.GELU(), nn.LayerNorm(512), nn.Linear(512, 256), nn.GELU(), nn.Linear(256, 10)
    )


def resnet() -> nn.Module:
    """Two residual blocks of 32 maps on 32 x 32 images, a stride, an average over the image, a dense layer."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        Residual(32),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        Residual(64),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def transformer() -> nn.Module:
    """One encoder block, width 64, 4 heads, feed-forward 256."""
    return nn.TransformerEncoderLayer(64, 4, 256, dropout=0.0, batch_first=True, norm_first=True)


@dataclass(frozen=True)
class Exported:
    """A network and the shape of its input, batch first.

    eight_bits: its products are quantised afterwards, by onnxruntime's quantize_dynamic.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    eight_bits: bool = False

    @property
    def allowed(self) -> float:
        """How far answers may be from onnxruntime's, as a share of the largest: a byte may be rounded the other way."""
        return 0.02 if self.eight_bits else 1e-4


NETS = {
    "MLP": Exported(mlp, (784,)),
    "ResNet": Exported(resnet, (3, 32, 32)),
    "transformer block": Exported(transformer, (16, 64)),
    "LSTM": Exported(Recurrent, (12, 32)),
    "MLP, 8 bits": Exported(mlp, (784,), eight_bits=True),
    "ResNet, 8 bits": Exported(resnet, (3, 32, 32), eight_bits=True),
}


@contextmanager
def _quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def export(name: str, path: Path) -> None:
    """Write one of NETS as ONNX, its batch open."""
    torch.manual_seed(0)
    net = NETS[name].make().eval()
    with _quiet(), torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
        torch.onnx.export(
            net,
            (torch.randn(3, *NETS[name].shape),),
            path,
            dynamo=True,
            input_names=["x"],
            output_names=["y"],
            dynamic_shapes=({0: torch.export.Dim("N")},),
            external_data=False,
            verbose=False,
        )
        if NETS[name].eight_bits:
            from onnxruntime.quantization import quantize_dynamic

            quantize_dynamic(path, path)


def sessions(path: Path) -> tuple[Any, Any]:
    """(hashinfer's, onnxruntime's) over one file, one thread each."""
    import onnxruntime

    import hashinfer

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    theirs = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return hashinfer.InferenceSession(path, threads=1), theirs


def batch(name: str, rows: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Normal inputs."""
    return np.random.default_rng(0).standard_normal((rows, *NETS[name].shape)).astype(np.float32)


def measure(seconds: float) -> list[dict[str, Any]]:
    """A row for each network and batch."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, net in NETS.items():
            path = Path(folder) / "net.onnx"
            export(name, path)
            ours, theirs = sessions(path)
            for count in (1, 16):
                feed = {"x": batch(name, count)}
                found, expected = ours.run(None, feed)[0], theirs.run(None, feed)[0]
                apart = float(np.abs(found - expected).max() / np.abs(expected).max())
                if not apart < net.allowed:
                    raise ValueError(f"{name}: the answers differ by {apart:.3g} of the largest")
                engines: dict[str, Run] = {
                    "hashinfer": lambda _, session=ours, feed=feed: session.run(None, feed),
                    "onnxruntime": lambda _, session=theirs, feed=feed: session.run(None, feed),
                }
                spent = alternate(engines, seconds)
                fallbacks = ours.report({"x": feed["x"].shape})["fallbacks"]
                us = {engine: 1e6 * statistics.median(samples) for engine, samples in spent.items()}
                rows.append({"net": name, "batch": count, "us": us, "fallbacks": fallbacks})
    return rows


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each network and batch")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = measure(options.seconds)
    if options.json:
        print(json.dumps({"environment": environment(), "rows": rows}, indent=1))
        return
    lines = [
        (
            f"{row['net']}, batch {row['batch']}",
            duration(row["us"]["hashinfer"]),
            duration(row["us"]["onnxruntime"]),
            f"{row['us']['onnxruntime'] / row['us']['hashinfer']:.2f}",
            ", ".join(row["fallbacks"]) or "-",
        )
        for row in rows
    ]
    print(table(("exported network", "hashinfer", "onnxruntime", "times faster", "not native"), lines))


if __name__ == "__main__":
    main()
