"""Every standard op that is not native, run by onnx's own reference implementation."""

from __future__ import annotations

import math
import os
import re
import threading
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from hashinfer.errors import MemoryLimitError, OpError, UnsupportedError, first_line
from hashinfer.ops import growth
from hashinfer.ops.base import Call, TensorType

if TYPE_CHECKING:
    from onnx import AttributeProto, ModelProto, TypeProto
    from onnx.reference import ReferenceEvaluator

ML_DOMAIN = "ai.onnx.ml"
TRAINING_DOMAIN = "ai.onnx.preview.training"
_LOADERS = {ML_DOMAIN: "aionnxml", TRAINING_DOMAIN: "aionnx_preview_training"}
"""Modules of onnx.reference.ops, by the domain that they implement."""
REFERENCE_DOMAINS = ("", *_LOADERS)
TYPES_KEPT = 64
"""Output types that an op remembers, by its inputs' types."""

_EQUATION = re.compile(r"[A-Za-z,.>\- ]*")

_lock = threading.RLock()
"""Filters for warnings belong to the process, and onnx does not promise that its evaluators may be shared."""


class ReferenceOp:
    """One node's op as onnx.reference implements it, by code or by the function body in its schema.

    Raises UnsupportedError where there is neither. `opset` is the version of `domain`, by default the newest.
    """

    def __init__(self, op_type: str, domain: str = "", opset: int | None = None) -> None:
        self.op_type = op_type
        self.domain = domain
        self._evaluators: dict[tuple[object, ...], ReferenceEvaluator] = {}
        self._types: dict[tuple[object, ...], list[TensorType] | None] = {}
        if domain not in REFERENCE_DOMAINS:
            expected = ", ".join(map(repr, REFERENCE_DOMAINS))
            raise UnsupportedError(f"op {op_type} is of domain {domain!r}; expected a standard one, of {expected}")
        with _lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _require(op_type, domain, opset)

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
            except MemoryError as error:
                raise MemoryLimitError(f"the reference implementation of {self.op_type}: {_reason(error)}") from None
            except Exception as error:
                raise OpError(f"the reference implementation of {self.op_type} failed: {_reason(error)}") from error
            except BaseException:
                # Interrupted half-way: what an evaluator keeps between calls may be half-made.
                self._evaluators.clear()
                raise

    def output_bytes(self, call: Call, ins: Sequence[object | None]) -> int:
        """Bytes that the outputs will take, so far as they can be told beforehand: see hashinfer.ops.growth.

        Raises OpError for an equation of an Einsum that is none.
        """
        equation = call.text("equation", "")
        if self.op_type == "Einsum" and not _EQUATION.fullmatch(equation):
            # onnx's shape inference never returns from other characters.
            raise OpError(f"the equation is {equation!r}; expected letters, commas, dots and an arrow")
        key = tuple((_kind(x), getattr(x, "shape", None), growth.small_value(x)) for x in ins)
        with _lock:
            if key not in self._types:
                while len(self._types) >= TYPES_KEPT:
                    self._types.pop(next(iter(self._types)))
                # What infers shapes for the other domains dies of models that are not quite right.
                known = self.domain == ""
                self._types[key] = growth.output_types(self._model(call, ins, shapes=True)) if known else None
            types = self._types[key]
        if types is None and self.op_type == "MaxUnpool" and len(ins) > 2 and isinstance(ins[2], np.ndarray):
            # The one op whose shape is an input that shape inference does not look at.
            return 8 * math.prod(max(int(d), 0) for d in ins[2].flat)
        return growth.least_bytes(types, call, ins)

    def _evaluator(self, call: Call, ins: Sequence[object | None]) -> ReferenceEvaluator:
        from onnx.reference import ReferenceEvaluator

        kinds = tuple(_kind(value) for value in ins)
        if kinds not in self._evaluators:
            self._evaluators[kinds] = ReferenceEvaluator(self._model(call, ins))
        return self._evaluators[kinds]

    def _model(self, call: Call, ins: Sequence[object | None], shapes: bool = False) -> ModelProto:
        """A model of the one node. With `shapes`, its inputs have those, and small ones their values."""
        from onnx import ValueInfoProto, helper, numpy_helper

        given = {f"i{at}": value for at, value in enumerate(ins) if value is not None}
        constants: dict[str, Any] = {k: v for k, v in given.items() if shapes and growth.small_value(v) is not None}
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
            [helper.make_value_info(k, type_proto(v, shapes)) for k, v in given.items() if k not in constants],
            [
                ValueInfoProto(name=name)
                if shapes
                else helper.make_value_info(name, helper.make_tensor_type_proto(0, None))
                for name in node.output
            ],
            [numpy_helper.from_array(v, k) for k, v in constants.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid(self.domain, call.opset)])


def _require(op_type: str, domain: str, opset: int | None) -> None:
    """Raise UnsupportedError unless onnx.reference implements the op."""
    from onnx import defs
    from onnx.reference import ReferenceEvaluator
    from onnx.reference.op_run import RuntimeContextError

    try:
        if domain:
            import_module(f"onnx.reference.ops.{_LOADERS[domain]}").load_op(domain, op_type, opset)
        else:
            from onnx.reference import ops

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
    from onnx import defs, helper

    known = defs.get_schema(op_type, opset, domain).attributes
    protos = []
    for name, value in attrs.items():
        empty = isinstance(value, (list, tuple)) and not value
        kind: Any = known[name].type if empty and name in known else None
        protos.append(helper.make_attribute(name, _attribute_value(value), attr_type=kind and int(kind)))
    return protos


def _attribute_value(value: Any) -> Any:
    from onnx import numpy_helper

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


def type_proto(value: object, shapes: bool = False) -> TypeProto:
    """The ONNX type of a value: a sequence's, or a tensor's, of an open shape unless `shapes`."""
    from onnx import TensorProto, helper

    if isinstance(value, list):
        return helper.make_sequence_type_proto(type_proto(value[0] if value else np.zeros(0, np.float32)))
    array = np.asarray(value)
    number = TensorProto.STRING if array.dtype.kind in "OUS" else helper.np_dtype_to_tensor_dtype(array.dtype)
    return helper.make_tensor_type_proto(number, array.shape if shapes else None)


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
    return first_line(error)


def _forget_lock() -> None:
    """In a forked child the lock may be held by a thread that is not there."""
    global _lock  # noqa: PLW0603
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_lock)
