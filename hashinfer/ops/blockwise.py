"""Functions of elements over arrays of any size, a block at a time."""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from hashinfer.ops.base import Array
from hashinfer.ops.checks import DType

BLOCK = 8192
"""Elements of a block: what a function makes on the way stays in the cache, and takes no memory to speak of."""

_READ: Sequence[Literal["readonly"]] = ["readonly"]
_WRITE: Sequence[Literal["writeonly", "no_broadcast"]] = ["writeonly", "no_broadcast"]


def blockwise(function: Callable[..., Array], ins: Sequence[Array], out: Array, dtypes: Sequence[DType]) -> None:
    """Write function(*ins) to `out`; the inputs broadcast to its shape.

    The function gets vectors of at most BLOCK elements, of `dtypes`, and returns one that is cast to out's dtype.
    """
    with (
        np.errstate(all="ignore"),
        np.nditer(
            [*ins, out],
            flags=["external_loop", "buffered", "zerosize_ok"],
            op_flags=[*[_READ] * len(ins), _WRITE],
            op_dtypes=[*dtypes, out.dtype],
            casting="unsafe",
            order="C",
            buffersize=BLOCK,
        ) as blocks,
    ):
        if blocks.itersize == 0:
            return
        for block in blocks:
            np.copyto(block[-1], function(*block[:-1]), casting="unsafe")
