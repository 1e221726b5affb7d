"""`--batch` and `--shape` options: the input shapes a command plans for; random inputs of such shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from hashinfer.errors import InputError
from hashinfer.session.options import NodeArg

Array = npt.NDArray[Any]


def shape_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --batch N and --shape NAME=2,3 (repeatable)."""
    function = click.option(
        "--shape", "shapes", multiple=True, metavar="NAME=D0,D1,...", help="The shape of one input. Repeatable."
    )(function)
    return click.option(
        "--batch", type=click.IntRange(0), default=1, show_default=True, help="Size of the dimensions left open."
    )(function)


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


def random_array(rng: np.random.Generator, onnx_type: str, shape: tuple[int, ...], below: int = 2) -> Array:
    """Normal floats, any bytes, whole numbers below `below` for other integers.

    Raises InputError for a type that has none.
    """
    kind = onnx_type.removeprefix("tensor(").removesuffix(")")
    dtype = np.dtype({"float": "float32", "double": "float64"}.get(kind, kind) if kind != "string" else "O")
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    if dtype == np.uint8:
        return rng.integers(0, 256, shape).astype(dtype)
    if dtype.kind in "iu":
        return rng.integers(0, below, shape).astype(dtype)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    raise InputError(f"no random inputs are made for {onnx_type}; give the input")
