"""`--batch` and `--shape` options: the input shapes a command plans for; random inputs of such shapes."""

from collections.abc import Iterable, Mapping, Sequence

import click
import numpy as np

from hashinfer.errors import InputError
from hashinfer.session.face import Array
from hashinfer.session.options import NodeArg

batch_option = click.option(
    "--batch", type=click.IntRange(0), default=1, show_default=True, help="Size of the dimensions left open."
)
shape_option = click.option(
    "--shape", "shapes", multiple=True, metavar="NAME=D0,D1,...", help="The shape of one input. Repeatable."
)


def chosen_shapes(inputs: Sequence[NodeArg], batch: int, shapes: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """A shape for each input. Raises InputError for a --shape that is none."""
    out = {v.name: tuple(d if isinstance(d, int) else batch for d in v.shape) for v in inputs}
    for text in shapes:
        name = text.partition("=")[0]
        if name not in out:
            raise InputError(f"--shape {text!r}: the model has no input {name!r}; it has {', '.join(map(repr, out))}")
        out[name] = shape_in(text)[1]
    return out


def shape_in(text: str) -> tuple[str, tuple[int, ...]]:
    """The name and the shape that a --shape gives. Raises InputError for one that is none."""
    name, sign, numbers = text.partition("=")
    try:
        shape = tuple(int(n) for n in numbers.split(",") if n.strip())
    except ValueError:
        sign = ""
    if not sign or any(n < 0 for n in shape):
        raise InputError(f"--shape {text!r}; expected NAME=D0,D1,... with whole numbers")
    return name, shape


def dtype_name(onnx_type: str) -> str:
    """NumPy's name of the elements of a tensor type that is written as "tensor(float)"."""
    kind = onnx_type.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64", "string": "object"}.get(kind, kind)


def random_inputs(
    inputs: Iterable[NodeArg], shapes: Mapping[str, tuple[int, ...]], seed: int = 0, below: int = 2
) -> dict[str, Array]:
    """An array of its shape for each input, as random_array makes them."""
    rng = np.random.default_rng(seed)
    return {v.name: random_array(rng, v.type, shapes[v.name], below) for v in inputs}


def random_array(rng: np.random.Generator, onnx_type: str, shape: tuple[int, ...], below: int = 2) -> Array:
    """Normal floats, any bytes, whole numbers below `below` for other integers.

    Raises InputError for a type that has none.
    """
    dtype = np.dtype(dtype_name(onnx_type))
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    if dtype.kind in "biu":
        most = 256 if dtype == np.uint8 else 2 if dtype.kind == "b" else below
        return rng.integers(0, most, shape).astype(dtype)
    raise InputError(f"no random inputs are made for {onnx_type}; give the input")
