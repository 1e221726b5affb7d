"""`hashinfer compress`: a dense ONNX model becomes a hashed one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from hashinfer.cli.console import compiling_notice, print_json, report_console, report_table
from hashinfer.cli.inputs import load_inputs
from hashinfer.cli.memory import readable
from hashinfer.errors import InputError

if TYPE_CHECKING:
    from hashinfer.compress import Report
    from hashinfer.compress.distil import Progress

INTERRUPTED = 130
LINES_UNSEEN = 10
"""Progress lines of a training whose standard error is no terminal."""


@click.command()
@click.argument("model", type=click.Path())
@click.option("-o", "--output", required=True, type=click.Path(), help="The .hnet file to write.")
@click.option(
    "--ratio",
    default="64",
    show_default=True,
    metavar="R|auto:ERR",
    help="Dense numbers to stored numbers, biases included; auto:ERR finds the largest ratio that keeps the outputs' "
    "relative error, by least squares, within ERR.",
)
@click.option(
    "--scheme",
    type=click.Choice(["dyadic", "xxh32"]),
    default="dyadic",
    show_default=True,
    help="How weights are hashed; tables of Gather are always of xxh32.",
)
@click.option("--block", type=int, default=1, show_default=True, help="Outputs that share a hash, of scheme xxh32.")
@click.option(
    "--layers",
    multiple=True,
    metavar="PATTERN",
    help="Hash only weights whose own or whose node's name matches this glob; the ratio is then theirs. Repeatable.",
)
@click.option(
    "--data",
    multiple=True,
    metavar="INPUTS",
    help="Inputs, without labels, to distil with: .npy, .npz or NAME=FILE. Repeatable. Needs PyTorch.",
)
@click.option("--epochs", type=int, help="Passes over the data. Default: as many as make about 30,000 steps.")
@click.option("--batch", type=int, default=128, show_default=True, help="Rows a training step.")
@click.option("--rate", type=float, default=8e-3, show_default=True, help="The largest learning rate (Adam).")
@click.option(
    "--weights",
    "stored",
    type=click.Choice(["float32", "float16", "int8"]),
    default="float32",
    show_default=True,
    help="How the weight vectors are stored.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the hashes and of the training.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Threads of the training. Default: PyTorch's.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(
    model: str,
    output: str,
    ratio: str,
    data: tuple[str, ...],
    epochs: int | None,
    threads: int | None,
    as_json: bool,
    **chosen: Any,
) -> None:
    """Hash the weights of MODEL, any ONNX model with MatMul, Gemm, Conv or Gather weights, into an .hnet file.

    Without data each weight vector is the least-squares one, which is crude: use it to see sizes and speed. With
    data the dense model teaches the hashed one its own answers. Ctrl-C ends the training early: the best so far is
    written, and the exit code is 130.
    """
    from hashinfer.compress import Options, compress

    asked, most = _ratio(ratio)
    if not data and (epochs is not None or threads is not None):
        raise InputError("--epochs and --threads are for distilling; expected --data with them")
    options = Options(asked, most, epochs=epochs, **chosen)

    def inputs(names: Sequence[str]) -> dict[str, Any]:
        if threads is not None:
            import torch

            torch.set_num_threads(threads)
        return load_inputs(data, names)

    with compiling_notice(), _training_progress() as told:
        report = compress(model, output, options, inputs if data else None, told)
    if as_json:
        print_json({"model": model, "output": output, **report.as_dict()})
    else:
        _show(output, report)
    if report.interrupted:
        sys.exit(INTERRUPTED)


def _ratio(text: str) -> tuple[float | None, float | None]:
    """(ratio, error to keep), one of them None."""
    kind, sign, number = text.rpartition(":")
    try:
        value = float(number)
    except ValueError:
        sign, kind = ":", "?"
    if sign and kind != "auto":
        raise InputError(f"--ratio {text!r}; expected a number above 1, or auto:ERR with an error above 0")
    return (None, value) if sign else (value, None)


@contextmanager
def _training_progress() -> Iterator[Callable[[Progress], None]]:
    """A bar on standard error, or a few lines where that is no terminal."""
    from rich import progress as rich_progress
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    columns = (
        rich_progress.TextColumn("distilling, epoch {task.fields[epoch]}"),
        rich_progress.BarColumn(),
        rich_progress.TextColumn("loss {task.fields[loss]:.4g}  held out: {task.fields[held]}"),
        rich_progress.TimeElapsedColumn(),
        rich_progress.TextColumn("left"),
        rich_progress.TimeRemainingColumn(),
    )
    lines = -1
    with rich_progress.Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", start=False, visible=False, epoch="", loss=0.0, held="")

        def told(now: Progress) -> None:
            nonlocal lines
            epoch, held = f"{now.epoch} of {now.epochs}", _held(now.agreement, now.error)
            if console.is_terminal:
                bar.start_task(task)
                bar.update(
                    task, total=now.steps, completed=now.step, visible=True, epoch=epoch, loss=now.loss, held=held
                )
            elif now.step * LINES_UNSEEN // now.steps > lines and now.evaluated:
                lines = now.step * LINES_UNSEEN // now.steps
                console.print(f"epoch {epoch}, loss {now.loss:.4g}, held out: {held}")

        yield told


def _held(agreement: float | None, error: float) -> str:
    shown = f"error {error:.3g}"
    return shown if agreement is None else f"{100 * agreement:.2f} % agree, {shown}"


def _show(output: str, report: Report) -> None:
    from rich.markup import escape

    console = report_console()
    columns = ("weight", "op", "shape", "what was done", "numbers", "factor", "error of W (least squares)")
    table = report_table(None, *columns)
    for layer in report.layers:
        before, after = layer.numbers
        hashed, done = layer.scheme, layer.done
        if hashed is not None:
            parameter = f"{hashed.parameter} {hashed.attributes()[hashed.parameter]}"
            done = f"hashed, {hashed.name}, {hashed.rows} x {hashed.cols}, {parameter}, seed {hashed.seed}"
        table.add_row(
            escape(layer.weight),
            layer.op,
            escape(str(list(layer.shape))),
            escape(done),
            f"{before:,} -> {after:,}" if hashed is not None else f"{before:,}",
            f"{before / after:.1f}" if hashed is not None else "1",
            "" if layer.error is None else f"{layer.error:.3f}",
        )
    console.print(table)
    dense, stored = report.numbers
    asked = "" if report.allowed is None else f"; allowed {report.allowed:,}"
    console.print(f"numbers  {dense:,} -> {stored:,}, biases included: [bold]{report.ratio:.1f} times fewer[/]{asked}")
    before_bytes, after_bytes = report.file_bytes
    console.print(f"file     {output}: {readable(after_bytes)}, from {readable(before_bytes)}", markup=False)
    if report.training is not None:
        t = report.training
        ended = "stopped early" if report.interrupted else "done"
        console.print(
            f"training {ended}: {t['epochs']:.3g} epochs, {t['seconds']:.0f} s; on {t['held_out_rows']} held-out rows "
            f"{_held(t['agreement'], t['error'])} (at the start {_held(t['agreement_before'], t['error_before'])})"
        )
    if report.output_error is not None:
        console.print(f"outputs  relative error {report.output_error:.3g} on {report.measured_on}, in this engine")
    for note in report.notes:
        console.print(f"note     {note}", markup=False)
    if report.training is None and any(layer.scheme for layer in report.layers):
        console.print(
            "note     least squares alone keeps the mean of each bucket: an error of W of 0.99 means that next to "
            "nothing of it is left. Give --data INPUTS to train the weight vectors to the dense model's answers.",
            markup=False,
        )
