"""`hashinfer inspect`: what is in a model and how it would run."""

from typing import Any

import click

from hashinfer.cli import trade
from hashinfer.cli.console import compiling_notice, print_json, report_console, report_table
from hashinfer.cli.memory import readable
from hashinfer.cli.shapes import batch_option, chosen_shapes, shape_option
from hashinfer.cli.trade import budget_option
from hashinfer.errors import InputError


@click.command()
@click.argument("model", type=click.Path())
@batch_option
@shape_option
@click.option("--threads", type=click.IntRange(1, 1024), help="Threads to plan for.")
@budget_option
@click.option("--trade", "measured", is_flag=True, help="Also measure what a memory budget buys, from none upwards.")
@click.option("--picture", type=click.Path(), help="With --trade: draw it there, as PNG.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole report as JSON.")
def command(
    model: str,
    batch: int,
    shapes: tuple[str, ...],
    threads: int | None,
    memory_budget: str | None,
    measured: bool,
    picture: str | None,
    as_json: bool,
) -> None:
    """Show the layers, sizes, kernels, buffers and fallbacks of MODEL for one batch size."""
    from hashinfer.session.session import InferenceSession

    if picture is not None:
        if not measured:
            raise InputError("--picture draws what --trade measures; give both")
        trade.need_matplotlib()
    with compiling_notice():
        session = InferenceSession(model, threads=threads, memory_budget=memory_budget)
        wanted = chosen_shapes(session.get_inputs(), batch, shapes)
        report = session.report(wanted)
        if measured:
            report["trade"] = trade.trade(model, threads, wanted)
    if picture is not None:
        trade.draw(report["trade"], f"{model}, batch {batch}, {session.threads} threads", picture)
    if as_json:
        print_json(report)
        return
    _show(model, report)
    if measured:
        trade.show(report["trade"])


def _show(path: str, report: dict[str, Any]) -> None:
    from rich.markup import escape

    console = report_console()
    model, memory = report["model"], report["memory"]
    heading = f"{path}  {readable(model['file_bytes'])}, opset {model['opset']}, {model['producer']}"
    console.print(heading, markup=False)
    for kind in ("inputs", "outputs"):
        for value in report[kind]:
            console.print(f"{kind[:-1]:8} {value['name']}  {value['type']} {value['shape']}", markup=False)
    if model["compression_factor"]:
        console.print(
            f"weights  {model['stored_numbers']:,} numbers stored for {model['virtual_numbers']:,} virtual ones: "
            f"[bold]{model['compression_factor']:.1f} times smaller[/]"
        )
    hashed = [s for s in report["steps"] if "hashed" in s]
    if hashed:
        columns = ("node", "scheme", "virtual W", "K", "block/width", "seed", "dtype", "factor", "bucket load")
        table = report_table("Hashed layers", *columns)
        for step in hashed:
            h = step["hashed"]
            load = h["bucket_load"]
            table.add_row(
                escape(step["nodes"][min(1, len(step["nodes"]) - 1)]),
                h["scheme"] + ("" if h["finite"] else " (NaN or Inf in w)"),
                f"{h['rows']} x {h['cols']}",
                str(h["buckets"]),
                str(h.get("width", h.get("block"))),
                str(h["seed"]),
                h["dtype"],
                f"{h['compression_factor']:.1f}",
                f"mean {load['mean']:.1f}, most {load['most_in_sample']} of {load['sampled']}",
            )
        console.print(table)
    table = report_table("Steps", "step", "runs", "kernel", "why", "output", overflow="fold")
    for step in report["steps"]:
        outputs = ", ".join(o["type"] for o in step["outputs"])
        table.add_row(escape(step["op"]), step["runs"], step.get("kernel", ""), step.get("reason", ""), escape(outputs))
    console.print(table)
    table = report_table("Buffers", "value", "where", "type", "bytes", left=3)
    for b in report["buffers"]:
        where = f"arena +{b['offset']}" if b["kind"] == "arena" else f"{b['kind']} {b['number']}"
        table.add_row(escape(b["name"]), where, escape(f"{b['dtype']}{b['shape']}"), str(b["bytes"]))
    console.print(table)
    console.print(
        f"memory   weights {readable(memory['weights'])} ({readable(memory['materialised'])} of them W held), "
        f"arena {readable(memory['arena'])}, scratch "
        f"{memory['threads']} x {readable(memory['scratch_per_thread'])}: {readable(memory['total'])} with outputs"
    )
    if report["fallbacks"]:
        console.print(f"run by onnx's reference implementation: {', '.join(report['fallbacks'])}", markup=False)
    if not report["fully_static"]:
        console.print("some shapes depend on data: those steps allocate as they run")
