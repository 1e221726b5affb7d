"""`hashinfer verify`: the kernels against onnx's reference evaluator, and onnxruntime where it is installed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from hashinfer.cli.console import compiling_notice, print_json
from hashinfer.cli.inputs import load_inputs
from hashinfer.cli.shapes import chosen_shapes, random_array, shape_options

Array = npt.NDArray[Any]
REFERENCE = "reference evaluator"

Runner = Callable[[dict[str, Array]], list[Any]]


@click.command()
@click.argument("model", type=click.Path())
@click.argument("inputs", nargs=-1, metavar="[INPUT...]")
@shape_options
@click.option("--seed", default=0, show_default=True, help="Seed of the random inputs.")
@click.option(
    "--tolerance",
    default=1e-4,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Largest error allowed, relative to an output's largest value.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def command(
    model: str, inputs: tuple[str, ...], batch: int, shapes: tuple[str, ...], seed: int, tolerance: float, as_json: bool
) -> None:
    """Compare this engine on MODEL with the reference evaluator, which runs the file's own function bodies.

    Takes INPUT... as `run` does, or random inputs. The others expand every W, so this needs their memory. Exit code 1
    on a mismatch, or where nothing could be compared.
    """
    import onnx  # noqa: PLC0415

    from hashinfer.model.write import with_bodies  # noqa: PLC0415
    from hashinfer.session.session import InferenceSession  # noqa: PLC0415

    with compiling_notice():
        session = InferenceSession(model)
        names = [v.name for v in session.get_inputs()]
        feed = load_inputs(inputs, names)
        wanted = chosen_shapes(session.get_inputs(), batch, shapes)
        rng = np.random.default_rng(seed)
        for value in session.get_inputs():
            if value.name not in feed:
                feed[value.name] = random_array(rng, value.type, wanted[value.name])
        ours = session.run(None, feed)
    proto = onnx.load(model)
    hashed = {n.op_type for n in proto.graph.node if n.domain == "ai.hashinfer"}
    carried = {f.name for f in proto.functions if f.domain == "ai.hashinfer"}
    if hashed - carried:
        proto = with_bodies(proto)
    findings = [_compare(name, run, feed, ours, session, tolerance) for name, run in _runners(proto, session)]
    compared = [f for f in findings if f["match"] is not None]
    good = bool(compared) and all(f["match"] for f in compared)
    if as_json:
        print_json({"model": model, "tolerance": tolerance, "match": good, "against": findings})
    else:
        for finding in findings:
            verdict = {True: "match", False: "MISMATCH", None: "not compared"}[finding["match"]]
            detail = finding.get("problem") or f"largest error {finding['error']:.3g} of the largest value"
            print(f"{finding['name']:22} {verdict}: {detail}")
    sys.exit(0 if good else 1)


def _runners(proto: Any, session: Any) -> list[tuple[str, Runner]]:
    from onnx.reference import ReferenceEvaluator  # noqa: PLC0415

    def reference(feed: dict[str, Array]) -> list[Any]:
        with np.errstate(all="ignore"):
            return list(ReferenceEvaluator(proto).run(None, feed))

    runners: list[tuple[str, Runner]] = [(REFERENCE, reference)]
    try:
        import onnxruntime  # noqa: PLC0415
    except ImportError:
        return [*runners, ("onnxruntime", _absent)]

    def runtime(feed: dict[str, Array]) -> list[Any]:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        made = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=session.get_providers())
        return list(made.run(None, feed))

    return [*runners, (f"onnxruntime {onnxruntime.__version__}", runtime)]


def _absent(_feed: dict[str, Array]) -> list[Any]:
    raise RuntimeError("it is not installed")


def _compare(
    name: str, run: Runner, feed: dict[str, Array], ours: list[Any], session: Any, tolerance: float
) -> dict[str, Any]:
    try:
        theirs = run({k: np.asarray(v, order="C") for k, v in feed.items()})
    except Exception as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        # The reference evaluator runs every standard op: where it fails, the file's own bodies do.
        match = False if name == REFERENCE else None
        return {"name": name, "match": match, "error": None, "problem": f"it cannot run the model: {line}"}
    worst = 0.0
    for value, a, b in zip(session.get_outputs(), ours, theirs, strict=True):
        x, y = np.asarray(a), np.asarray(b)
        if x.shape != y.shape or x.dtype != y.dtype:
            problem = f"output {value.name!r} is {x.dtype}{list(x.shape)} here and {y.dtype}{list(y.shape)} there"
            return {"name": name, "match": False, "error": None, "problem": problem}
        worst = max(worst, relative_error(x, y))
    return {"name": name, "match": bool(worst <= tolerance), "error": worst if np.isfinite(worst) else str(worst)}


def relative_error(x: Array, y: Array) -> float:
    """The largest |x - y| over the largest finite |y|; Inf where NaN or Inf stand in different places."""
    if x.dtype.kind not in "fc":
        return 0.0 if np.array_equal(x, y) else float("inf")
    finite = np.isfinite(y)
    if not np.array_equal(finite, np.isfinite(x)) or not np.array_equal(x[~finite], y[~finite], equal_nan=True):
        return float("inf")
    if not finite.any():
        return 0.0
    wide, other = x[finite].astype(np.float64), y[finite].astype(np.float64)
    difference, largest = float(np.abs(wide - other).max()), float(np.abs(other).max())
    return difference / largest if largest else difference
