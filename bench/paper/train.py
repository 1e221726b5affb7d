"""Training one cell: the recipe, the loop, checkpoints."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from bench.paper.cells import PIXELS, WIDE, Cell, numbers
from bench.paper.nets import Masks, Net, Stack
from bench.paper.sets import FEW, FINE, GREY, SIZES, VERSION, Images
from hashinfer.files import atomic_write


@dataclass(frozen=True)
class Recipe:
    """How every cell is trained; chosen on validation data (bench.paper.tune).

    effort, effort_fine: a set of N images is seen effort / N^0.4 times, N counted up to `most`, and one where single
    pixels decide effort_fine / N^0.4 times. batch: a step takes batch sqrt(N) images at first, `late` times as many in
    the last third. lr: Adam's peak learning rate; a linear rise over a share `rise`, then a cosine to a hundredth.
    drop_in, drop, drop_deep: dropout of the full net's inputs, of its hidden units where there is one layer of them,
    and where there are several, which each add noise; ease: the part of these that each halving of the storage takes
    off, whatever kind of net spends it, but of drop_in only where there is one hidden layer. drop_grey, drop_fine:
    dropout of the inputs of every net in place of drop_in, of a set where few inputs are 0 and of one where single
    pixels decide. noise_few: the deviation of normal noise on the inputs of every net, of a set of few images. radius,
    radius_fine: the length of the adversarial perturbation of inputs (along the gradient of the loss: Goodfellow et
    al., 2015) of a net of 100 000 numbers, and that for a set where single pixels decide; a net of n numbers gets
    sqrt(n / 100 000) times as much, at most twice. smooth: label smoothing. ema: the decay of the average over the
    steps that is kept in the end. For distilled cells, distill: the weight of the teacher's answers at temperature
    `warmth`, for inputs without dropout, noise or perturbation; taught: the share of the hidden units' dropout that is
    left. precision: of the hidden layers' products.
    """

    effort: float = 1400.0
    effort_fine: float = 2600.0
    most: int = 12_000
    batch: float = 1.1
    late: int = 2
    lr: float = 0.004
    rise: float = 0.05
    drop_in: float = 0.25
    drop_grey: float = 0.5
    drop_fine: float = 0.0
    drop: float = 0.25
    drop_deep: float = 0.07
    ease: float = 0.1
    noise_few: float = 1.0
    radius: float = 2.0
    radius_fine: float = 0.3
    smooth: float = 0.0
    ema: float = 0.998
    distill: float = 0.7
    warmth: float = 1.0
    taught: float = 0.5
    precision: str = "bfloat16"

    def epochs(self, images: int, data: str) -> int:
        """How often the set `data` is seen, with that many images."""
        effort = self.effort_fine if data in FINE else self.effort
        return max(1, round(effort / min(images, self.most) ** 0.4))

    def batch_at(self, epoch: int, epochs: int, images: int) -> int:
        """Images a step in an epoch counted from 0, a multiple of 16."""
        size = 16 * max(1, round(self.batch * math.sqrt(images) / 16))
        return size * self.late if 3 * epoch >= 2 * epochs else size

    def drops(self, cell: Cell) -> tuple[float, float]:
        """Dropout of a cell's inputs and of its hidden units."""
        full = numbers([PIXELS, *[WIDE] * (cell.depth - 2), cell.classes])
        inputs, hidden = self.drops_at(full / cell.budget, cell.depth, cell.distilled)
        return self.drop_grey if cell.data in GREY else self.drop_fine if cell.data in FINE else inputs, hidden

    def drops_at(self, factor: float, depth: int = 3, distilled: bool = False) -> tuple[float, float]:
        """Dropout of a net of `depth` layers of units that stores the numbers of the full one over `factor`."""
        part = max(0.0, 1 - self.ease * math.log2(factor))
        hidden = (self.drop if depth == 3 else self.drop_deep) * part
        inputs = self.drop_in * part if depth == 3 else self.drop_in
        return inputs, hidden * self.taught if distilled else hidden

    def noise(self, cell: Cell) -> float:
        """The deviation of the noise on a cell's inputs, which have deviation 1."""
        return self.noise_few if cell.data in FEW else 0.0

    def radius_of(self, cell: Cell) -> float:
        """The length of the perturbation of a cell's inputs, which have deviation 1."""
        base = self.radius_fine if cell.data in FINE else self.radius
        return base * min(2.0, math.sqrt(cell.budget / 100_000))

    def digest(self, cell: Cell) -> str:
        """Eight hexadecimal digits of what a cell's training depends on beside the cell itself.

        These are the recipe for this cell and its teacher, the data sets' version,
        K of a hashed output layer, and gains.
        """
        epochs = self.epochs(SIZES[cell.data].seen, cell.data)
        steps = (epochs, self.batch, self.late, self.lr, self.rise, self.smooth, self.ema, self.precision)
        answers = (self.distill, self.warmth, self.digest(cell.teacher)) if cell.distilled else ()
        last = cell.schemes()[-1].buckets if cell.scheme else None
        drops = [round(d, 6) for d in self.drops(cell)]
        inputs = self.noise(cell), round(self.radius_of(cell), 6)
        parts = [VERSION, steps, drops, inputs, answers, last, cell.data in GREY]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Scale:
    """How grey levels become inputs: those at `zero` are 0, and one is `deviation` levels.

    Over all pixels of all images zero is the median, black but where digits lie on a background, and deviation is the
    standard deviation.
    """

    zero: float
    deviation: float

    @classmethod
    def of(cls, image: Images) -> Self:
        """Of a set's training images."""
        return cls(float(np.median(image)), float(image.std()))

    def inputs(self, image: Images) -> Tensor:
        """uint8 [N, 28, 28] -> float32 [N, 784]."""
        return (torch.from_numpy(image.reshape(len(image), -1)).float() - self.zero) / self.deviation


def train(
    cell: Cell,
    recipe: Recipe,
    x: Tensor,
    label: Tensor,
    *,
    teacher: Net | None = None,
    checkpoint: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Net, float, int]:
    """(the average over training steps, seconds of training, epochs) for inputs x [N, 784] and labels [N].

    Raises ValueError for a checkpoint of another run.
    """
    torch.manual_seed(cell.seed)
    net, mean, epochs = Net(cell), Net(cell), recipe.epochs(len(x), cell.data)
    identity = {"cell": cell.name, "recipe": recipe.digest(cell), "images": len(x)}
    drop, noise, radius = recipe.drops(cell), recipe.noise(cell), recipe.radius_of(cell)
    run = Run(cell.seed, epochs, drop, identity, checkpoint, progress, noise, radius)
    return mean, fit(net, mean, recipe, run, x, label, teacher), epochs


@dataclass(frozen=True)
class Run:
    """One training: its seed, epochs, dropout of inputs and of hidden units, and where it is kept.

    identity: what a checkpoint must say of itself. noise: the deviation of normal noise on inputs. radius: the length
    of their adversarial perturbation, which half of the loss is of; 0 for none.
    """

    seed: int
    epochs: int
    drop: tuple[float, float]
    identity: dict[str, Any]
    checkpoint: Path | None = None
    progress: Callable[[int, int], None] | None = None
    noise: float = 0.0
    radius: float = 0.0


def fit(net: Stack, mean: Stack, recipe: Recipe, run: Run, x: Tensor, label: Tensor, teacher: Stack | None) -> float:
    """Train `net` on inputs x [N, 784] and labels [N]; `mean` becomes the average over the steps. Gives the seconds.

    Resumes from the checkpoint where that file exists. Each epoch draws from its own seed: a resumed run takes the same
    steps as an unbroken one. Raises ValueError for a checkpoint of another run.
    """
    mean.load_state_dict(net.state_dict())
    weights, averages = list(net.parameters()), list(mean.parameters())
    optimizer = torch.optim.Adam(weights, lr=recipe.lr, fused=True)
    first, before = 0, 0.0
    if run.checkpoint is not None and run.checkpoint.exists():
        saved = torch.load(run.checkpoint, weights_only=True)
        if saved["identity"] != run.identity:
            raise ValueError(f"{run.checkpoint} is of another run: {saved['identity']}; expected {run.identity}")
        net.load_state_dict(saved["net"])
        mean.load_state_dict(saved["mean"])
        optimizer.load_state_dict(saved["optimizer"])
        first, before = saved["epochs"], saved["seconds"]
    narrow = x.to(getattr(torch, recipe.precision))
    answers = None if teacher is None else functional.softmax(logits_of(teacher, narrow) / recipe.warmth, 1)
    began = time.perf_counter()
    every = max(1, run.epochs // 8)
    for epoch in range(first, run.epochs):
        masks = Masks((run.seed, epoch))
        order = torch.from_numpy(np.random.default_rng([run.seed, epoch, 1]).permutation(len(x)))
        done = 0
        for at in order.split(recipe.batch_at(epoch, run.epochs, len(x))):
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * pace((epoch + done / len(x)) / run.epochs, recipe.rise)
            loss = partial(loss_of, label=label[at], recipe=recipe, answers=None if answers is None else answers[at])
            seen, share = masks.noisy(narrow[at], run.noise), 0.5 if run.radius else 1.0
            seen.requires_grad_(run.radius > 0)
            optimizer.zero_grad()
            (share * loss(net(seen, masks, run.drop))).backward()
            if run.radius:
                (share * loss(net(perturbed(seen, run.radius), masks, run.drop))).backward()
            optimizer.step()
            with torch.no_grad():
                torch._foreach_lerp_(averages, weights, 1 - recipe.ema)
            done += len(at)
        if run.checkpoint is not None and (epoch + 1) % every == 0:
            state = {"net": net.state_dict(), "mean": mean.state_dict(), "optimizer": optimizer.state_dict()}
            seconds = before + time.perf_counter() - began
            save(run.checkpoint, {"identity": run.identity, "epochs": epoch + 1, "seconds": seconds, **state})
        if run.progress is not None:
            run.progress(epoch + 1, run.epochs)
    mean.eval()
    return before + time.perf_counter() - began


def perturbed(x: Tensor, radius: float) -> Tensor:
    """Inputs x [N, 784], each moved by a length of `radius` along its gradient, x.grad; not where that is 0."""
    assert x.grad is not None
    ascent = functional.normalize(x.grad.float(), dim=1, eps=1e-20)
    return (x.detach().float() + radius * ascent).to(x.dtype)


def pace(done: float, rise: float) -> float:
    """The learning rate's share of its peak when a share `done` of the training is over."""
    if done < rise:
        return max(done, 0.01 * rise) / rise
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (done - rise) / (1 - rise)))


def loss_of(logits: Tensor, label: Tensor, recipe: Recipe, answers: Tensor | None) -> Tensor:
    """Cross entropy with the labels and, where there are any, with a teacher's softened answers (Hinton et al., 2015).

    answers: shares [N, classes], at temperature recipe.warmth.
    """
    loss = functional.cross_entropy(logits, label, label_smoothing=recipe.smooth)
    if answers is None:
        return loss
    taught = functional.cross_entropy(logits / recipe.warmth, answers)
    return (1 - recipe.distill) * loss + recipe.distill * recipe.warmth**2 * taught


@torch.no_grad()
def logits_of(net: Stack, x: Tensor) -> Tensor:
    """Logits [N, classes] in float32, in blocks."""
    return torch.cat([net(block) for block in x.split(5000)])


def error_percent(logits: Tensor, label: Tensor) -> float:
    """The share of wrong answers in percent."""
    return 100 * float((logits.argmax(1) != label).double().mean())


def save(path: Path, state: dict[str, Any]) -> None:
    """torch.save, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        torch.save(state, file)


def tensor(label: npt.NDArray[np.int64]) -> Tensor:
    """Labels as PyTorch wants them."""
    return torch.from_numpy(label.astype(np.int64))
