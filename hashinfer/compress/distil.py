"""Distilling a dense net into its hashed form: from inputs alone, the dense net being teacher and start.

Sources: Hinton et al., 2015 (softened answers); Zhang et al., 2018 (mixup, here of inputs that the teacher answers);
Polyak and Juditsky, 1992 (what is kept is an average over the steps).
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hashinfer.compress.data import Feed
from hashinfer.compress.interpret import Net, softmax_source
from hashinfer.compress.rewrite import Vector
from hashinfer.errors import UnsupportedError
from hashinfer.torch.losses import distillation_loss

Score = tuple[float | None, float]
"""(agreement, error)."""

STEPS_BY_DEFAULT = 30_000
HELD_OUT_SHARE, HELD_OUT_MOST = 0.1, 2000
EVALUATION_ROWS, STEPS_BETWEEN_WORDS = 256, 10
ANSWER_BYTES = 1 << 28
"""The teacher's answers to all inputs are kept where they take no more than this."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train.

    epochs: passes over the inputs, None for as many as make about 30,000 steps. batch: rows a step. rate: Adam's
    largest learning rate for weight vectors; it rises over the first 5 % of the steps and falls to nothing on a half
    cosine. rest: what part of it biases and dense weights get, which are where they should be already.
    temperature: of softened answers. mixup: the share of each batch that is mixed, pairwise, into inputs that lie in
    between (number inputs only). decay: of the moving average that is kept.
    """

    epochs: int | None = None
    batch: int = 128
    rate: float = 8e-3
    rest: float = 0.25
    temperature: float = 4.0
    mixup: float = 0.25
    decay: float = 0.999
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a training stands: after `step` of `steps`. agreement, error: the best there were, on held-out inputs.

    evaluated: whether an evaluation has just been made, as after each epoch.
    """

    step: int
    steps: int
    epoch: int
    epochs: int
    loss: float
    agreement: float | None
    error: float
    evaluated: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it. values: the best ones, by the initializer's name. agreement, error: theirs, on held-out inputs.

    agreement: the share of answers (places of the largest number along the last axis) equal to the dense net's; None
    for outputs that have no such axis. error: ||y - dense y|| / ||dense y||. diverged: whether the loss became
    infinite or NaN, which ended it.
    """

    values: dict[str, Vector]
    agreement: float | None
    error: float
    agreement_before: float | None
    error_before: float
    epochs: float
    seconds: float
    interrupted: bool
    diverged: bool
    held_out_rows: int


class Distiller:
    """One training. feed: the inputs, [N, ...] each, which `checked` has passed."""

    def __init__(self, teacher: Net, student: Net, feed: Feed, recipe: Recipe, fixed_batch: int | None = None) -> None:
        self.teacher, self.student, self.recipe, self.fixed_batch = teacher, student, recipe, fixed_batch
        graph = teacher.graph
        self.rows = len(next(iter(feed.values())))
        self.batch = fixed_batch or min(recipe.batch, max(1, self.rows // 2))
        # What comes before a Softmax says more than its probabilities.
        self.names = [softmax_source(graph, v.name) or v.name for v in graph.outputs]
        held = min(HELD_OUT_MOST, max(1, math.floor(HELD_OUT_SHARE * self.rows)))
        if fixed_batch:
            # Whole batches only, in all places.
            self.rows -= self.rows % fixed_batch
            held = max(1, held // fixed_batch) * fixed_batch
        order = torch.randperm(self.rows, generator=torch.Generator().manual_seed(recipe.seed))
        self.held, self.seen = order[:held], order[held:]
        if len(self.seen) < self.batch:
            self.seen = order
        self.feed = feed
        numbers = all(v.dtype.kind == "f" or v.dtype == np.uint8 for v in feed.values())
        self.mixup = recipe.mixup if numbers and fixed_batch is None else 0.0
        self.steps_an_epoch = max(1, len(self.seen) // self.batch)
        self.epochs = recipe.epochs or max(1, math.ceil(STEPS_BY_DEFAULT / self.steps_an_epoch))
        self.held_targets = self._answers(teacher, self.held)
        size = sum(t.numel() * t.element_size() for t in self.held_targets) // len(self.held) * self.rows
        self.answers: list[Tensor] | None = None
        if size <= ANSWER_BYTES:
            self.answers = self._answers(teacher, torch.arange(self.rows))
        self.parameters = [v for v in student.values.values() if v.requires_grad]
        self.average = [p.detach().clone() for p in self.parameters]
        self.spread = [max(float(t.float().std()), 1e-6) if t.numel() > 1 else 1.0 for t in self.held_targets]

    def _rows(self, at: Tensor) -> dict[str, Tensor]:
        # Copies, so that a mapped file is read row by row.
        return {k: torch.from_numpy(np.array(v[at.numpy()])) for k, v in self.feed.items()}

    @torch.no_grad()
    def _answers(self, net: Net, at: Tensor) -> list[Tensor]:
        size = self.fixed_batch or EVALUATION_ROWS
        parts = [net(self._rows(rows), self.names) for rows in torch.split(at, size)]
        for name, y in zip(self.names, parts[0], strict=True):
            if not y.ndim or len(y) != min(size, len(at)):
                found = f"{list(y.shape)} for {min(size, len(at))} rows of input"
                raise UnsupportedError(f"the model cannot be distilled: {name!r} has shape {found}, not one for each")
        return [torch.cat(p) for p in zip(*parts, strict=True)]

    def evaluate(self) -> Score:
        """The student's score on held-out inputs."""
        found = self._answers(self.student, self.held)
        missed = sum(float((a - b).double().square().sum()) for a, b in zip(found, self.held_targets, strict=True))
        whole = sum(float(b.double().square().sum()) for b in self.held_targets)
        error = math.sqrt(missed / whole) if whole else math.inf if missed else 0.0
        first, target = found[0], self.held_targets[0]
        if target.ndim < 2 or target.shape[-1] < 2 or not target.is_floating_point():
            return None, error
        return float((first.argmax(-1) == target.argmax(-1)).double().mean()), error

    def _loss(self, found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
        """Squared errors in units of the outputs' spread; where there are classes, softened answers beside them."""
        total = found[0].new_zeros(())
        for y, target, spread in zip(found, wanted, self.spread, strict=True):
            if not y.is_floating_point():
                continue
            total = total + functional.mse_loss(y, target) / spread**2
            if y.ndim >= 2 and y.shape[-1] >= 2:
                total = total + distillation_loss(y, target, temperature=self.recipe.temperature)
        return total

    def _batch(self, at: Tensor, generator: torch.Generator) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Inputs of a step and the teacher's answers. Only inputs that are mixed have to be answered anew."""
        inputs = self._rows(at)
        if self.answers is None:
            return inputs, self.teacher(inputs, self.names)
        wanted = [t[at] for t in self.answers]
        mixed = round(self.mixup * len(at))
        if not mixed:
            return inputs, wanted
        other = torch.randperm(len(at), generator=generator)[:mixed]
        share = torch.rand(mixed, generator=generator)
        between = {}
        for name, x in inputs.items():
            part = share.view(-1, *[1] * (x.ndim - 1))
            blend = x[:mixed] * part + x[other] * (1 - part)
            between[name] = (blend.round() if x.dtype == torch.uint8 else blend).to(x.dtype)
        for target, answer in zip(wanted, self.teacher(between, self.names), strict=True):
            target[:mixed] = answer
        return {k: torch.cat([between[k], x[mixed:]]) for k, x in inputs.items()}, wanted

    def run(self, told: Callable[[Progress], None] = lambda _: None) -> Outcome:
        """Train. A KeyboardInterrupt ends it early and well: the best values so far are what comes out."""
        started = time.perf_counter()
        start = self.evaluate()
        self._best, self._best_values, self._step = start, self.student.trained(), 0
        interrupted = diverged = False
        try:
            self._train(told)
        except KeyboardInterrupt:
            interrupted = True
            if self._step:
                self._judge()
        except FloatingPointError:
            diverged = True
        return Outcome(
            self._best_values,
            *self._best,
            *start,
            epochs=self._step / self.steps_an_epoch,
            seconds=time.perf_counter() - started,
            interrupted=interrupted,
            diverged=diverged,
            held_out_rows=len(self.held),
        )

    def _train(self, told: Callable[[Progress], None]) -> None:
        """All steps. Raises FloatingPointError where the loss is no finite number any more."""
        steps = self.epochs * self.steps_an_epoch
        optimizer, schedule = self._optimizer(steps)
        for epoch in range(self.epochs):
            generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + epoch)
            order = self.seen[torch.randperm(len(self.seen), generator=generator)]
            total = 0.0
            for k in range(self.steps_an_epoch):
                inputs, wanted = self._batch(order[k * self.batch : (k + 1) * self.batch], generator)
                loss = self._loss(self.student(inputs, self.names), wanted)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                self._step += 1
                self._follow()
                total += float(loss.detach())
                if not math.isfinite(total):
                    raise FloatingPointError
                if self._step % STEPS_BETWEEN_WORDS == 0:
                    told(Progress(self._step, steps, epoch, self.epochs, total / (k + 1), *self._best))
            self._judge()
            mean = total / self.steps_an_epoch
            told(Progress(self._step, steps, epoch + 1, self.epochs, mean, *self._best, evaluated=True))

    def _optimizer(self, steps: int) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        recipe = self.recipe
        hashed = [self.student.values[name] for name in self.student.weights]
        rest = [p for p in self.parameters if not any(p is h for h in hashed)]
        groups = [{"params": hashed, "lr": recipe.rate}, {"params": rest, "lr": recipe.rate * recipe.rest}]
        optimizer = torch.optim.Adam([g for g in groups if g["params"]], fused=True)
        warm = max(1, steps // 20)

        def rate(step: int) -> float:
            if step < warm:
                return (step + 1) / warm
            return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, rate)

    @torch.no_grad()
    def _follow(self) -> None:
        """The average moves after a step; faster at the beginning, so that the start is soon forgotten."""
        decay = min(self.recipe.decay, self._step / (self._step + 10))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)

    @torch.no_grad()
    def _judge(self) -> None:
        """Evaluate the average, and keep it if it is the best so far."""
        kept = [p.detach().clone() for p in self.parameters]
        torch._foreach_copy_(self.parameters, self.average)
        found = self.evaluate()
        if _better(found, self._best):
            self._best, self._best_values = found, self.student.trained()
        torch._foreach_copy_(self.parameters, kept)


def _better(found: Score, best: Score) -> bool:
    """More agreement, or as much and less error; less error where there is no agreement to speak of."""
    if found[0] is None or best[0] is None:
        return found[1] < best[1]
    return (found[0], -found[1]) > (best[0], -best[1])
