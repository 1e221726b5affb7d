"""Lines of onnx's text form, for the function bodies of the schemes."""

from __future__ import annotations


def lines(*parts: str) -> str:
    """One text of many lines; a part may hold several."""
    return "\n".join(parts)


def constant(name: str, dtype: str, *values: int) -> str:
    """A Constant of shape [len(values)]."""
    listed = ", ".join(map(str, values))
    return f"{name} = Constant <value: tensor = {dtype}[{len(values)}] {{{listed}}}> ()"


def shift(target: str, source: str, direction: str, bits: int, dtype: str = "uint32") -> str:
    """target = source shifted by a constant number of bits."""
    return lines(
        constant(f"{target}_by", dtype, bits),
        f'{target} = BitShift <direction: string = "{direction}"> ({source}, {target}_by)',
    )
