"""The hash schemes: each one's reference in NumPy, its parameter ranges and its ONNX body. Nothing here is compiled."""

from hashinfer.errors import SchemeError
from hashinfer.schemes.base import DOMAIN, DOMAIN_VERSION, Scheme
from hashinfer.schemes.dyadic import Dyadic
from hashinfer.schemes.xxh32 import Xxh32

SCHEMES: dict[str, type[Scheme]] = {scheme.name: scheme for scheme in (Xxh32, Dyadic)}
BY_OP_TYPE: dict[str, type[Scheme]] = {scheme.op_type: scheme for scheme in SCHEMES.values()}


def scheme_named(name: str) -> type[Scheme]:
    """The scheme class called `name`. Raises SchemeError, with the names there are, if there is none."""
    try:
        return SCHEMES[name]
    except KeyError:
        raise SchemeError(f"scheme {name!r}; expected one of {', '.join(SCHEMES)}") from None


__all__ = [
    "BY_OP_TYPE",
    "DOMAIN",
    "DOMAIN_VERSION",
    "SCHEMES",
    "Dyadic",
    "Scheme",
    "SchemeError",
    "Xxh32",
    "scheme_named",
]
