"""Train a hashed net from scratch and write it as an .hnet file.

    cd models
    python examples/train.py --images mnist-test-1k.npy --labels mnist-test-1k-labels.npy -o net.hnet

images: uint8 [N, 28, 28]; labels: whole numbers [N]. The thousand digits of this folder show how it is done; for a net
of use take the 60,000 training digits and more epochs (models/train_mnist.py is the whole recipe).
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import hashinfer.torch as ht


class Net(nn.Module):
    """uint8 images [N, 28, 28] -> logits [N, 10], through 1000 hidden units; 1/64 of the dense net's weights."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = ht.HashedLinear(784, 1000, buckets=10 * 1024, seed=1)
        self.out = ht.HashedLinear(1000, 10, buckets=1024, seed=2)

    def forward(self, image: Tensor) -> Tensor:
        x = image.to(torch.float32).flatten(1) * (1 / 255)
        return self.out(torch.relu(self.hidden(x)))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True)
    parser.add_argument("--labels", required=True)
    parser.add_argument("-o", "--output", required=True)
    parser.add_argument("--epochs", type=int, default=20)
    args = parser.parse_args()
    image, label = torch.from_numpy(np.load(args.images)), torch.from_numpy(np.load(args.labels)).long()
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for epoch in range(args.epochs):
        right = 0
        for at in torch.randperm(len(image)).split(64):
            logits = net(image[at])
            loss = functional.cross_entropy(logits, label[at])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            right += int((logits.argmax(1) == label[at]).sum())
        print(f"epoch {epoch + 1} of {args.epochs}: {100 * right / len(image):.1f} % of the training digits right")
    ht.save(net, image[:2], args.output, input_names=["image"], output_names=["logits"])
    print(f"wrote {args.output}: {sum(p.numel() for p in net.parameters()):,} numbers")


if __name__ == "__main__":
    main()
