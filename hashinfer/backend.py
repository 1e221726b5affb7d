"""onnx's Backend interface over a session: `import hashinfer.backend as backend; backend.prepare(model).run([x])`.

The interface is that of onnx.backend.base (https://onnx.ai/onnx/repo-docs/ImplementingAnOnnxBackend.html).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper, shape_inference, version_converter
from onnx.backend.base import Backend, BackendRep, namedtupledict

from hashinfer.errors import InputError, ModelError
from hashinfer.model.protos import opset_of
from hashinfer.model.read import MIN_OPSET
from hashinfer.ops.reference import type_proto
from hashinfer.session.session import InferenceSession


class HashinferBackendRep(BackendRep):
    """A model that is ready to run. `session` is the session behind it."""

    def __init__(self, session: InferenceSession) -> None:
        self.session = session

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """The model's outputs, as a tuple that their names index as well.

        inputs: a sequence of values in the order of the model's inputs, a dict by name, or, for a model of one input,
        its array. kwargs are passed on to `InferenceSession.run`.

        Raises InputError where there are more or fewer inputs than the model has, and what `InferenceSession.run`
        raises.
        """
        names = [value.name for value in self.session.get_inputs()]
        feed = _by_name([inputs] if isinstance(inputs, np.ndarray) else inputs, names, "the model has")
        outputs = [value.name for value in self.session.get_outputs()]
        results: tuple[Any, ...] = namedtupledict("Outputs", outputs)(*self.session.run(None, feed, **kwargs))
        return results


class HashinferBackend(Backend):
    """This engine as an onnx backend; every method is a class method, as the interface has it."""

    @classmethod
    def is_compatible(cls, model: ModelProto, device: str = "CPU", **kwargs: Any) -> bool:
        """Whether the engine can load the model."""
        try:
            cls.prepare(model, device, **kwargs).session.close()
        except (ModelError, InputError):
            return False
        return True

    @classmethod
    def prepare(cls, model: ModelProto, device: str = "CPU", **kwargs: Any) -> HashinferBackendRep:
        """Load a model: a ModelProto, or what InferenceSession takes. kwargs are passed on to InferenceSession.

        A ModelProto of an opset older than sessions read is brought up to the oldest that they do by onnx's converter.

        Raises InputError for a device that is no CPU, and what InferenceSession raises.
        """
        if not cls.supports_device(device):
            raise InputError(f"device is {device!r}; expected 'CPU'")
        source = _renewed(model).SerializeToString() if isinstance(model, ModelProto) else model
        return HashinferBackendRep(InferenceSession(source, **kwargs))

    @classmethod
    def run_model(cls, model: ModelProto, inputs: Any, device: str = "CPU", **kwargs: Any) -> tuple[Any, ...]:
        """Load a model and run it once; raises what `prepare` and `run` raise."""
        prepared = cls.prepare(model, device, **kwargs)
        with prepared.session:
            return prepared.run(inputs)

    @classmethod
    def run_node(
        cls,
        node: NodeProto,
        inputs: Any,
        device: str = "CPU",
        outputs_info: Sequence[tuple[np.dtype[Any], tuple[int, ...]]] | None = None,  # noqa: ARG003
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """The outputs of one node on values for those of its inputs that it names, in order.

        opset_version: of the node's domain, the newest by default. Other kwargs are passed on to InferenceSession;
        outputs_info is not needed. Raises what `prepare` and `run` raise.
        """
        opset = kwargs.pop("opset_version", None)
        domains = {node.domain: opset or _newest(node.domain)}
        domains.setdefault("", onnx.defs.onnx_opset_version())
        names = list(dict.fromkeys(name for name in node.input if name))
        feed = _by_name(inputs, names, "the node names")
        graph = helper.make_graph(
            [node],
            node.op_type,
            [helper.make_value_info(name, type_proto(value)) for name, value in feed.items()],
            [onnx.ValueInfoProto(name=name) for name in node.output if name],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid(d, v) for d, v in domains.items()])
        return cls.run_model(model, feed, device, **kwargs)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether `device` ("CPU", "CUDA:1") is a CPU."""
        return device.split(":", maxsplit=1)[0] == "CPU"


def _by_name(inputs: Any, names: Sequence[str], takes: str) -> dict[str, Any]:
    """The inputs by name. Raises InputError where a sequence of them has not as many as there are names."""
    if isinstance(inputs, Mapping):
        return dict(inputs)
    given = list(inputs)
    if len(given) != len(names):
        raise InputError(f"{len(given)} inputs are given; {takes} {len(names)}: {', '.join(names)}")
    return dict(zip(names, given, strict=True))


def _renewed(model: ModelProto) -> ModelProto:
    if not 0 < opset_of(model) < MIN_OPSET:
        return model
    renewed = shape_inference.infer_shapes(version_converter.convert_version(model, MIN_OPSET))
    graph = renewed.graph
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in (*graph.input, *graph.value_info)}
    slopes = {n.input[1]: ranks.get(n.input[0], 0) - 1 for n in graph.node if n.op_type == "PRelu"}
    for tensor in graph.initializer:
        # One slope a channel lay along axis 1 until opset 6; the converter leaves it where it now is the last axis.
        if len(tensor.dims) == 1 and tensor.name in slopes:
            tensor.dims.extend([1] * (slopes[tensor.name] - 1))
    for value in graph.input:
        if value.name in slopes:
            value.type.tensor_type.ClearField("shape")
    return renewed


def _newest(domain: str) -> int:
    versions = [schema.since_version for schema in onnx.defs.get_all_schemas() if schema.domain == domain]
    return onnx.defs.onnx_opset_version() if domain == "" else max(versions, default=1)


is_compatible = HashinferBackend.is_compatible
prepare = HashinferBackend.prepare
run_model = HashinferBackend.run_model
run_node = HashinferBackend.run_node
supports_device = HashinferBackend.supports_device
