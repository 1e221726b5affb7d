"""`hashinfer cache`: what is kept of compiled kernels."""

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
        ctx.invoke(show)


@command.command()
@click.option("--json", "as_json", is_flag=True, help="Print the sets as JSON.")
def show(as_json: bool) -> None:
    """Show where compiled kernels are kept, which, and their sizes."""
    from hashinfer.kernels.cache import base_folder, kept_sets

    base, sets = base_folder(), kept_sets()
    if as_json:
        about = [
            {"folder": str(s.folder), "in_use": s.current, "kernels": list(s.kernels), "bytes": s.size} for s in sets
        ]
        print_json({"folder": None if base is None else str(base), "sets": about})
        return
    print(f"folder   {base}" if base is not None else "no cache: HASHINFER_CACHE_DIR is empty, or there is no home")
    for each in sets:
        use = "in use" if each.current else "of other versions, sources, settings or another CPU"
        print(f"{each.folder.name}  {len(each.kernels)} kernels, {readable(each.size)}, {use}")


@command.command()
@click.argument("models", nargs=-1, metavar="[MODEL]...", type=click.Path())
@click.option("--batch", type=click.IntRange(1), multiple=True, help="Rows to run; repeatable. Default: 1 and 64.")
@click.pass_context
def warm(ctx: click.Context, models: tuple[str, ...], batch: tuple[int, ...]) -> None:
    """Compile what runs of MODELs need, or every kernel where none is named, so that no later process has to."""
    from hashinfer.kernels.cache import cache_folder
    from hashinfer.kernels.jit import every_kernel

    if cache_folder() is None:
        raise InputError("there is no cache to warm: HASHINFER_CACHE_DIR is empty, or the folder cannot be used")
    with compiling_notice():
        if not models:
            for kernel in every_kernel():
                _ = kernel.address
        for model in models:
            _warm(model, batch or (1, 64))
    ctx.invoke(show)


def _warm(model: str, batches: tuple[int, ...]) -> None:
    from hashinfer.cli.shapes import chosen_shapes, random_inputs
    from hashinfer.kernels import driver
    from hashinfer.session.session import InferenceSession

    with InferenceSession(model) as session:
        inputs = session.get_inputs()
        for batch in batches:
            session.run(None, random_inputs(inputs, chosen_shapes(inputs, batch, ()), below=1))
    for kernel in (driver.run_alone, driver.run_shared, driver.serve, driver.stop):
        _ = kernel.address


@command.command()
def clear() -> None:
    """Remove everything that is kept of compiled kernels."""
    from hashinfer.kernels.cache import clear as clear_sets

    removed = clear_sets()
    print(f"removed {len(removed)} sets, {readable(sum(s.size for s in removed))}")
