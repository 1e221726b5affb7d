"""The table of op schemas, from the onnx that is installed.

    python -m tests.schemas > hashinfer/model/schemas.json.gz

writes it anew.
"""

from __future__ import annotations

import gzip
import json
import sys
from typing import Any

from onnx import defs

from hashinfer.model.schema import Takes


def takes_of(schema: Any) -> Takes:
    """What one of onnx's schemas takes."""
    optional = type(schema).FormalParameterOption.Optional
    return (
        schema.min_input,
        schema.max_input,
        schema.min_output,
        schema.max_output,
        "".join(str(int(formal.option == optional)) for formal in schema.inputs),
        {name: a.type.value for name, a in sorted(schema.attributes.items())},
        sorted(name for name, a in schema.attributes.items() if a.required),
    )


def table_of_onnx() -> dict[str, Any]:
    """The table that the installed onnx gives."""
    schemas = [schema for schema in defs.get_all_schemas_with_history() if not schema.domain]
    ops: dict[str, tuple[list[int], list[Takes]]] = {}
    for schema in sorted(schemas, key=lambda schema: (schema.name, schema.since_version)):
        since, takes = ops.setdefault(schema.name, ([], []))
        found = takes_of(schema)
        if not takes or takes[-1] != found:
            since.append(schema.since_version)
            takes.append(found)
    return {"opset": defs.onnx_opset_version(), "ops": ops}


if __name__ == "__main__":
    text = json.dumps(table_of_onnx(), separators=(",", ":"))
    sys.stdout.buffer.write(gzip.compress(text.encode(), mtime=0))
