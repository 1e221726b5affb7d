"""The dense digit classifier as a LiteRT model, written from its ONNX file through LiteRT's own schema."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

IDENTIFIER = b"TFL3"
VERSION = 3


def write(source: Path, target: Path) -> None:
    """Cast, Mul, Reshape, MatMul, Relu, MatMul, Add, for one row: the products as fully connected layers.

    Raises ImportError without ai-edge-litert, ValueError for another graph.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = onnx.load(source)
    found = [node.op_type for node in model.graph.node]
    if found != ["Cast", "Mul", "Reshape", "MatMul", "Relu", "MatMul", "Add"]:
        raise ValueError(f"{source} is {', '.join(found)}; expected the dense digit classifier")
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    _cast, scale, _shape, first, _relu, last, bias = model.graph.node
    net = _Net(schema)
    weights = [np.ascontiguousarray(constants[node.input[1]].T) for node in (first, last)]
    image = net.tensor("image", schema.TensorType.UINT8, (1, 28, 28))
    floats = net.tensor("floats", schema.TensorType.FLOAT32, (1, 28, 28))
    scaled = net.tensor("scaled", schema.TensorType.FLOAT32, (1, 28, 28))
    flat = net.tensor("flat", schema.TensorType.FLOAT32, (1, weights[0].shape[1]))
    hidden = net.tensor("hidden", schema.TensorType.FLOAT32, (1, weights[0].shape[0]))
    logits = net.tensor("logits", schema.TensorType.FLOAT32, (1, weights[1].shape[0]))
    relu, none = schema.ActivationFunctionType.RELU, schema.ActivationFunctionType.NONE
    net.step("CAST", [image], floats, schema.CastOptionsT())
    net.step("MUL", [floats, net.constant("scale", constants[scale.input[1]])], scaled, schema.MulOptionsT())
    reshape = schema.ReshapeOptionsT()
    reshape.newShape = [1, weights[0].shape[1]]
    net.step("RESHAPE", [scaled, net.constant("shape", np.array([1, -1], np.int32))], flat, reshape)
    for number, (x, y, act) in enumerate(((flat, hidden, relu), (hidden, logits, none))):
        options = schema.FullyConnectedOptionsT()
        options.fusedActivationFunction = act
        ins = [x, net.constant(f"weights{number}", weights[number])]
        ins += [net.constant("bias", constants[bias.input[1]])] if y == logits else [-1]
        net.step("FULLY_CONNECTED", ins, y, options)
    builder = flatbuffers.Builder(1 << 22)
    builder.Finish(net.model([image], [logits]).Pack(builder), IDENTIFIER)
    target.write_bytes(bytes(builder.Output()))


class _Net:
    """A model under construction. schema: ai_edge_litert.schema_py_generated."""

    def __init__(self, schema: Any) -> None:
        self.schema = schema
        self.graph = schema.SubGraphT()
        self.graph.tensors, self.graph.operators = [], []
        self.codes: list[str] = []
        self.buffers = [schema.BufferT()]

    def tensor(self, name: str, kind: int, shape: tuple[int, ...], buffer: int = 0) -> int:
        out = self.schema.TensorT()
        out.name, out.type, out.shape, out.buffer = name, kind, list(shape), buffer
        self.graph.tensors.append(out)
        return len(self.graph.tensors) - 1

    def constant(self, name: str, value: np.ndarray[Any, Any]) -> int:
        buffer = self.schema.BufferT()
        buffer.data = np.frombuffer(value.tobytes(), np.uint8)
        self.buffers.append(buffer)
        kinds = {"float32": self.schema.TensorType.FLOAT32, "int32": self.schema.TensorType.INT32}
        return self.tensor(name, kinds[value.dtype.name], value.shape, len(self.buffers) - 1)

    def step(self, op: str, ins: list[int], output: int, options: Any) -> None:
        out = self.schema.OperatorT()
        if op not in self.codes:
            self.codes.append(op)
        out.opcodeIndex, out.inputs, out.outputs = self.codes.index(op), ins, [output]
        out.builtinOptionsType = getattr(self.schema.BuiltinOptions, type(options).__name__[:-1])
        out.builtinOptions = options
        self.graph.operators.append(out)

    def model(self, inputs: list[int], outputs: list[int]) -> Any:
        out = self.schema.ModelT()
        self.graph.inputs, self.graph.outputs = inputs, outputs
        codes = []
        for name in self.codes:
            code = self.schema.OperatorCodeT()
            code.builtinCode = getattr(self.schema.BuiltinOperator, name)
            code.deprecatedBuiltinCode, code.version = code.builtinCode, 1
            codes.append(code)
        out.version, out.operatorCodes, out.subgraphs, out.buffers = VERSION, codes, [self.graph], self.buffers
        return out
