"""Names in a file must be text, and of bounded length: protobuf hands out bytes where a string field is not UTF-8."""

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from onnx import TensorProto

from hashinfer.errors import ModelError

LONGEST_NAME = 4096
"""Characters of a name. Names inside a function are read at every call of it."""

_NAMING = frozenset({"name", "input", "output", "op_type", "domain", "overload"})


def check_text(message: Message) -> None:
    """Raise ModelError where a string in `message`, or in a message inside it, is not UTF-8, or a name too long."""
    if isinstance(message, TensorProto):
        # Only the fields that name something: the others hold the data, which is not to be copied here.
        _check_string(message.name, "TensorProto", "name")
        for entry in message.external_data:
            check_text(entry)
        return
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_STRING:
            for text in [value] if isinstance(value, str | bytes) else value:
                _check_string(text, message.DESCRIPTOR.name, field.name)
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            for inner in [value] if isinstance(value, Message) else value:
                check_text(inner)


def _check_string(text: object, kind: str, field: str) -> None:
    if not isinstance(text, str):
        raise ModelError(f"{kind}.{field} is {text!r:.60}, which is not UTF-8; expected text")
    if len(text) > LONGEST_NAME and field in _NAMING:
        raise ModelError(f"{kind}.{field} {text!r:.60} has {len(text)} characters; expected at most {LONGEST_NAME}")
