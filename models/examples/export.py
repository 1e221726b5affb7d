"""Export a module with hashed layers of several kinds: a text classifier of bags of words, with a dynamic batch.

    python models/examples/export.py -o text.hnet

The file holds 42 thousand numbers for a table of 20,000 words by 128 and two layers; `hashinfer inspect` shows it.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

import hashinfer.torch as ht


class Text(nn.Module):
    """ids [N, length], 0 being no word -> logits [N, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.words = ht.HashedEmbeddingBag(20_000, 128, "mean", padding_idx=0, compression=64, block=8, seed=1)
        self.hidden = ht.HashedLinear(128, 256, compression=32, seed=2)
        self.out = nn.Linear(256, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(torch.relu(self.hidden(self.words(ids))))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", required=True)
    args = parser.parse_args()
    torch.manual_seed(0)
    net = Text()
    ht.save(net, torch.zeros(2, 12, dtype=torch.int64), args.output, input_names=["ids"], output_names=["logits"])
    print(f"wrote {args.output}: {sum(p.numel() for p in net.parameters()):,} numbers")


if __name__ == "__main__":
    main()
