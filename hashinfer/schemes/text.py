"""Lines of onnx's text form, for the function bodies of the schemes."""


def constant(name: str, dtype: str, *values: int) -> str:
    """A Constant of shape [len(values)]."""
    listed = ", ".join(map(str, values))
    return f"{name} = Constant <value: tensor = {dtype}[{len(values)}] {{{listed}}}> ()"


def shift(target: str, source: str, direction: str, bits: int, dtype: str = "uint32") -> str:
    """target = source shifted by a constant number of bits."""
    by = constant(f"{target}_by", dtype, bits)
    return f'{by}\n{target} = BitShift <direction: string = "{direction}"> ({source}, {target}_by)'


NUMBERS = f"""\
{constant("two", "int64", 2)}
zero = Constant <value_int: int = 0> ()
one = Constant <value_int: int = 1> ()
m = Constant <value_int: int = @rows> ()
n = Constant <value_int: int = @cols> ()"""
"""What every body counts with."""
