"""`hashinfer expand`: the plain dense twin of a hashed model."""

from pathlib import Path

import click

from hashinfer.cli.memory import readable
from hashinfer.errors import InputError


@click.command()
@click.argument("model", type=click.Path())
@click.option("-o", "--output", required=True, type=click.Path(), help="The ONNX file to write.")
def command(model: str, output: str) -> None:
    """Write MODEL with every hashed weight matrix expanded: plain ONNX, for runtimes and tools that know no hashing."""
    import onnx

    from hashinfer.files import atomic_write
    from hashinfer.model.dense import dense_twin
    from hashinfer.model.read import read_model
    from hashinfer.plan.limits import physical_memory

    if Path(output).resolve() == Path(model).resolve():
        raise InputError(f"the output {output} is the model itself")
    read_model(model)
    twin = dense_twin(onnx.load(model), physical_memory())
    data = twin.SerializeToString(deterministic=True)
    with atomic_write(output) as file:
        file.write(data)
    print(f"{output}: {readable(len(data))}, from {readable(Path(model).stat().st_size)}")
