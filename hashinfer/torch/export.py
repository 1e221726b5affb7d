"""From a PyTorch module with hashed layers to an .hnet file."""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from hashinfer.errors import ModelError
from hashinfer.model.protos import with_inner
from hashinfer.model.write import save as write_model
from hashinfer.schemes import BY_OP_TYPE, DOMAIN, DOMAIN_VERSION, Scheme
from hashinfer.torch.layers import HashedModule

if TYPE_CHECKING:
    from onnx import ModelProto

DEFAULT_OPSET = 20
BATCH = "N"
_NOISY_LOGGERS = ("torch.onnx", "torch.fx.experimental.symbolic_shapes", "onnxscript", "onnx_ir")


def save(
    module: nn.Module,
    example: Tensor | Sequence[Tensor],
    path: str | os.PathLike[str],
    *,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic_batch: bool = True,
    opset: int = DEFAULT_OPSET,
    doc_string: str = "",
) -> None:
    """Write `module` to `path` as an .hnet file, whole or not at all.

    example: the input, or a sequence of inputs, of one call; its dtypes and shapes become the file's. With
    `dynamic_batch` the first dimension of every input, one size in all of them, may have any size in the file: "N".
    A HashedLinear is written as Expand -> MatMul -> Add, a HashedConv2d as Expand -> Transpose -> Reshape -> Conv, a
    HashedEmbedding as Expand -> Gather. The module is exported in evaluation mode; its modes are restored afterwards.
    opset: the default-domain version of the file, at least 18.
    Raises ModelError where PyTorch cannot export the module (an op unknown to ONNX, control flow on values, a batch
    size that the module fixes), where a weight vector is not float32, or where the result is not valid ONNX; OSError
    as open() would; ImportError where onnxscript is missing.
    """
    for name, layer in module.named_modules():
        if isinstance(layer, HashedModule) and layer.weight_vector.dtype != torch.float32:
            raise ModelError(
                f"{name or type(module).__name__}.weight_vector is {layer.weight_vector.dtype}; "
                "expected torch.float32: call module.float() before saving"
            )
    inputs = (example,) if isinstance(example, Tensor) else tuple(example)
    shapes = None
    if dynamic_batch:
        inputs = tuple(_widened(x) for x in inputs)
        batch = torch.export.Dim(BATCH)
        shapes = tuple({0: batch} if x.ndim else {} for x in inputs)
    with _eval_mode(module), _quiet(), torch.no_grad():
        model = _export(module, inputs, shapes, opset_version=opset, input_names=input_names, output_names=output_names)
    model.producer_name, model.producer_version, model.doc_string = "hashinfer", "", doc_string
    _strip(model)
    write_model(model, path)


def _widened(x: Tensor) -> Tensor:
    # torch.export fixes a dimension whose example size is 1.
    return torch.cat([x, x]) if x.ndim and x.shape[0] == 1 else x


def _export(
    module: nn.Module, inputs: tuple[Tensor, ...], shapes: tuple[dict[int, Any], ...] | None, **options: Any
) -> ModelProto:
    # What the exporter writes for each expand operator: one node of the domain ai.hashinfer.
    translations = {
        getattr(torch.ops.hashinfer, f"expand_{scheme.name}").default: _translation(scheme)
        for scheme in BY_OP_TYPE.values()
    }
    # Given a module, torch.onnx.export would fall back to fixing a batch size that it cannot leave open.
    try:
        traced = torch.export.export(module, inputs, dynamic_shapes=shapes)
        program = torch.onnx.export(
            traced, dynamo=True, verbose=False, dynamic_shapes=shapes, custom_translation_table=translations, **options
        )
    except Exception as error:
        cause = (error.__cause__ if isinstance(error, torch.onnx.OnnxExporterError) else None) or error
        reason = str(cause).strip().split("\n\n")[0]
        raise ModelError(f"{type(module).__name__} cannot be exported to ONNX: {reason}") from error
    return cast("torch.onnx.ONNXProgram", program).model_proto


def _translation(scheme: type[Scheme]) -> Callable[..., Any]:
    # Not at the top: the layers are of use without onnxscript, which takes a second to import.
    try:
        from onnx.defs import OpSchema
        from onnxscript import values
    except ImportError as error:
        raise ImportError("hashinfer.torch.save needs onnxscript: pip install 'hashinfer[torch]'") from error

    names = ("seed", "rows", "cols", scheme.parameter)
    schema = OpSchema(
        scheme.op_type,
        DOMAIN,
        DOMAIN_VERSION,
        inputs=[OpSchema.FormalParameter("w", "T")],
        outputs=[OpSchema.FormalParameter("W", "T")],
        type_constraints=[("T", ["tensor(float)"], "")],
        attributes=[OpSchema.Attribute(name, OpSchema.AttrType.INT, "", required=True) for name in names],
    )
    op = values.Op(values.Opset(DOMAIN, DOMAIN_VERSION), scheme.op_type, schema)

    def translate(w: Any, seed: int, rows: int, cols: int, parameter: int) -> Any:
        return op(w, **dict(zip(names, (seed, rows, cols, parameter), strict=True)))

    return translate


def _strip(model: ModelProto) -> None:
    """Drop what the exporter notes about its run: stack traces, with the paths of source files, and the like."""
    del model.metadata_props[:]
    for graph in with_inner(model.graph):
        for holder in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
            del holder.metadata_props[:]
        for node in graph.node:
            node.doc_string = ""


@contextmanager
def _eval_mode(module: nn.Module) -> Iterator[None]:
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for m, training in modes:
            m.training = training


@contextmanager
def _quiet() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in _NOISY_LOGGERS]
    levels = [logger.level for logger in loggers]
    # Of a module that it cannot export, torch.export prints the code.
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
