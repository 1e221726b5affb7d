"""Fuzzing of the loader and of a first run: hostile models may fail, but only as they should.

    python -m tests.fuzz --runs 1000000 --out FOLDER

Where atheris (https://github.com/google/atheris) is installed, libFuzzer steers by the coverage of hashinfer's Python
code; without it mutations are drawn at random. Mutations know protobuf: they change fields of a ModelProto. Seeds are
the frozen files, tests/corpus, and a file for each of onnx's own node tests with its inputs inside.

For each input: a typed error or an answer, the same one twice; no other exception, no crash, at most 2 s of processor
time, at most 256 MiB. What breaks that is saved in FOLDER as finding-*.onnx with what was seen beside it, and the
fuzzing goes on. Ends with exit code 1 if there was any.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import pkgutil
import random
import signal
import subprocess
import sys
import time
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper


def _instrumented() -> bool:
    """Import hashinfer so that its coverage steers libFuzzer, in a worker that is to be steered."""
    if "--worker" not in sys.argv or "--by-chance" in sys.argv:
        return False
    import atheris

    import hashinfer.kernels

    for module in pkgutil.iter_modules(hashinfer.kernels.__path__, "hashinfer.kernels."):
        # Numba cannot compile what is instrumented.
        importlib.import_module(module.name)
    with atheris.instrument_imports(include=["hashinfer"]):
        import hashinfer.model.write
        import hashinfer.session.session
    return True


STEERED = _instrumented()
import hashinfer  # noqa: E402
from hashinfer.errors import HashinferError  # noqa: E402
from hashinfer.kernels.jit import every_kernel  # noqa: E402
from hashinfer.model.write import expand_node  # noqa: E402
from hashinfer.schemes import Dyadic, Xxh32  # noqa: E402

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
MAX_MEMORY, TIME_LIMIT = 1 << 26, 0.05
CPU_SECONDS, ADDRESS_ROOM = 2.0, 1 << 28
INTEGERS = (0, 1, -1, 2, 3, 7, 8, 16, 127, 255, 2**15, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, -(2**63))
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, 1e38, -1e38, float("inf"), float("-inf"), float("nan"))


class Finding(Exception):  # noqa: N818
    """An input did what none may."""


# ------------------------------------------------------------------------------------------------------------ one input


def feed_of(session: hashinfer.InferenceSession, seed: int) -> dict[str, Any] | None:
    """Inputs of the declared types, open dimensions small; None where they would be large or of no plain type."""
    rng, feed = np.random.default_rng(seed), {}
    for value in session.get_inputs():
        if not value.type.startswith("tensor("):
            return None
        shape = [d if isinstance(d, int) else int(rng.integers(0, 4)) for d in value.shape]
        if len(shape) > 16 or np.prod([max(d, 1) for d in shape], dtype=object) > 20000:
            return None
        name = value.type.removeprefix("tensor(").removesuffix(")")
        if name == "string":
            feed[value.name] = np.full(shape, "a", object)
            continue
        try:
            dtype = np.dtype({"float": "float32", "double": "float64"}.get(name, name))
        except TypeError:
            return None
        feed[value.name] = (rng.standard_normal(shape) if dtype.kind in "fc" else rng.integers(0, 4, shape)).astype(
            dtype
        )
    return feed


def check(data: bytes) -> str:
    """What came of an input: "answer", "no feed" or the error's class. Raises whatever no input may raise."""
    try:
        with hashinfer.InferenceSession(data, threads=1, max_memory=MAX_MEMORY, time_limit=TIME_LIMIT) as session:
            feed = feed_of(session, zlib.crc32(data))
            if feed is None:
                return "no feed"
            first = session.run(None, feed)
            second = session.run(None, feed)
    except HashinferError as error:
        if not str(error):
            raise Finding("an error that says nothing") from error
        return type(error).__name__
    if not is_random(data) and not same(first, second):
        raise Finding("two runs gave different answers")
    return "answer"


def is_random(data: bytes) -> bool:
    """Whether a model may hold an op that draws numbers."""
    return any(name in data for name in (b"Random", b"Bernoulli", b"Multinomial", b"Dropout"))


def same(a: Any, b: Any) -> bool:
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        if a.dtype != b.dtype or a.shape != b.shape:
            return False
        if a.dtype.kind == "O":
            return bool(a.tolist() == b.tolist())
        # Not by copies: what is left of the memory may be less than an answer takes.
        left, right = (memoryview(np.ascontiguousarray(x).reshape(-1).view(np.uint8)) for x in (a, b))
        return left == right
    return (a is None and b is None) or isinstance(a, dict | str | int | float)


# ---------------------------------------------------------------------------------------------------------------- seeds


def with_inputs_inside(model: ModelProto, inputs: list[Any]) -> ModelProto | None:
    """A model whose inputs are initializers of the values given, those that are no plain tensors staying inputs."""
    made = ModelProto()
    made.CopyFrom(model)
    kept = []
    for value, given in zip(model.graph.input, inputs, strict=False):
        array = numpy_helper.to_array(given) if isinstance(given, TensorProto) else given
        if isinstance(array, np.ndarray) and array.nbytes <= 4096:
            made.graph.initializer.append(numpy_helper.from_array(array, value.name))
        else:
            kept.append(value)
    del made.graph.input[:]
    made.graph.input.extend(kept)
    return made if made.ByteSize() <= 8192 else None


def seeds() -> Iterator[tuple[str, bytes]]:
    """Names and bytes of the files that fuzzing starts from."""
    for path in sorted((*CORPUS.glob("*.onnx"), *(HERE / "frozen").glob("*.hnet"))):
        yield path.name, path.read_bytes()
        if path.suffix == ".hnet":
            model = onnx.load(path)
            del model.functions[:]
            yield f"{path.name} without bodies", model.SerializeToString()
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        cases = collect_testcases()
    for case in cases:
        model = with_inputs_inside(case.model, list(case.data_sets[0][0]))
        if model is not None:
            yield case.name, model.SerializeToString()


# ------------------------------------------------------------------------------------------------------------ mutations

OP_TYPES = sorted({(s.domain, s.name) for s in onnx.defs.get_all_schemas()})


def mutate(
    data: bytes, rng: random.Random, other: bytes | None = None, bytewise: Callable[[bytes], bytes] | None = None
) -> bytes:
    """Another input near this one. other: a model to take parts from. bytewise: mutates what is no model."""
    model = ModelProto()
    try:
        model.ParseFromString(data)
    except (DecodeError, ValueError):
        model.Clear()
    if not model.HasField("graph") or rng.random() < 0.02:
        return bytewise(data) if bytewise is not None else scrambled(data, rng)
    donor = ModelProto()
    if other is not None:
        with suppress(DecodeError, ValueError):
            donor.ParseFromString(other)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 5))):
        with suppress(Exception):
            rng.choice(MUTATIONS)(model, donor, rng)
    try:
        return model.SerializeToString()
    except (ValueError, UnicodeError):
        return data


def scrambled(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data or b"\0")
    for _ in range(rng.choice((1, 2, 4))):
        at = rng.randrange(len(out))
        what = rng.randrange(3)
        if what == 0:
            out[at] = rng.randrange(256)
        elif what == 1:
            del out[at : at + rng.randrange(1, 9)]
            out = out or bytearray(b"\0")
        else:
            out[at:at] = rng.randbytes(rng.randrange(1, 9))
    return bytes(out)


def messages(root: Any, limit: int = 4000) -> list[Any]:
    """A message and those in it."""
    found, pending = [], [root]
    while pending and len(found) < limit:
        last = pending.pop()
        found.append(last)
        for field, value in last.ListFields():
            if field.message_type is not None:
                pending.extend(value if field.is_repeated else [value])
    return found


def fields(root: Any, wanted: Callable[[Any], bool]) -> list[tuple[Any, Any]]:
    """Set fields of messages of a kind: (message, field)."""
    return [(m, f) for m in messages(root) for f, _ in m.ListFields() if wanted(f)]


def set_number(model: ModelProto, _: ModelProto, rng: random.Random) -> None:
    """A number somewhere becomes an odd one."""
    message, field = rng.choice(fields(model, lambda f: f.cpp_type in (1, 2, 3, 4, 5, 6, 8)))
    if field.cpp_type in (5, 6):
        value: Any = rng.choice(FLOATS)
    else:
        value = rng.choice(INTEGERS) if rng.random() < 0.7 else rng.randrange(-4, 40)
        bits = 32 if field.cpp_type in (1, 3, 8) else 64
        value = (
            (value + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1) if field.cpp_type in (1, 2, 8) else value % 2**bits
        )
    if field.is_repeated:
        values = getattr(message, field.name)
        values[rng.randrange(len(values))] = value
    else:
        setattr(message, field.name, value)


def set_attribute(model: ModelProto, _: ModelProto, rng: random.Random) -> None:
    """An attribute of a node becomes another integer, float, list or text, its kind kept or not."""
    attribute = rng.choice([m for m in messages(model) if isinstance(m, AttributeProto)])
    kind = attribute.type if rng.random() < 0.9 else rng.randrange(15)
    small = rng.randrange(-2, 6)
    if kind == AttributeProto.INT:
        attribute.i = rng.choice((small, rng.choice(INTEGERS)))
    elif kind == AttributeProto.INTS:
        attribute.ints[:] = [
            rng.choice((small, rng.randrange(-2, 6), rng.choice(INTEGERS))) for _ in range(rng.randrange(5))
        ]
    elif kind == AttributeProto.FLOAT:
        attribute.f = rng.choice(FLOATS)
    elif kind == AttributeProto.FLOATS:
        attribute.floats[:] = [rng.choice(FLOATS) for _ in range(rng.randrange(5))]
    elif kind == AttributeProto.STRING:
        attribute.s = rng.choice((b"", b"a", b"\xff", b"constant", b"SAME_UPPER", b"linear", b"x" * 5000))
    attribute.type = kind


def add_attribute(model: ModelProto, _: ModelProto, rng: random.Random) -> None:
    """A node gets an attribute that its op has."""
    node = rng.choice([m for m in messages(model) if isinstance(m, onnx.NodeProto)])
    schema = onnx.defs.get_schema(node.op_type, domain=node.domain)
    name = rng.choice(sorted(schema.attributes))
    kind = schema.attributes[name].type.value
    attribute = node.attribute.add(name=name, type=kind)
    attribute.i, attribute.f = rng.choice((0, 1, rng.choice(INTEGERS))), rng.choice(FLOATS)
    attribute.ints.extend(rng.randrange(-1, 4) for _ in range(rng.randrange(4)))


def cut_or_copy(model: ModelProto, _: ModelProto, rng: random.Random) -> None:
    """One of a list's parts goes, comes twice, or changes places."""
    message, field = rng.choice(fields(model, lambda f: f.is_repeated))
    values = getattr(message, field.name)
    at, what = rng.randrange(len(values)), rng.randrange(3)
    if what == 0:
        del values[at]
    elif what == 1:
        values.append(values[at])
    else:
        picked = list(values)
        picked.insert(rng.randrange(len(picked)), picked.pop(at))
        copies = [type(p).FromString(p.SerializeToString()) if field.message_type is not None else p for p in picked]
        del values[:]
        values.extend(copies)


def drop_field(model: ModelProto, _: ModelProto, rng: random.Random) -> None:
    message, field = rng.choice(fields(model, lambda f: not f.is_repeated))
    message.ClearField(field.name)


def rename(model: ModelProto, _: ModelProto, rng: random.Random) -> None:
    """A value's name becomes that of another: cycles, names defined twice, inputs of other types."""
    nodes = [m for m in messages(model) if isinstance(m, onnx.NodeProto)]
    names = (
        [n for node in nodes for n in (*node.input, *node.output)] + [i.name for i in model.graph.initializer] + [""]
    )
    node = rng.choice(nodes)
    part = rng.choice((node.input, node.input, node.input, node.output))
    if part:
        part[rng.randrange(len(part))] = rng.choice(names)
    else:
        part.append(rng.choice(names))


def unname(model: ModelProto, _: ModelProto, rng: random.Random) -> None:
    """An output of a node with several loses its name, and the graph that output."""
    node = rng.choice([m for m in messages(model) if isinstance(m, onnx.NodeProto) and len(m.output) > 1])
    at = rng.randrange(len(node.output))
    kept = [value for value in model.graph.output if value.name != node.output[at]]
    node.output[at] = ""
    del model.graph.output[:]
    model.graph.output.extend(kept)


def other_op(model: ModelProto, _: ModelProto, rng: random.Random) -> None:
    node = rng.choice([m for m in messages(model) if isinstance(m, onnx.NodeProto)])
    node.domain, node.op_type = rng.choice(OP_TYPES)


def more_nodes(model: ModelProto, donor: ModelProto, rng: random.Random) -> None:
    """Another model's nodes and initializers behind this one's, some of their inputs being values of this one."""
    known = [n for node in model.graph.node for n in node.output if n] + [i.name for i in model.graph.initializer]
    mark = f"~{rng.randrange(10**6)}"
    for tensor in donor.graph.initializer:
        model.graph.initializer.add().CopyFrom(tensor)
        model.graph.initializer[-1].name += mark
    for node in donor.graph.node[:8]:
        added = model.graph.node.add()
        added.CopyFrom(node)
        for part in (added.input, added.output):
            part[:] = [n + mark if n else n for n in part]
        if added.input and known and rng.random() < 0.5:
            added.input[rng.randrange(len(added.input))] = rng.choice(known)
    if model.graph.output and donor.graph.output:
        model.graph.output.add(name=rng.choice(donor.graph.output).name + mark)


def hashed_product(model: ModelProto, _: ModelProto, rng: random.Random) -> None:
    """A hashed layer behind some value."""
    known = [n for node in model.graph.node for n in node.output if n]
    mark, rows, cols = f"~{rng.randrange(10**6)}", rng.randrange(1, 40), rng.randrange(1, 40)
    width = 2 ** rng.randrange(6)
    scheme = rng.choice(
        (
            Dyadic(width * rng.randrange(1, 5), rows, cols, 3, width),
            Xxh32(rng.randrange(9, 60), rows, cols, 3, rng.choice((1, 4))),
        )
    )
    w = np.ones(scheme.buckets, np.float32)
    model.graph.initializer.append(numpy_helper.from_array(w, f"w{mark}"))
    model.graph.node.append(expand_node(scheme, f"w{mark}", f"W{mark}"))
    op = rng.choice(("MatMul", "Gemm", "Gather"))
    sides = [f"W{mark}", rng.choice(known)] if op == "Gather" or rng.random() < 0.1 else [rng.choice(known), f"W{mark}"]
    model.graph.node.append(helper.make_node(op, sides, [f"y{mark}"]))
    model.graph.output.add(name=f"y{mark}")
    if not any(o.domain == "ai.hashinfer" for o in model.opset_import):
        model.opset_import.append(helper.make_opsetid("ai.hashinfer", 1))


def tensor_bytes(model: ModelProto, _: ModelProto, rng: random.Random) -> None:
    """A tensor's dims or bytes change, in step or not."""
    tensor = rng.choice([m for m in messages(model) if isinstance(m, TensorProto)])
    what = rng.randrange(4)
    if what == 0:
        tensor.dims[:] = [rng.choice((0, 1, 2, 3, 2**31, 2**62)) for _ in range(rng.randrange(5))]
    elif what == 1:
        array = numpy_helper.to_array(tensor)
        shape = [rng.randrange(4) for _ in range(rng.randrange(5))]
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(np.resize(array, shape), name))
    elif what == 2:
        array = numpy_helper.to_array(tensor).copy()
        if array.size and array.dtype.kind in "iuf":
            pool = FLOATS if array.dtype.kind == "f" else INTEGERS
            array.reshape(-1)[rng.randrange(array.size)] = rng.choice(pool)
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(array, name))
    else:
        tensor.raw_data = scrambled(tensor.raw_data, rng)


def into_function(model: ModelProto, _: ModelProto, rng: random.Random) -> None:
    """A node becomes a call of a function that holds it, or one that calls a function that is there."""
    node = rng.choice(list(model.graph.node))
    name = f"F{rng.randrange(3)}"
    inside = onnx.NodeProto()
    inside.CopyFrom(node)
    named = [f"i{k}" for k in range(len(node.input))]
    inside.input[:] = named
    outs = [f"o{k}" for k in range(len(node.output))]
    inside.output[:] = outs
    function = model.functions.add(name=name, domain="fuzz")
    function.input.extend(named)
    function.output.extend(outs)
    function.node.append(inside)
    function.opset_import.extend(model.opset_import)
    node.op_type, node.domain = name, "fuzz"
    del node.attribute[:]


def into_subgraph(model: ModelProto, _: ModelProto, rng: random.Random) -> None:
    """The last node goes into both branches of an If, or into the body of a Loop."""
    node = model.graph.node[-1]
    inside = onnx.NodeProto()
    inside.CopyFrom(node)
    inside.output[:] = [f"{o}/inner" for o in node.output]
    body = helper.make_graph([inside], "inner", [], [onnx.ValueInfoProto(name=o) for o in inside.output])
    model.graph.initializer.append(numpy_helper.from_array(np.array(rng.random() < 0.5), "~c"))
    if rng.random() < 0.5:
        made = helper.make_node("If", ["~c"], list(node.output), then_branch=body, else_branch=body)
    else:
        trips = numpy_helper.from_array(np.array(rng.choice((0, 1, 2, 3, 3, 2**63 - 1))), "~t")
        model.graph.initializer.append(trips)
        head = [helper.make_tensor_value_info("~i", 7, []), helper.make_tensor_value_info("~g", 9, [])]
        going = helper.make_node("Identity", ["~g"], ["~h"])
        body = helper.make_graph([going, inside], "inner", head, [onnx.ValueInfoProto(name="~h"), *body.output])
        made = helper.make_node("Loop", ["~t", ""], list(node.output), body=body)
    node.CopyFrom(made)


MUTATIONS: tuple[Callable[[ModelProto, ModelProto, random.Random], None], ...] = (
    set_number,
    set_number,
    set_attribute,
    set_attribute,
    add_attribute,
    cut_or_copy,
    drop_field,
    rename,
    unname,
    other_op,
    more_nodes,
    hashed_product,
    tensor_bytes,
    tensor_bytes,
    into_function,
    into_subgraph,
)


# -------------------------------------------------------------------------------------------------------------- running


@contextmanager
def confined(room: int) -> Iterator[None]:
    """With at most `room` more bytes of address space, where the system knows such a limit."""
    # What compiles kernels brings OpenBLAS, which asks for ever for memory that it cannot have.
    importlib.import_module("hashinfer.kernels.compiler")
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError):
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


class Fuzzer:
    """Counts, and saves what breaks a promise. Kernels are compiled before memory is confined."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.runs = 0
        self.outcomes: dict[str, int] = {}
        self.seen: set[str] = set()
        self.started = time.time()

    def one(self, data: bytes) -> None:
        self.runs += 1
        if self.runs % 256 == 0:
            self.note()
        spent = time.process_time()
        try:
            outcome = check(data)
            spent = time.process_time() - spent
            if spent > CPU_SECONDS:
                # A kernel may have been compiled; only what stays slow is a finding.
                spent = time.process_time()
                check(data)
                spent = time.process_time() - spent
                if spent > CPU_SECONDS:
                    raise Finding(f"{spent:.1f} s of processor time")
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            self.save(data, error)
            outcome = "finding"
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1

    def save(self, data: bytes, error: BaseException) -> None:
        frames = traceback.extract_tb(error.__traceback__)
        where = next(
            (f for f in reversed(frames) if "hashinfer" in f.filename and "fuzz" not in f.filename), frames[-1]
        )
        key = f"{type(error).__name__}-{Path(where.filename).stem}-{where.lineno}"
        if isinstance(error, Finding):
            key = f"Finding-{str(error)[:12].strip().replace(' ', '-')}-{zlib.crc32(data):08x}"
        if key in self.seen or len(self.seen) > 1000:
            return
        self.seen.add(key)
        (self.out / f"finding-{key}.onnx").write_bytes(data)
        text = "".join(traceback.format_exception(error))
        (self.out / f"finding-{key}.txt").write_text(text[-20000:])

    def note(self) -> None:
        state = {"runs": self.runs, "seconds": round(time.time() - self.started), "outcomes": self.outcomes}
        (self.out / f"state-{os.getpid()}.json").write_text(json.dumps(state))


def warm(fuzzer: Fuzzer, pool: list[bytes]) -> None:
    """Compile every kernel, which takes more memory than is allowed later, and save seeds that break a promise."""
    for kernel in every_kernel():
        _ = kernel.address
    for data in pool:
        fuzzer.one(data)


def by_chance(fuzzer: Fuzzer, pool: list[bytes], runs: int, seed: int) -> None:
    """Without coverage: seeds, and a few of what came of them, mutated."""
    rng = random.Random(seed)  # noqa: S311
    start = len(pool)
    while fuzzer.runs < runs:
        data = mutate(rng.choice(pool), rng, rng.choice(pool))
        fuzzer.one(data)
        if len(data) < 20000 and rng.random() < 0.02:
            if len(pool) < 4 * start:
                pool.append(data)
            else:
                pool[rng.randrange(start, len(pool))] = data


def by_coverage(fuzzer: Fuzzer, pool: list[bytes], runs: int, seed: int, corpus: Path) -> None:
    """With atheris; does not return."""
    import atheris

    corpus.mkdir(exist_ok=True)
    for data in pool:
        (corpus / f"{zlib.crc32(data):08x}").write_bytes(data)

    def mutator(data: bytes, max_size: int, number: int) -> bytes:
        rng = random.Random(number)  # noqa: S311
        made = mutate(data, rng, rng.choice(pool), lambda d: atheris.Mutate(d, max_size))
        return made if len(made) <= max_size else data

    options = [
        "-timeout=60",
        "-rss_limit_mb=0",
        "-max_len=20000",
        "-print_final_stats=1",
        "-reload=0",
        "-len_control=0",
    ]
    arguments = [sys.argv[0], str(corpus), f"-runs={runs}", f"-seed={seed}", f"-artifact_prefix={fuzzer.out}/crash-"]
    atheris.Setup([*arguments, *options], fuzzer.one, custom_mutator=mutator, enable_python_coverage=True)
    atheris.Fuzz()


def worker(out: Path, runs: int, seed: int) -> None:
    logging.getLogger("hashinfer").setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    fuzzer = Fuzzer(out)
    fuzzer.seen = {path.stem.removeprefix("finding-") for path in out.glob("finding-*.onnx")}
    pool = [data for _, data in seeds() if len(data) <= 20000]
    warm(fuzzer, pool)
    try:
        with confined(ADDRESS_ROOM):
            if STEERED:
                by_coverage(fuzzer, pool, runs, seed, out / "corpus")
            else:
                by_chance(fuzzer, pool, runs, seed)
    finally:
        fuzzer.note()
        print(json.dumps({"runs": fuzzer.runs, "outcomes": fuzzer.outcomes}))


def supervise(out: Path, runs: int, seed: int, atheris: bool) -> int:
    """Workers one after the other until there were enough runs: one that dies leaves its input behind."""
    started, again = time.time(), 0
    while True:
        done = sum(json.loads(p.read_text())["runs"] for p in out.glob("state-*.json"))
        found = sorted(p.name for p in (*out.glob("finding-*.onnx"), *out.glob("crash-*")))
        print(f"{done} runs, {len(found)} findings, {time.time() - started:.0f} s", flush=True)
        if done >= runs:
            return 1 if found else 0
        again += 1
        command = [sys.executable, "-m", "tests.fuzz", "--worker", "--out", str(out), "--seed", str(seed + again)]
        command += ["--runs", str(min(runs - done, 100_000))] + ([] if atheris else ["--by-chance"])
        with (out / f"log-{again}.txt").open("w") as log:
            subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=(__doc__ or "").split("\n", maxsplit=1)[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder for findings and the growing corpus")
    parser.add_argument(
        "--runs", type=int, default=1_000_000, help="inputs in all, earlier ones in the folder included"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--by-chance", action="store_true", help="draw mutations at random, without atheris")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    steered = not given.by_chance
    if steered:
        try:
            import atheris
        except ImportError:
            print("atheris is not installed: mutations are drawn at random")
            steered = False
        else:
            del atheris
    if given.worker:
        worker(given.out, given.runs, given.seed)
        return 0
    return supervise(given.out, given.runs, given.seed, steered)


if __name__ == "__main__":
    sys.exit(main())
