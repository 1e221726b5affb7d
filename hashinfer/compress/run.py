"""From a dense model file to a compressed one: find, allocate, fit, distil, write, and say what it cost."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import ModelProto, numpy_helper

from hashinfer.compress.budget import Budget, Wish, allocate
from hashinfer.compress.data import Feed, checked, fixed_rows, random_feed
from hashinfer.compress.find import Weight, chosen, find
from hashinfer.compress.fit import least_squares
from hashinfer.compress.prepare import float_numbers, prepared
from hashinfer.compress.rewrite import STORED_DTYPES, Rewritten, Vector
from hashinfer.errors import HashinferError, InputError, ModelError
from hashinfer.model.graph import Array, Model
from hashinfer.model.read import read_model
from hashinfer.model.write import save, serialized
from hashinfer.schemes import Scheme, Xxh32, scheme_named
from hashinfer.session.session import InferenceSession

if TYPE_CHECKING:
    from hashinfer.compress.distil import Outcome, Progress

Fits = dict[str, tuple[Vector, float]]
"""By name of the hashed weights: the least-squares weight vector, and how far its W is off, relative."""

MEASURED_ROWS = 512
LARGEST_RATIO = 1e6
AUTO_STEPS = 12
TRAINING_FIELDS = ("epochs", "seconds", "held_out_rows", "agreement_before", "agreement", "error_before", "error")


@dataclass(frozen=True, slots=True)
class Options:
    """What is asked for.

    ratio: dense numbers to stored numbers, above 1. max_error: instead of a ratio, the relative error of the outputs
    to keep within: the largest ratio that does is taken. scheme, block, seed: of the hashed weights; tables of Gather
    are always of scheme xxh32. layers: globs over names of weights and nodes; none: all weights that gain by it.
    stored: dtype of the weight vectors. epochs, batch, rate: of a distillation.
    Raises InputError for a value out of range.
    """

    ratio: float | None = 64.0
    max_error: float | None = None
    scheme: str = "dyadic"
    block: int = 1
    seed: int = 0
    layers: tuple[str, ...] = ()
    stored: str = "float32"
    epochs: int | None = None
    batch: int = 128
    rate: float = 8e-3

    def __post_init__(self) -> None:
        if (self.ratio is None) == (self.max_error is None):
            raise InputError("a ratio and an error to keep are given; expected one of them")
        if self.ratio is not None and not (math.isfinite(self.ratio) and 1 < self.ratio <= LARGEST_RATIO):
            raise InputError(f"the ratio is {self.ratio:g}; expected a number above 1 and at most {LARGEST_RATIO:g}")
        if self.max_error is not None and not (math.isfinite(self.max_error) and self.max_error > 0):
            raise InputError(f"the error to keep is {self.max_error:g}; expected a number above 0")
        scheme_named(self.scheme)
        if self.stored not in STORED_DTYPES:
            raise InputError(f"the weights are {self.stored!r}; expected one of {', '.join(STORED_DTYPES)}")
        for name, value, low, high in (
            ("seed", self.seed, 0, 2**32 - 1),
            ("block", self.block, 1, 2**30 - 1),
            ("batch", self.batch, 1, 2**20),
            ("epochs", 1 if self.epochs is None else self.epochs, 1, 2**31),
        ):
            if not low <= value <= high:
                raise InputError(f"the {name} is {value}; expected {low} to {high}")
        if not (math.isfinite(self.rate) and self.rate > 0):
            raise InputError(f"the learning rate is {self.rate:g}; expected a number above 0")


@dataclass(frozen=True, slots=True)
class Layer:
    """What was done with one weight. error: of W, relative, in the Frobenius norm, by least squares; None if dense."""

    weight: str
    nodes: tuple[str, ...]
    op: str
    shape: tuple[int, ...]
    done: str
    scheme: Scheme | None = None
    error: float | None = None

    @property
    def numbers(self) -> tuple[int, int]:
        """Before and after."""
        size = math.prod(self.shape)
        return size, size if self.scheme is None else self.scheme.buckets


@dataclass(slots=True)
class Report:
    """What came of a compression; `as_dict` is what --json prints. Errors of outputs: ||y - dense y|| / ||dense y||."""

    layers: list[Layer] = field(default_factory=list)
    numbers: tuple[int, int] = (0, 0)
    file_bytes: tuple[int, int] = (0, 0)
    asked: float | None = None
    allowed: int | None = None
    max_error: float | None = None
    output_error: float | None = None
    measured_on: str = ""
    training: dict[str, Any] | None = None
    interrupted: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Dense numbers to stored ones, of the whole model."""
        return self.numbers[0] / max(1, self.numbers[1])

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "layers": [_layer_dict(layer) for layer in self.layers],
            "dense_numbers": self.numbers[0],
            "stored_numbers": self.numbers[1],
            "allowed_numbers": self.allowed,
            "ratio": self.ratio,
            "ratio_asked": self.asked,
            "max_error": self.max_error,
            "dense_bytes": self.file_bytes[0],
            "file_bytes": self.file_bytes[1],
            "output_error": self.output_error,
            "measured_on": self.measured_on,
            "training": self.training,
            "interrupted": self.interrupted,
            "notes": self.notes,
        }


def _layer_dict(layer: Layer) -> dict[str, Any]:
    before, after = layer.numbers
    out: dict[str, Any] = {
        "weight": layer.weight,
        "nodes": list(layer.nodes),
        "op": layer.op,
        "shape": list(layer.shape),
        "done": layer.done,
        "dense_numbers": before,
        "stored_numbers": after,
    }
    if layer.scheme is not None:
        out |= {"scheme": layer.scheme.name, "buckets": layer.scheme.buckets, **layer.scheme.attributes()}
        out |= {"factor": before / after, "weight_error": layer.error}
    return out


def compress(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    options: Options,
    data: Callable[[Sequence[str]], Feed] | Feed | None = None,
    told: Callable[[Progress], None] = lambda _: None,
) -> Report:
    """Compress the ONNX model at `source` into an .hnet file at `target`, written whole or not at all.

    data: inputs by name, [N, ...] each, or a function that gives them for the model's input names. With them the net
    is distilled (needs PyTorch); a KeyboardInterrupt then ends the training, and the best values so far are written.
    told: called with where the training stands.
    Raises InputError, ModelError, UnsupportedError or OSError before any work; ImportError without PyTorch.
    """
    _check_target(source, target)
    checked_model = read_model(source)
    feed = None
    if data is not None:
        _need_torch()
        given = data([v.name for v in checked_model.graph.inputs]) if callable(data) else data
        feed = checked(given, checked_model.graph.inputs)
    job = _Job(prepared(onnx.load(source), options.stored == "int8"), checked_model, options, feed)
    budget = job.budget()
    rewritten, fits = job.fitted(budget)
    report = job.report(budget, fits)
    values = {name: w for name, (w, _) in fits.items()}
    if feed is not None:
        outcome = job.distilled(budget, fits, told)
        values = outcome.values
        report.training = {name: getattr(outcome, name) for name in TRAINING_FIELDS}
        report.interrupted = outcome.interrupted
        if outcome.diverged:
            report.notes.append(
                f"the training diverged after {outcome.epochs:.3g} epochs: what is written is the best before; a "
                f"smaller --rate than {options.rate:g} may help"
            )
    rewritten.set(values)
    rewritten.model.producer_name, rewritten.model.producer_version = "hashinfer", ""
    report.output_error, problem = job.output_error(rewritten.model)
    report.measured_on = job.measured_on
    if problem is not None:
        report.notes.append(f"the outputs could not be compared with the dense model's: {problem}")
    save(rewritten.model, target)
    report.file_bytes = (checked_model.file_bytes, Path(target).stat().st_size)
    return report


def _check_target(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    path = Path(target).resolve()
    if path == Path(source).resolve():
        raise InputError(f"the output {os.fspath(target)} is the model itself")
    if not path.parent.is_dir():
        raise InputError(f"the output's folder {path.parent} does not exist")
    if path.is_dir():
        raise InputError(f"the output {os.fspath(target)} is a folder")


def _need_torch() -> None:
    try:
        import hashinfer.torch  # noqa: F401
    except ImportError as error:
        raise InputError(f"distilling with data needs PyTorch: pip install 'hashinfer[torch]' ({error})") from error


class _Job:
    def __init__(self, model: ModelProto, checked_model: Model, options: Options, feed: Feed | None) -> None:
        self.model, self.options = model, options
        weights, self.passed = find(model.graph)
        self.weights = chosen(weights, self.passed, options.layers)
        self.left_out = [w for w in weights if w not in self.weights]
        self.total = float_numbers(model.graph)
        if options.scheme != Xxh32.name and options.block != 1 and not any(w.form == "table" for w in self.weights):
            raise InputError(f"the block is {options.block} with scheme 'dyadic'; runs belong to scheme 'xxh32'")
        self.dense_bytes = model.SerializeToString()
        self.graph = read_model(self.dense_bytes).graph
        self.feed = feed
        if feed is not None:
            from hashinfer.compress.interpret import check_trainable

            check_trainable(self.graph)
        self.inputs = checked_model.graph.inputs
        self._expected: list[Array] | None = None
        self._sample: Feed = {}

    def budget(self, ratio: float | None = None) -> Budget:
        """Schemes for the ratio asked for, or the one found to keep the error asked for."""
        options = self.options
        wish = Wish(options.scheme, options.block, options.seed)
        wanted = ratio or options.ratio
        if wanted is not None:
            return allocate(self.weights, self.total, wanted, wish, all_layers=not options.layers)
        return self.budget(self._ratio_within(options.max_error or 0.0))

    def _ratio_within(self, most: float) -> float:
        """The largest ratio, to about 1 %, whose least-squares fit keeps the outputs' relative error within `most`."""
        low, high = 1.001, float(max(2, self.total))

        def error(ratio: float) -> float:
            try:
                budget = self.budget(ratio)
            except InputError:
                return math.inf
            rewritten, fits = self.fitted(budget)
            rewritten.set({name: w for name, (w, _) in fits.items()})
            found, problem = self.output_error(rewritten.model)
            if found is None:
                raise ModelError(f"no ratio can be found by the outputs' error: {problem}")
            return found

        least = error(low)
        if least > most:
            raise InputError(
                f"no ratio keeps the outputs' relative error within {most:g}: at {low:g} it is {least:.3g} already "
                f"(data to distil with, or fewer --layers, may help)"
            )
        for _ in range(AUTO_STEPS):
            if high / low < 1.01:
                break
            middle = math.sqrt(low * high)
            low, high = (middle, high) if error(middle) <= most else (low, middle)
        return low

    def report(self, budget: Budget, fits: Fits) -> Report:
        """The report of what is about to be done."""
        options = self.options
        out = Report(numbers=(self.total, budget.numbers), asked=options.ratio, allowed=budget.allowed)
        out.max_error = options.max_error
        if budget.note:
            out.notes.append(budget.note)
        for weight in (w for w in self.weights if w.name in fits):
            scheme = budget.schemes[weight.name]
            out.layers.append(_layer(weight, "hashed", scheme, fits[weight.name][1]))
            if scheme.name == "dyadic" and scheme.cols > scheme.buckets:
                out.notes.append(
                    f"{weight.name!r} has {scheme.cols} outputs over {scheme.buckets} buckets: columns of its W repeat "
                    "up to sign; a smaller ratio or --scheme xxh32 avoids that"
                )
        for weight in self.weights:
            if weight.name in budget.dense:
                out.layers.append(_layer(weight, f"stays dense: {budget.dense[weight.name]}"))
        out.layers += [_layer(w, "stays dense: not chosen by --layers") for w in self.left_out]
        out.layers += [Layer(p.name, (p.node,), p.op, p.shape, f"stays dense: {p.reason}") for p in self.passed]
        return out

    def fitted(self, budget: Budget) -> tuple[Rewritten, Fits]:
        """The model with hashed weights, and what fits them best."""
        tensors = {t.name: t for t in self.model.graph.initializer}
        fits = {
            weight.name: least_squares(weight.matrix(numpy_helper.to_array(tensors[weight.name])), scheme)
            for weight in self.weights
            if (scheme := budget.schemes.get(weight.name)) is not None
        }
        return Rewritten(self.model, self.weights, budget.schemes, self.options.stored), fits

    def distilled(self, budget: Budget, fits: Fits, told: Callable[[Progress], None]) -> Outcome:
        """The outcome of training on the user's inputs."""
        from hashinfer.compress.distil import Distiller, Recipe
        from hashinfer.compress.interpret import Net

        options = self.options
        student = Net(self.graph, self.weights, budget.schemes, options.stored, trainable=True)
        recipe = Recipe(epochs=options.epochs, batch=options.batch, rate=options.rate, seed=options.seed)
        # Least squares holds so much of the norm; a start at full scale learns faster.
        student.load({name: w / math.sqrt(max(1e-12, 1 - error * error)) for name, (w, error) in fits.items()})
        return Distiller(Net(self.graph), student, self.feed or {}, recipe, fixed_rows(self.inputs)).run(told)

    def output_error(self, model: ModelProto) -> tuple[float | None, str | None]:
        """The relative error of `model`'s outputs in this engine, or why there is none to be had."""
        try:
            if self._expected is None:
                self._sample = self._measured_feed()
                self._expected = InferenceSession(self.dense_bytes).run(None, self._sample)
            found = InferenceSession(serialized(model)).run(None, self._sample)
        except HashinferError as error:
            return None, str(error)
        missed = whole = 0.0
        for y, expected in zip(found, self._expected, strict=True):
            if isinstance(expected, np.ndarray) and expected.dtype.kind == "f":
                missed += float(np.square(y.astype(np.float64) - expected).sum())
                whole += float(np.square(expected.astype(np.float64)).sum())
        if not math.isfinite(missed) or whole == 0:
            return None, "they are not finite, or all zero"
        return math.sqrt(missed / whole), None

    def _measured_feed(self) -> Feed:
        if self.feed is None:
            return random_feed(self.graph, self.options.seed)
        rows = len(next(iter(self.feed.values())))
        count = fixed_rows(self.inputs) or min(rows, MEASURED_ROWS)
        return {k: np.ascontiguousarray(v[-count:]) for k, v in self.feed.items()}

    @property
    def measured_on(self) -> str:
        """What `output_error` is measured on, in words."""
        rows = len(next(iter(self._sample.values()))) if self._sample else 0
        return f"{rows} rows of the data" if self.feed is not None else f"{rows} random rows, seed {self.options.seed}"


def _layer(weight: Weight, done: str, scheme: Scheme | None = None, error: float | None = None) -> Layer:
    return Layer(weight.name, weight.nodes, "+".join(weight.ops), weight.shape, done, scheme, error)
