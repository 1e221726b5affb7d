"""The C header of a compiled model."""

import re

import numpy as np

from hashinfer.native.emit.driver import SCRATCH_ALIGNMENT
from hashinfer.native.emit.lower import Lowered, Port

C_TYPES = {"float32": "float", "float64": "double", "bool": "uint8_t", "float16": "uint16_t"} | {
    f"{sign}int{bits}": f"{sign}int{bits}_t" for sign in ("", "u") for bits in (8, 16, 32, 64)
}

_KEYWORDS = """
    auto break case char const continue default do double else enum extern float for goto if inline int long register
    restrict return short signed sizeof static struct switch typedef union unsigned void volatile while
"""
KEYWORDS = frozenset(_KEYWORDS.split())


def c_name(text: str) -> str:
    """`text` as a C identifier: what is none of its characters becomes _, and a leading digit gets one in front."""
    name = re.sub(r"\W", "_", text, flags=re.ASCII)
    return f"_{name}" if not name or name[0].isdigit() or name in KEYWORDS else name


def header(model: Lowered, name: str, version: str, source: str) -> str:
    """Prototypes, sizes and error codes, with what each array holds."""
    upper, guard = name.upper(), f"{name.upper()}_H"
    rows = "rows of each array" if model.batched else "always 1"
    lines = [
        f"/* {_comment(source)}, compiled by hashinfer {version}. */",
        f"#ifndef {guard}",
        f"#define {guard}",
        "",
        "#include <stddef.h>",
        "#include <stdint.h>",
        "",
        "#ifdef __cplusplus",
        'extern "C" {',
        "#endif",
        "",
        f'#define {upper}_VERSION "{version}"',
        f"#define {upper}_SCRATCH {model.scratch_bytes} /* bytes of scratch, whatever the batch */",
        f"#define {upper}_SCRATCH_ALIGNMENT {SCRATCH_ALIGNMENT} /* for speed; a multiple of 8 is enough */",
    ]
    for kind, ports in (("INPUT", model.inputs), ("OUTPUT", model.outputs)):
        for k, port in enumerate(ports):
            lines.append(f"#define {upper}_{kind}_{k}_SIZE {port.type.size} /* {_about(port, model.batched)} */")
    lines += [
        "",
        f"enum {{ {upper}_OK = 0, {upper}_BAD_ARGUMENT = 1, {upper}_BAD_INDEX = 2, {upper}_FAULT = 3 }};",
        "",
        "/* Bytes of scratch for `batch` rows; 0 where batch is below 1. */",
        f"size_t {name}_scratch_size(int32_t batch);",
        "",
        f"/* inputs, outputs: one pointer for each array, in the order above. batch: {rows}. Needs no memory",
        "   beside scratch, keeps nothing between calls, may run in any number of threads, each with its scratch. */",
        f"int {name}_run(const void *const *inputs, void *const *outputs, int32_t batch, void *scratch);",
        "",
        "/* What the model is, as JSON. */",
        f"const char *{name}_describe(void);",
    ]
    if len(model.inputs) == 1 and len(model.outputs) == 1:
        (x,), (y,) = model.inputs, model.outputs
        lines += [
            "",
            f"static inline int {name}_predict(const {_c(x)} *input, {_c(y)} *output, int32_t batch, void *scratch)",
            "{",
            "    const void *inputs[1];",
            "    void *outputs[1];",
            "    inputs[0] = input;",
            "    outputs[0] = output;",
            f"    return {name}_run(inputs, outputs, batch, scratch);",
            "}",
        ]
    lines += ["", "#ifdef __cplusplus", "}", "#endif", "", "#endif"]
    return "\n".join(lines) + "\n"


def _c(port: Port) -> str:
    return C_TYPES[np.dtype(port.type.dtype).name]


def _about(port: Port, batched: bool) -> str:
    shape = ["batch" if batched and k == 0 and port.grows else str(d) for k, d in enumerate(port.shape)]
    each = " a row" if batched and port.grows else ""
    return f"elements{each}: {_comment(port.name)}, {_c(port)} [{', '.join(shape)}]"


def _comment(text: str) -> str:
    return "".join(c if c.isprintable() and c.isascii() and c not in "*\\" else "?" for c in text)
