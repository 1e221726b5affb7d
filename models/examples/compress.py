"""Compress a dense PyTorch net: swap its layers for hashed ones and teach them the dense net's answers.

    cd models
    python examples/compress.py --images mnist-test-1k.npy --labels mnist-test-1k-labels.npy -o net.hnet

images: uint8 [N, 28, 28]; labels: whole numbers [N], for the dense net alone. For a model that is an ONNX file
already, `hashinfer compress` does the same without any code.
"""

from __future__ import annotations

import argparse
import copy

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import hashinfer.torch as ht


class Scaled(nn.Module):
    """uint8 images [N, 28, 28] -> float32 [N, 784] in 0..1."""

    def forward(self, image: Tensor) -> Tensor:
        return image.to(torch.float32).flatten(1) * (1 / 255)


def train(net: nn.Module, image: Tensor, answer: Tensor, epochs: int, rate: float, soft: bool) -> None:
    """Adam on the labels, or with `soft` on a teacher's logits."""
    optimizer = torch.optim.Adam(net.parameters(), rate)
    for _ in range(epochs):
        for at in torch.randperm(len(image)).split(64):
            logits = net(image[at])
            loss = ht.distillation_loss(logits, answer[at]) if soft else functional.cross_entropy(logits, answer[at])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True)
    parser.add_argument("--labels", required=True)
    parser.add_argument("-o", "--output", required=True)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--compression", type=float, default=32)
    args = parser.parse_args()
    image, label = torch.from_numpy(np.load(args.images)), torch.from_numpy(np.load(args.labels)).long()
    torch.manual_seed(0)
    dense = nn.Sequential(Scaled(), nn.Linear(784, 500), nn.ReLU(), nn.Linear(500, 10))
    train(dense, image, label, args.epochs, 1e-3, soft=False)
    with torch.no_grad():
        taught = dense(image)
    hashed = ht.hash_module(copy.deepcopy(dense), args.compression, init="weights")
    train(hashed, image, taught, args.epochs, 5e-3, soft=True)
    with torch.no_grad():
        agree = float((hashed(image).argmax(1) == taught.argmax(1)).double().mean())
    ht.save(hashed, image[:2], args.output, input_names=["image"], output_names=["logits"])
    before, after = (sum(p.numel() for p in net.parameters()) for net in (dense, hashed))
    print(f"{before:,} numbers -> {after:,}; {100 * agree:.1f} % of the answers agree; wrote {args.output}")


if __name__ == "__main__":
    main()
