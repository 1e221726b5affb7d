"""`hashinfer cache`: what is kept of compiled kernels."""

from __future__ import annotations

from typing import Any

import click

from hashinfer.cli.console import compiling_notice, print_json
from hashinfer.cli.memory import readable
from hashinfer.errors import InputError


@click.group(invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """Show, warm or clear what is kept of compiled kernels. Without a subcommand: show.

    A set serves one state of sources, versions and CPU; clearing costs a compilation, nothing else.
    """
    if ctx.invoked_subcommand is None:
        _show()


@command.command()
@click.option("--json", "as_json", is_flag=True, help="Print the sets as JSON.")
def show(as_json: bool = False) -> None:
    """Show where compiled kernels are kept, which, and their sizes."""
    _show(as_json)


def _show(as_json: bool = False) -> None:
    from hashinfer.kernels.cache import base_folder, kept_sets  # noqa: PLC0415

    base, sets = base_folder(), kept_sets()
    if as_json:
        print_json({"folder": None if base is None else str(base), "sets": [_about(s) for s in sets]})
        return
    print(f"folder   {base}" if base is not None else "no cache: HASHINFER_CACHE_DIR is empty, or there is no home")
    for each in sets:
        use = "in use" if each.current else "of other versions, sources, settings or another CPU"
        print(f"{each.folder.name}  {len(each.kernels)} kernels, {readable(each.size)}, {use}")


@command.command()
@click.argument("models", nargs=-1, metavar="[MODEL]...", type=click.Path())
@click.option("--batch", type=click.IntRange(1), multiple=True, help="Rows to run; repeatable. Default: 1 and 64.")
def warm(models: tuple[str, ...], batch: tuple[int, ...]) -> None:
    """Compile what runs of MODELs need, or every kernel where none is named, so that no later process has to."""
    from hashinfer.kernels.cache import cache_folder  # noqa: PLC0415
    from hashinfer.kernels.jit import every_kernel  # noqa: PLC0415

    if cache_folder() is None:
        raise InputError("there is no cache to warm: HASHINFER_CACHE_DIR is empty, or the folder cannot be used")
    with compiling_notice():
        if not models:
            for kernel in every_kernel():
                _ = kernel.address
        for model in models:
            _warm(model, batch or (1, 64))
    _show()


def _warm(model: str, batches: tuple[int, ...]) -> None:
    import numpy as np  # noqa: PLC0415

    from hashinfer.cli.shapes import chosen_shapes, random_array  # noqa: PLC0415
    from hashinfer.kernels import driver  # noqa: PLC0415
    from hashinfer.session.session import InferenceSession  # noqa: PLC0415

    rng = np.random.default_rng(0)
    with InferenceSession(model) as session:
        inputs = session.get_inputs()
        for batch in batches:
            shapes = chosen_shapes(inputs, batch, ())
            session.run(None, {v.name: random_array(rng, v.type, shapes[v.name], below=1) for v in inputs})
    for kernel in (driver.run_alone, driver.run_shared, driver.serve, driver.stop):
        _ = kernel.address


@command.command()
def clear() -> None:
    """Remove everything that is kept of compiled kernels."""
    from hashinfer.kernels.cache import clear as clear_sets  # noqa: PLC0415

    removed = clear_sets()
    print(f"removed {len(removed)} sets, {readable(sum(s.size for s in removed))}")


def _about(each: Any) -> dict[str, Any]:
    return {
        "folder": str(each.folder),
        "in_use": each.current,
        "kernels": list(each.kernels),
        "bytes": each.size,
    }
