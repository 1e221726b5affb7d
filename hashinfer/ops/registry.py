"""The native ops: importing this module fills `hashinfer.ops.base.REGISTRY`. A new op module is one more name here."""

from hashinfer.ops import (
    activation,
    cast,
    create,
    elementwise,
    indexing,
    normalize,
    pool,
    product,
    quantised,
    recurrent,
    reduce,
    resize,
    shapes,
    transposed,
)
from hashinfer.ops.base import REGISTRY

__all__ = ["REGISTRY", "activation", "cast", "create", "elementwise", "indexing", "normalize", "pool", "product"]
__all__ += ["quantised", "recurrent", "reduce", "resize", "shapes", "transposed"]
