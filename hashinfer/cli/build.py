"""`hashinfer build`: a model as native code, for this CPU or another one."""

from pathlib import Path

import click

from hashinfer.cli.console import print_json
from hashinfer.cli.memory import readable
from hashinfer.errors import InputError


def _list_targets(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    from hashinfer.native.emit.targets import PRESETS

    for target in PRESETS:
        print(f"{target.name:20} {target.triple or '(as found)':30} {target.cpu or '(as found)':14} {target.about}")
    ctx.exit()


@click.command()
@click.argument("model", type=click.Path())
@click.option("-o", "--output", required=True, type=click.Path(), help="The object or library to write.")
@click.option("--target", "target_name", default="host", show_default=True, help="A preset or an LLVM triple.")
@click.option("--cpu", help="LLVM's name of the CPU, in place of the target's.")
@click.option("--features", help="LLVM's CPU features, such as +neon,+vfp4, in place of the target's.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["o", "so", "wheel-dir"]),
    help="Object, shared library, or a Python project for pip to install. Default: as OUTPUT ends.",
)
@click.option("--name", help="What C names begin with. Default: MODEL's file name.")
@click.option(
    "--shape", "shapes", multiple=True, metavar="NAME=D0,D1,...", help="A fixed shape of one input. Repeatable."
)
@click.option("--version", default="0.1.0", show_default=True, help="Of the project, with --format wheel-dir.")
@click.option("--json", "as_json", is_flag=True, help="Print what was built as JSON.")
@click.option(
    "--list-targets", is_flag=True, is_eager=True, expose_value=False, callback=_list_targets, help="Show presets."
)
def command(
    model: str,
    output: str,
    target_name: str,
    cpu: str | None,
    features: str | None,
    kind: str | None,
    name: str | None,
    shapes: tuple[str, ...],
    version: str,
    as_json: bool,
) -> None:
    """Compile MODEL ahead of time: an object file, or a shared library, and a C header beside it (OUTPUT's name, .h).

    A library opens as hashinfer.InferenceSession("model.so") with NumPy alone. An object needs memcpy, memset and libm.
    With --format wheel-dir OUTPUT is a new folder: `pip install OUTPUT` or `pip wheel OUTPUT`, then import its package.
    """
    from rich.console import Console

    from hashinfer.cli.shapes import shape_in
    from hashinfer.files import atomic_write
    from hashinfer.native.emit.build import build
    from hashinfer.native.emit.project import check_new, project_files, write_folder
    from hashinfer.native.emit.targets import resolve

    target = resolve(target_name, cpu, features)
    if kind == "wheel-dir":
        check_new(Path(output))
    header = Path(output).with_suffix(".h")
    if Path(model).resolve() in (Path(output).resolve(), header.resolve()) or header == Path(output):
        raise InputError(f"the output {output} or its header {header} is the model, or both are one file")
    console = Console(stderr=True)
    with console.status("planning") as status:
        built = build(
            model,
            target,
            kind or _kind(output),
            name,
            dict(map(shape_in, shapes)),
            lambda step: status.update(f"compiling {step}"),
        )
    about = built.about
    if kind == "wheel-dir":
        header = Path(output) / about["name"] / "model.h"
        write_folder(Path(output), project_files(built, version))
    else:
        with atomic_write(output) as file, atomic_write(header) as text:
            file.write(built.data)
            text.write(built.header.encode())
    if as_json:
        print_json({"output": output, "header": str(header), "bytes": len(built.data), **about})
        return
    print(f"{output}: {readable(len(built.data))} for {about['target']}, {readable(about['weights'])} of it constants")
    rows = "any number of rows, one by one" if about["batched"] else "one run of fixed shapes"
    print(f"{header}: {about['name']}_run takes {rows}, with {readable(about['scratch'])} of scratch")


def _kind(output: str) -> str:
    kind = {".o": "o", ".obj": "o", ".so": "so", ".dylib": "so", ".dll": "so"}.get(Path(output).suffix)
    if kind is None:
        raise InputError(f"{output} ends in neither .o nor .so; give --format")
    return kind
