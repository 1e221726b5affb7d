"""Every standard op that is not native, run by onnx's own reference implementation."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hashinfer.errors import OpError, UnsupportedError
from hashinfer.ops.base import Call

if TYPE_CHECKING:
    from onnx import AttributeProto, TypeProto
    from onnx.reference import ReferenceEvaluator

ML_DOMAIN = "ai.onnx.ml"
DEFAULT_DOMAINS = ("", "ai.onnx")

_lock = threading.RLock()
"""Filters for warnings belong to the process, and onnx does not promise that its evaluators may be shared."""


class ReferenceOp:
    """One node's op as onnx.reference implements it, by code or by the function body in its schema.

    Raises UnsupportedError where there is neither. `opset` is the version of `domain`, by default the newest.
    """

    def __init__(self, op_type: str, domain: str = "", opset: int | None = None) -> None:
        self.op_type = op_type
        self.domain = "" if domain in DEFAULT_DOMAINS else domain
        self._evaluators: dict[tuple[object, ...], ReferenceEvaluator] = {}
        if self.domain not in {"", ML_DOMAIN}:
            raise UnsupportedError(
                f"op {op_type} is of domain {domain!r}; expected a standard one, '' or {ML_DOMAIN!r}"
            )
        with _lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _require(op_type, self.domain, opset)

    def evaluate(self, call: Call, ins: Sequence[object | None]) -> list[object]:
        """The outputs: arrays, lists of them for sequences, None for an empty optional. Raises OpError.

        The inputs are of the same kinds; None is one that the node leaves out. Strings are arrays of dtype object.
        `call` is the same every time.
        """
        with _lock, warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            try:
                evaluator = self._evaluator(call, ins)
                feed = {f"i{at}": value for at, value in enumerate(ins) if value is not None}
                return [_plain(value) for value in evaluator.run(None, feed)]
            except Exception as error:
                raise OpError(f"the reference implementation of {self.op_type} failed: {_reason(error)}") from error

    def _evaluator(self, call: Call, ins: Sequence[object | None]) -> ReferenceEvaluator:
        kinds = tuple(_kind(value) for value in ins)
        if kinds not in self._evaluators:
            self._evaluators[kinds] = self._build(call, ins)
        return self._evaluators[kinds]

    def _build(self, call: Call, ins: Sequence[object | None]) -> ReferenceEvaluator:
        from onnx import helper  # noqa: PLC0415
        from onnx.reference import ReferenceEvaluator  # noqa: PLC0415

        node = helper.make_node(
            self.op_type,
            [f"i{at}" if value is not None else "" for at, value in enumerate(ins)],
            [f"o{at}" for at in range(call.outputs)],
            domain=self.domain,
        )
        node.attribute.extend(_attributes(self.op_type, self.domain, call.opset, call.attrs))
        graph = helper.make_graph(
            [node],
            self.op_type,
            [helper.make_value_info(f"i{at}", _type_proto(value)) for at, value in enumerate(ins) if value is not None],
            [helper.make_value_info(name, helper.make_tensor_type_proto(0, None)) for name in node.output],
        )
        return ReferenceEvaluator(
            helper.make_model(graph, opset_imports=[helper.make_opsetid(self.domain, call.opset)])
        )


def _require(op_type: str, domain: str, opset: int | None) -> None:
    """Raise UnsupportedError unless onnx.reference implements the op."""
    from onnx import defs  # noqa: PLC0415
    from onnx.reference import ReferenceEvaluator  # noqa: PLC0415
    from onnx.reference.op_run import RuntimeContextError  # noqa: PLC0415

    try:
        if domain == ML_DOMAIN:
            from onnx.reference.ops import aionnxml  # noqa: PLC0415

            aionnxml.load_op(domain, op_type, opset)
        else:
            from onnx.reference import ops  # noqa: PLC0415

            # Names in the reference implementation go beyond those in the standard.
            defs.get_schema(op_type, opset or defs.onnx_opset_version(), domain)
            ops.load_op(domain, op_type, opset, evaluator_cls=ReferenceEvaluator)
    except RuntimeContextError:
        return  # Its function body is made for the input types, once they are known.
    except Exception as error:
        version = "any opset" if opset is None else f"opset {opset}"
        name = f"{domain}::{op_type}" if domain else op_type
        raise UnsupportedError(f"op {name} of {version} has no implementation here nor in onnx.reference") from error


def _attributes(op_type: str, domain: str, opset: int, attrs: Mapping[str, Any]) -> list[AttributeProto]:
    from onnx import defs, helper  # noqa: PLC0415

    known = defs.get_schema(op_type, opset, domain).attributes
    protos = []
    for name, value in attrs.items():
        empty = isinstance(value, (list, tuple)) and not value
        kind: Any = known[name].type if empty and name in known else None
        protos.append(helper.make_attribute(name, _attribute_value(value), attr_type=kind and int(kind)))
    return protos


def _attribute_value(value: Any) -> Any:
    from onnx import numpy_helper  # noqa: PLC0415

    if isinstance(value, np.ndarray):
        return numpy_helper.from_array(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (list, tuple)):
        return [_attribute_value(item) for item in value]
    return value


def _kind(value: object | None) -> object:
    """What an evaluator is built for: an input left out or not, of this dtype."""
    if isinstance(value, list):
        return ("list", _kind(value[0]) if value else None)
    return value.dtype if isinstance(value, np.ndarray) else type(value)


def _type_proto(value: object) -> TypeProto:
    from onnx import TensorProto, helper  # noqa: PLC0415

    if isinstance(value, list):
        return helper.make_sequence_type_proto(_type_proto(value[0] if value else np.zeros(0, np.float32)))
    dtype = np.asarray(value).dtype
    number = TensorProto.STRING if dtype.kind in "OUS" else helper.np_dtype_to_tensor_dtype(dtype)
    return helper.make_tensor_type_proto(number, None)


def _plain(value: Any) -> object:
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, dict):
        return value
    array = np.asarray(value)
    return array.astype(object) if array.dtype.kind in "US" else array


def _reason(error: BaseException) -> str:
    """The first line of what went wrong first: onnx wraps errors into longer, vaguer ones."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
