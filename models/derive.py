"""Make the shipped models that are derived from trained ones: weights of int8, a CNN, nets of the paper's benchmark.

    python models/derive.py --data DIR [--cnn FOLDER/cnn-64.hnet] [--paper RUNS --sets CACHE]

DIR holds MNIST's four standard files. mnist-dyadic-64x-int8 is mnist-dyadic-64x, its weight vectors rounded to int8 and
nothing trained anew. mnist-cnn-64x is what `python -m bench.distil --net cnn` left in FOLDER, its dense layers hashed,
with scaling and reshaping of uint8 digits put in front. mnist-5l-dyadic-64x and rot-5l-dyadic-64x are nets of
bench.paper, whose weights are in RUNS and whose data in CACHE. Test digits are read for the cards alone.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

import hashinfer
from hashinfer.compress.rewrite import int8_scale
from hashinfer.files import atomic_write
from hashinfer.model.write import expand_node, with_bodies
from hashinfer.schemes import DOMAIN

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from bench.paper.cells import HASHNET, Cell  # noqa: E402
from bench.paper.run import Trainer  # noqa: E402
from bench.paper.sets import load  # noqa: E402
from bench.paper.train import Recipe, Scale  # noqa: E402
from models.train_mnist import SAMPLE, read_set  # noqa: E402

CARD = """# {name}

{about}

| what | value |
|---|---|
| file | `{name}.hnet`, {file_bytes:,} bytes |
| input | `image`, uint8 [N, 28, 28]: grey levels 0..255, 0 is the background |
| output | `logits`, float32 [N, 10] |
| nodes | {nodes} |
| stored numbers | {stored:,} for {virtual:,} virtual ones |
| bytes of weights | {weight_bytes:,} |
| **test error, {tested}** | **{error:.2f} %** ({wrong} wrong) |
| test error, first 1,000 test digits (`mnist-test-1k.npy`) | {error_1k:.1f} % ({wrong_1k} wrong) |

## Recipe

{recipe}

Written by `models/derive.py`.
"""

INT8_ABOUT = """[mnist-dyadic-64x](mnist-dyadic-64x.md) its two weight vectors as int8, a quarter of the bytes: each is
rounded to multiples of a scale, max |w| / 127, and a DequantizeLinear stands before each ExpandDyadic."""
INT8_RECIPE = """Rounded after training; nothing was trained anew. Error of the float32 model: {before:.2f} %.

    python models/derive.py --data DIR"""
CNN_ABOUT = """A small convolutional net: two convolutions of 16 and 32 maps, each with ReLU and 2 x 2 pooling, then
1568-128-10, whose two dense layers are hashed (dyadic) to 1/64 of their numbers; the convolutions are as they were."""
CNN_RECIPE = """A dense net (8 epochs of Adam on the labels, {before} test error) was compressed by `hashinfer compress`
from the 60,000 training digits without their labels, with its default options: 67 epochs of distillation, 15 minutes
of one core.

    python -m bench.distil --data DIR --out FOLDER --net cnn
    python models/derive.py --data DIR --cnn FOLDER/cnn-64.hnet"""

PAPER_ABOUT = """784-1000-1000-1000-10, the benchmark's net of five layers on {data} at 1/64 of the dense net's numbers
({cell}): the {stored} numbers of its weight vectors, biases hashed among them. Here the biases are written out, for
that is what an Add takes: {biases} numbers more."""
PAPER_RECIPE = """By the benchmark's one recipe, which is not tuned to this net: see `bench/paper/README.md`.

    python -m bench.paper.run --data DIR --cache CACHE --runs RUNS --only {cell}
    python models/derive.py --data DIR --paper RUNS --sets CACHE"""
DIGITS = "10,000 test digits"


def with_int8_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with each weight vector as int8 and a scale."""
    out = onnx.ModelProto()
    out.CopyFrom(model)
    weights = {node.input[0] for node in out.graph.node if node.domain == DOMAIN}
    tensors, nodes = [], []
    for tensor in out.graph.initializer:
        if tensor.name not in weights:
            tensors.append(tensor)
            continue
        exact = numpy_helper.to_array(tensor)
        scale = int8_scale(exact)
        rounded = np.clip(np.rint(exact / scale), -127, 127).astype(np.int8)
        tensors += [
            numpy_helper.from_array(rounded, f"{tensor.name}.int8"),
            numpy_helper.from_array(np.float32(scale), f"{tensor.name}.scale"),
        ]
        ins = [f"{tensor.name}.int8", f"{tensor.name}.scale"]
        nodes.append(helper.make_node("DequantizeLinear", ins, [tensor.name], name=f"{tensor.name}.dequantize"))
    nodes += out.graph.node
    del out.graph.initializer[:], out.graph.node[:]
    out.graph.initializer.extend(tensors)
    out.graph.node.extend(nodes)
    return out


def for_grey_levels(model: onnx.ModelProto) -> onnx.ModelProto:
    """The CNN with uint8 digits as its input."""
    out = onnx.ModelProto()
    out.CopyFrom(model)
    (port,) = out.graph.input
    front = [
        helper.make_node("Cast", ["image"], ["grey"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["grey", "step"], ["scaled"], name="scale"),
        helper.make_node("Reshape", ["scaled", "planes"], [port.name], name="planes_of"),
    ]
    nodes = [*front, *out.graph.node]
    del out.graph.node[:], out.graph.input[:], out.graph.metadata_props[:]
    for node in nodes:
        del node.metadata_props[:]
    out.graph.node.extend(nodes)
    out.graph.input.append(helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 28, 28]))
    out.graph.initializer.extend(
        [
            numpy_helper.from_array(np.float32(1 / 255), "step"),
            numpy_helper.from_array(np.array([-1, 1, 28, 28]), "planes"),
        ]
    )
    del out.graph.value_info[:]
    onnx.checker.check_model(out, full_check=True)
    return out


def wrong(model: bytes | Path, image: np.ndarray, label: np.ndarray) -> np.ndarray:
    """For each digit whether the answer is wrong."""
    with hashinfer.InferenceSession(model if isinstance(model, bytes) else str(model)) as session:
        return session(image).argmax(1) != label


@dataclass(frozen=True)
class Tests:
    """What a card's errors are of: images and labels, in words; and the digits whose first SAMPLE are in the sample."""

    image: np.ndarray
    label: np.ndarray
    digits: tuple[np.ndarray, np.ndarray]
    words: str = DIGITS


def paper_net(cell: Cell, runs: Path, scale: Scale) -> onnx.ModelProto:
    """A trained net of bench.paper, over uint8 digits. Raises ValueError where black is not 0."""
    if scale.zero:
        raise ValueError(f"inputs of {cell.name} are 0 at level {scale.zero}; expected 0")
    state = torch.load(Trainer(Recipe(), runs, runs, runs).weights(cell), weights_only=True)
    step = numpy_helper.from_array(np.float32(1 / scale.deviation), "step")
    constants, value = [step, numpy_helper.from_array(np.array([-1, 784]), "row")], "x"
    nodes = [
        helper.make_node("Cast", ["image"], ["grey"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["grey", "step"], ["scaled"], name="scale"),
        helper.make_node("Reshape", ["scaled", "row"], ["x"], name="row_of"),
    ]
    schemes = cell.schemes()
    for k, scheme in enumerate(schemes):
        w = state[f"layers.{k}.weight_vector"].numpy()
        # The last row of W is the biases; without it the others hash as before.
        inner, last = replace(scheme, rows=scheme.rows - 1), k == len(schemes) - 1
        constants += [
            numpy_helper.from_array(w, f"w{k}"),
            numpy_helper.from_array(np.ascontiguousarray(scheme.expand(w)[-1]), f"bias{k}"),
        ]
        nodes += [
            expand_node(inner, f"w{k}", f"W{k}"),
            helper.make_node("MatMul", [value, f"W{k}"], [f"product{k}"], name=f"product{k}"),
            helper.make_node("Add", [f"product{k}", f"bias{k}"], ["logits" if last else f"sum{k}"], name=f"add{k}"),
        ]
        if not last:
            nodes.append(helper.make_node("Relu", [f"sum{k}"], [f"units{k}"], name=f"relu{k}"))
            value = f"units{k}"
    graph = helper.make_graph(
        nodes,
        cell.name,
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 28, 28])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return with_bodies(model)


def write(name: str, model: onnx.ModelProto, tests: Tests, about: str, recipe: str) -> None:
    """The model and its card."""
    data = model.SerializeToString()
    missed, sample = wrong(data, tests.image, tests.label), wrong(data, *(part[:SAMPLE] for part in tests.digits))
    with hashinfer.InferenceSession(data) as session:
        report, weight_bytes = session.report()["model"], session.weight_bytes
    card = CARD.format(
        name=name,
        about=about,
        recipe=recipe,
        file_bytes=len(data),
        nodes=" -> ".join(node.op_type for node in model.graph.node),
        stored=report["stored_numbers"],
        virtual=report["virtual_numbers"],
        weight_bytes=weight_bytes,
        error=100 * missed.mean(),
        wrong=int(missed.sum()),
        error_1k=100 * sample.mean(),
        wrong_1k=int(sample.sum()),
        tested=tests.words,
    )
    with atomic_write(HERE / f"{name}.hnet") as file, atomic_write(HERE / f"{name}.md") as text:
        file.write(data)
        text.write(card.encode())
    print(f"{name}: test error {100 * missed.mean():.2f} %, {len(data)} bytes")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cnn", type=Path, help="the compressed CNN of bench.distil; cnn.onnx lies beside it")
    parser.add_argument("--paper", type=Path, metavar="RUNS", help="weights that bench.paper.run has trained")
    parser.add_argument("--sets", type=Path, metavar="CACHE", help="the sets that bench.paper.run has made")
    options = parser.parse_args()
    digits = tuple(tensor.numpy() for tensor in read_set(options.data, "t10k"))
    tests = Tests(*digits, digits)
    source = HERE / "mnist-dyadic-64x.hnet"
    recipe = INT8_RECIPE.format(before=100 * wrong(source, *digits).mean())
    write("mnist-dyadic-64x-int8", with_int8_weights(onnx.load(source)), tests, INT8_ABOUT, recipe)
    if options.cnn:
        dense = for_grey_levels(onnx.load(options.cnn.with_name("cnn.onnx"))).SerializeToString()
        recipe = CNN_RECIPE.format(before=f"{100 * wrong(dense, *digits).mean():.2f} %")
        write("mnist-cnn-64x", for_grey_levels(onnx.load(options.cnn)), tests, CNN_ABOUT, recipe)
    for name in ("MNIST", "ROT") if options.paper else ():
        cell, data = Cell(name, 5, 64, HASHNET, "dyadic"), load(name, options.data, options.sets)
        words = DIGITS if name == "MNIST" else f"{len(data.test_image):,} rotated test digits"
        about = PAPER_ABOUT.format(
            data=name, cell=cell.name, stored=sum(s.buckets for s in cell.schemes()), biases=sum(cell.units[1:])
        )
        model = paper_net(cell, options.paper, Scale.of(data.image))
        tests = Tests(data.test_image, data.test_label, digits, words)
        write(f"{name.lower()}-5l-dyadic-64x", model, tests, about, PAPER_RECIPE.format(cell=cell.name))


if __name__ == "__main__":
    main()
