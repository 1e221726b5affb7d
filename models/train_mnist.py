"""Train the MNIST models of this folder; write them, their model cards and a sample of test digits.

    python models/train_mnist.py --data DIR --out models

DIR holds MNIST's four standard files (train-images-idx3-ubyte and so on, gzipped or not). All four models are trained
unless some are named. With --holdout the last training digits are set aside, their error is printed and no file is
written: so were the parts of the recipes below compared, in short runs. The test digits are read after training, for
the card.
"""

from __future__ import annotations

import argparse
import gzip
import math
import struct
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional

import hashinfer.torch

SIDE, HIDDEN, CLASSES = 28, 1000, 10
PIXELS = SIDE * SIDE
DENSE_NUMBERS = (PIXELS + 1) * HIDDEN + (HIDDEN + 1) * CLASSES
SAMPLE = 1000
CHECK_EVERY = 5


@dataclass(frozen=True)
class Recipe:
    """One net and its training.

    buckets: K of the hidden and of the output layer. shift (pixels), rotate (degrees), stretch (share) and elastic
    (pixels): how far each training digit is distorted, anew in each epoch. drop: dropout of the hidden units.
    ema: the decay of the average over the steps that is kept in the end. distill: the weight of the teacher's
    answers, softened by `warmth`, in the loss.
    """

    scheme: str
    compression: int
    buckets: tuple[int, int]
    epochs: int
    lr: float
    elastic: float
    batch: int = 128
    shift: float = 1.0
    rotate: float = 8.0
    stretch: float = 0.08
    ema: float = 0.999
    teacher: str = ""
    drop: float = 0.0
    distill: float = 0.0
    warmth: float = 2.0

    @property
    def budget(self) -> int:
        """The numbers that may be stored, biases included."""
        return DENSE_NUMBERS // self.compression


RECIPES = {
    "mnist-dyadic-8x": Recipe("dyadic", 8, (98304, 1024), epochs=80, lr=0.002, elastic=0.7),
    "mnist-xxh32-8x": Recipe("xxh32", 8, (98304, 1062), epochs=80, lr=0.002, elastic=0.7),
    "mnist-dyadic-64x": Recipe(
        "dyadic", 64, (11264, 1024), epochs=70, lr=0.003, elastic=0.3, teacher="mnist-dyadic-8x", distill=0.7
    ),
    "mnist-xxh32-64x": Recipe(
        "xxh32", 64, (11388, 1024), epochs=70, lr=0.003, elastic=0.3, teacher="mnist-xxh32-8x", distill=0.7
    ),
}


class Net(nn.Module):
    """uint8 images [N, 28, 28] -> float32 logits [N, 10], through one hidden layer of 1000 ReLU units without bias."""

    def __init__(self, recipe: Recipe, seed: int) -> None:
        super().__init__()
        hidden, out = recipe.buckets
        self.hidden = hashinfer.torch.HashedLinear(
            PIXELS, HIDDEN, bias=False, buckets=hidden, scheme=recipe.scheme, seed=2 * seed + 1
        )
        self.out = hashinfer.torch.HashedLinear(HIDDEN, CLASSES, buckets=out, scheme=recipe.scheme, seed=2 * seed + 2)
        self.drop = nn.Dropout(recipe.drop)
        if self.numbers > recipe.budget:
            raise ValueError(f"{self.numbers} numbers; the budget of 1/{recipe.compression} is {recipe.budget}")

    @property
    def numbers(self) -> int:
        """All stored numbers: weight vectors and biases."""
        return sum(p.numel() for p in self.parameters())

    def forward(self, image: Tensor) -> Tensor:
        return self.logits((image.to(torch.float32) * (1 / 255)).flatten(1))

    def logits(self, x: Tensor) -> Tensor:
        """[N, 784] in 0..1 -> [N, 10]."""
        out: Tensor = self.out(self.drop(torch.relu(self.hidden(x))))
        return out


def read_idx(folder: Path, name: str) -> npt.NDArray[np.uint8]:
    """One of MNIST's files, plain or gzipped."""
    plain = folder / name
    raw = plain.read_bytes() if plain.exists() else gzip.decompress(plain.with_name(f"{name}.gz").read_bytes())
    zero, kind, rank = struct.unpack(">HBB", raw[:4])
    shape = struct.unpack(f">{rank}I", raw[4 : 4 + 4 * rank])
    if zero or kind != 8 or len(raw) != 4 + 4 * rank + math.prod(shape):
        raise ValueError(f"{name} is not an IDX file of bytes")
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape).copy()


def read_set(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """uint8 images [N, 28, 28] and int64 labels [N] of "train" or "t10k"."""
    image = torch.from_numpy(read_idx(folder, f"{part}-images-idx3-ubyte"))
    return image, torch.from_numpy(read_idx(folder, f"{part}-labels-idx1-ubyte")).long()


def distort(image: Tensor, recipe: Recipe) -> Tensor:
    """Images [N, 28, 28], each shifted, rotated, stretched, sheared and bent at random."""
    n = len(image)
    spread = torch.empty(n, 6).uniform_(-1, 1)
    angle = math.radians(recipe.rotate) * spread[:, 0]
    wide, high = (1 + recipe.stretch * spread[:, 1:3]).unbind(1)
    shear = 2 * recipe.stretch * spread[:, 3]
    theta = torch.stack(
        [
            torch.stack([wide * angle.cos(), wide * (shear - angle.sin())], 1),
            torch.stack([high * angle.sin(), high * angle.cos()], 1),
        ],
        1,
    )
    theta = torch.cat([theta, spread[:, 4:, None] * (2 * recipe.shift / SIDE)], 2)
    grid = functional.affine_grid(theta, [n, 1, SIDE, SIDE], align_corners=False)
    if recipe.elastic:
        bend = torch.randn(n, 2, 6, 6) * (2 * recipe.elastic / SIDE)
        bend = functional.interpolate(bend, SIDE, mode="bicubic", align_corners=False)
        grid = grid + bend.permute(0, 2, 3, 1)
    return functional.grid_sample(image[:, None], grid, align_corners=False)[:, 0]


def loss_of(net: Net, x: Tensor, label: Tensor, recipe: Recipe, teacher: Net | None) -> Tensor:
    """Cross entropy with the labels and, where there is a teacher, with its softened answers."""
    logits = net.logits(x)
    loss = functional.cross_entropy(logits, label)
    if teacher is None:
        return loss
    with torch.no_grad():
        soft = functional.softmax(teacher.logits(x) / recipe.warmth, 1)
    taught = functional.cross_entropy(logits / recipe.warmth, soft)
    return (1 - recipe.distill) * loss + recipe.distill * recipe.warmth**2 * taught


@torch.no_grad()
def predict(net: Net, image: Tensor) -> Tensor:
    """Logits [N, 10] in evaluation mode, computed in blocks."""
    net.eval()
    return torch.cat([net(block) for block in image.split(2000)])


def error_percent(logits: Tensor, label: Tensor) -> float:
    """The share of wrong answers in percent."""
    return 100 * float((logits.argmax(1) != label).double().mean())


def train(
    name: str,
    recipe: Recipe,
    seed: int,
    image: Tensor,
    label: Tensor,
    *,
    teacher: Net | None = None,
    check: Callable[[Net], float] | None = None,
    checkpoint: Path | None = None,
) -> Net:
    """The trained net: the average over training steps. Resumes from `checkpoint` where that file exists.

    Each epoch draws from its own random seed, so a resumed run takes the same steps as an unbroken one.
    """
    torch.manual_seed(seed)
    net, mean = Net(recipe, seed), Net(recipe, seed)
    mean.load_state_dict(net.state_dict())
    steps = math.ceil(len(image) / recipe.batch)
    optimizer = torch.optim.Adam(net.parameters(), lr=recipe.lr, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.lr, recipe.epochs * steps, pct_start=0.05, cycle_momentum=False, final_div_factor=100
    )
    stateful: dict[str, Any] = {"net": net, "mean": mean, "optimizer": optimizer, "schedule": schedule}
    identity = {"recipe": asdict(recipe), "seed": seed, "images": len(image)}
    first, before = 0, 0.0
    if checkpoint is not None and checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        if saved["identity"] != identity:
            raise ValueError(f"{checkpoint} is of another run: {saved['identity']}; expected {identity}")
        for key, thing in stateful.items():
            thing.load_state_dict(saved[key])
        first, before = saved["epochs"], saved["seconds"]
    scaled = image.to(torch.float32) * (1 / 255)
    began = time.perf_counter()
    for epoch in range(first + 1, recipe.epochs + 1):
        torch.manual_seed(seed * 1_000_003 + epoch)
        total = 0.0
        for at in torch.randperm(len(image)).split(recipe.batch):
            loss = loss_of(net, distort(scaled[at], recipe).flatten(1), label[at], recipe, teacher)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(at)
            with torch.no_grad():
                for slow, fast in zip(mean.parameters(), net.parameters(), strict=True):
                    slow.lerp_(fast, 1 - recipe.ema)
        seconds = before + time.perf_counter() - began
        line = f"{name} epoch {epoch}/{recipe.epochs} loss {total / len(image):.4f} {seconds:.0f} s"
        if check is not None and (epoch % CHECK_EVERY == 0 or epoch == recipe.epochs):
            line += f" held-out error {check(mean):.2f} %"
        print(line, flush=True)
        if checkpoint is not None:
            state = {key: thing.state_dict() for key, thing in stateful.items()}
            partial = checkpoint.with_suffix(".partial")
            torch.save({"identity": identity, "epochs": epoch, "seconds": seconds, **state}, partial)
            partial.replace(checkpoint)
    return mean.eval()


CARD = """\
# {name}

A net for handwritten digits with one hidden layer, 784-1000-10 with ReLU, whose two weight matrices are hashed
(HashedNets, Chen et al., ICML 2015): {numbers:,} stored numbers, biases included, against {dense:,} of the dense
net, which is 1/{ratio:.1f}.

| what | value |
|---|---|
| file | `{name}.hnet`, {file_bytes:,} bytes |
| input | `image`, uint8 [N, 28, 28]: grey levels 0..255, 0 is the background |
| output | `logits`, float32 [N, 10] |
| nodes | {nodes} |
| scheme | {scheme} |
| hidden layer, 784 x 1000 | {hidden}, no bias |
| output layer, 1000 x 10 | {out}, 10 biases |
| stored numbers | {numbers:,}; at most {budget:,} = floor({dense:,} / {compression}) allowed |
| **test error, 10,000 test digits** | **{error:.2f} %** ({wrong} wrong) |
| test error, first 1,000 test digits (`mnist-test-1k.npy`) | {error_1k:.1f} % ({wrong_1k} wrong) |
| in onnxruntime {ort} | {agree:,} of 10,000 answers equal; logits up to {largest:.1f} differ by at most {apart:.1e} |

## Data

MNIST (LeCun, Cortes, Burges): all 60,000 training digits. The test digits were used for nothing but the
figures above.

## Recipe

- {epochs} epochs of Adam in batches of {batch}; learning rate up to {lr}, then down on a cosine; {drop}.
- In each epoch every digit is distorted anew: shifted by up to {shift} pixel, rotated by up to {rotate} degrees,
  stretched by up to {stretch}, sheared{elastic}.
- The loss: {loss}.
- What is kept is the moving average of the weights over the steps (decay {ema}).
- The ingredients were compared in runs of 25 epochs with the last 10,000 training digits held out; this
  combination was then trained once, on all 60,000.

    python models/train_mnist.py {name} --data DIR --out models --seed {seed}

Written by `models/train_mnist.py` with PyTorch {torch}, {threads}.
"""


def describe(layer: hashinfer.torch.HashedLinear) -> str:
    s = layer.scheme
    return f"K = {s.buckets:,}, {s.parameter} = {s.attributes()[s.parameter]}, seed = {s.seed}"


def write(name: str, recipe: Recipe, seed: int, net: Net, test: tuple[Tensor, Tensor], out: Path) -> None:
    """Write the model, its card and the sample of test digits, and print what the card says."""
    import onnxruntime

    image, label = test
    path = out / f"{name}.hnet"
    hashinfer.torch.save(
        net,
        image[:2],
        path,
        input_names=["image"],
        output_names=["logits"],
        doc_string=f"MNIST digits, 784-1000-10, hashed ({recipe.scheme}), 1/{recipe.compression}",
    )
    np.save(out / "mnist-test-1k.npy", image[:SAMPLE].numpy())
    np.save(out / "mnist-test-1k-labels.npy", label[:SAMPLE].numpy())
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    foreign = torch.from_numpy(session.run(None, {"image": image.numpy()})[0])
    logits = predict(net, image)
    error, error_1k = error_percent(logits, label), error_percent(logits[:SAMPLE], label[:SAMPLE])
    loss = "cross entropy with the labels"
    if recipe.teacher:
        loss = (
            f"{1 - recipe.distill:.1f} of cross entropy with the labels, {recipe.distill:.1f} with the answers\n"
            f"  of `{recipe.teacher}` at temperature {recipe.warmth} (Hinton et al., 2015)"
        )
    card = CARD.format(
        name=name,
        numbers=net.numbers,
        dense=DENSE_NUMBERS,
        ratio=DENSE_NUMBERS / net.numbers,
        file_bytes=path.stat().st_size,
        nodes=" -> ".join(node.op_type for node in onnx.load(path).graph.node),
        scheme=recipe.scheme,
        hidden=describe(net.hidden),
        out=describe(net.out),
        budget=recipe.budget,
        compression=recipe.compression,
        error=error,
        wrong=round(error * len(label) / 100),
        error_1k=error_1k,
        wrong_1k=round(error_1k * SAMPLE / 100),
        ort=onnxruntime.__version__,
        agree=int((foreign.argmax(1) == logits.argmax(1)).sum()),
        apart=float((foreign - logits).abs().max()),
        largest=float(logits.abs().max()),
        epochs=recipe.epochs,
        batch=recipe.batch,
        lr=recipe.lr,
        drop=f"dropout {recipe.drop} of the hidden units" if recipe.drop else "no dropout",
        shift=recipe.shift,
        rotate=recipe.rotate,
        stretch=f"{100 * recipe.stretch:.0f} %",
        elastic=f", bent by a smooth field of {recipe.elastic} pixels (standard deviation)" if recipe.elastic else "",
        ema=recipe.ema,
        loss=loss,
        seed=seed,
        torch=torch.__version__,
        threads=f"{torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}",
    )
    path.with_suffix(".md").write_text(card)
    print(f"{name}: test error {error:.2f} % (first {SAMPLE}: {error_1k:.1f} %), {net.numbers} numbers, wrote {path}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(RECIPES)}; default: all")
    parser.add_argument("--data", type=Path, required=True, help="the folder of MNIST's four files")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="where models and cards go")
    parser.add_argument("--epochs", type=int, help="instead of the recipes' own")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--holdout", type=int, default=0, help="set this many training digits aside; write nothing")
    parser.add_argument("--checkpoint", type=Path, help="a folder to keep each run's state in and to resume from")
    parser.add_argument("--threads", type=int, help="of PyTorch")
    args = parser.parse_args()
    for name in args.names:
        if name not in RECIPES:
            parser.error(f"no model {name!r}; expected some of {', '.join(RECIPES)}")
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.checkpoint:
        args.checkpoint.mkdir(parents=True, exist_ok=True)
    image, label = read_set(args.data, "train")
    seen = len(image) - args.holdout
    held = (image[seen:], label[seen:])
    nets: dict[str, Net] = {}
    recipes = {k: replace(v, epochs=args.epochs or v.epochs) for k, v in RECIPES.items()}

    def trained(name: str) -> Net:
        if name not in nets:
            recipe = recipes[name]
            nets[name] = train(
                name,
                recipe,
                args.seed,
                image[:seen],
                label[:seen],
                teacher=trained(recipe.teacher) if recipe.teacher else None,
                check=(lambda net: error_percent(predict(net, held[0]), held[1])) if args.holdout else None,
                checkpoint=args.checkpoint / f"{name}.pt" if args.checkpoint else None,
            )
        return nets[name]

    for name in args.names or RECIPES:
        net = trained(name)
        if not args.holdout:
            args.out.mkdir(parents=True, exist_ok=True)
            write(name, recipes[name], args.seed, net, read_set(args.data, "t10k"), args.out)


if __name__ == "__main__":
    main()
