"""`hashinfer verify`: the kernels against onnx's reference evaluator, and onnxruntime where it is installed."""

import sys
from collections.abc import Callable
from typing import Any

import click
import numpy as np

from hashinfer.cli.console import compiling_notice, print_json
from hashinfer.cli.inputs import load_inputs
from hashinfer.cli.rival import open_runtime, relative_error
from hashinfer.cli.shapes import batch_option, chosen_shapes, random_inputs, shape_option
from hashinfer.errors import first_line
from hashinfer.session.face import Array

REFERENCE = "reference evaluator"

Runner = Callable[[dict[str, Array]], list[Any]]


@click.command()
@click.argument("model", type=click.Path())
@click.argument("inputs", nargs=-1, metavar="[INPUT...]")
@batch_option
@shape_option
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
    import onnx

    from hashinfer.model.write import with_bodies
    from hashinfer.session.session import InferenceSession

    with compiling_notice():
        session = InferenceSession(model)
        values = session.get_inputs()
        feed = load_inputs(inputs, [v.name for v in values])
        wanted = chosen_shapes(values, batch, shapes)
        feed |= random_inputs([v for v in values if v.name not in feed], wanted, seed)
        ours = session.run(None, feed)
    proto = onnx.load(model)
    hashed = {n.op_type for n in proto.graph.node if n.domain == "ai.hashinfer"}
    carried = {f.name for f in proto.functions if f.domain == "ai.hashinfer"}
    if hashed - carried:
        proto = with_bodies(proto)
    findings = [_compare(name, run, feed, ours, session, tolerance) for name, run in _runners(proto)]
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


def _runners(proto: Any) -> list[tuple[str, Runner]]:
    from onnx.reference import ReferenceEvaluator

    def reference(feed: dict[str, Array]) -> list[Any]:
        with np.errstate(all="ignore"):
            return list(ReferenceEvaluator(proto).run(None, feed))

    runners: list[tuple[str, Runner]] = [(REFERENCE, reference)]
    try:
        import onnxruntime
    except ImportError:
        return [*runners, ("onnxruntime", _absent)]

    def runtime(feed: dict[str, Array]) -> list[Any]:
        return list(open_runtime(proto.SerializeToString()).run(None, feed))

    return [*runners, (f"onnxruntime {onnxruntime.__version__}", runtime)]


def _absent(_feed: dict[str, Array]) -> list[Any]:
    raise RuntimeError("it is not installed")


def _compare(
    name: str, run: Runner, feed: dict[str, Array], ours: list[Any], session: Any, tolerance: float
) -> dict[str, Any]:
    try:
        theirs = run({k: np.asarray(v, order="C") for k, v in feed.items()})
    except Exception as error:
        # The reference evaluator runs every standard op: where it fails, the file's own bodies do.
        match = False if name == REFERENCE else None
        return {"name": name, "match": match, "error": None, "problem": f"it cannot run the model: {first_line(error)}"}
    worst = 0.0
    for value, a, b in zip(session.get_outputs(), ours, theirs, strict=True):
        x, y = np.asarray(a), np.asarray(b)
        if x.shape != y.shape or x.dtype != y.dtype:
            problem = f"output {value.name!r} is {x.dtype}{list(x.shape)} here and {y.dtype}{list(y.shape)} there"
            return {"name": name, "match": False, "error": None, "problem": problem}
        worst = max(worst, relative_error(x, y))
    return {"name": name, "match": bool(worst <= tolerance), "error": worst if np.isfinite(worst) else str(worst)}
