"""How an op asks for kernels: calls with symbolic buffers, which the plan turns into rows of a native program."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from hashinfer.kernels import driver
from hashinfer.kernels.arguments import float_argument
from hashinfer.kernels.elementwise import TILE
from hashinfer.kernels.jit import Kernel
from hashinfer.kernels.pool import Program
from hashinfer.ops.base import Array, Arrays, Call, Inputs, Op, Outputs, TensorType, Types
from hashinfer.ops.checks import operands

ALIGNMENT = 64
NS_PER_ELEMENT = 0.1
"""Rough time of one element of a step that only passes over its operands."""


@dataclass(frozen=True, slots=True)
class Buffer:
    """The memory of one of the op's inputs, outputs or temporaries, from a byte offset on."""

    kind: Literal["in", "out", "temp"]
    number: int
    offset: int = 0


Argument = int | float | Buffer | Array | Callable[[], Array]
"""Arrays are constants, those of int64 kernels' indices; functions make one when the program is assembled, after the
plan's size was allowed."""

Arguments = dict[str, Argument]
"""A kernel's arguments by the names of its fields; others are passed over, and those left out are 0."""

IN_AND_OUT: Mapping[str, Argument] = {"x": Buffer("in", 0), "y": Buffer("out", 0)}
"""What most kernels take: the op's first input and its first output."""


@dataclass(frozen=True, slots=True)
class KernelCall:
    """One step of a native program: every tile of one kernel.

    scratch: bytes a thread. work: estimated nanoseconds on one thread, to choose between kernels and to tell what is
    worth sharing between threads.
    """

    kernel: Kernel
    tiles: int
    args: Mapping[str, Argument]
    scratch: int
    work: float


@dataclass(frozen=True, slots=True)
class Emission:
    """What an op does natively: calls in order, bytes of each temporary, and the choice made, in words.

    usual: the share of its work that is left with usual data, where that depends on the data.
    """

    calls: Sequence[KernelCall]
    temps: Sequence[int] = ()
    choice: str = ""
    reason: str = ""
    usual: float = 1.0

    @classmethod
    def of(
        cls, kernel: Kernel, tiles: int, args: Mapping[str, Argument], scratch: int, work: float, reason: str = ""
    ) -> Emission:
        """One call, which names the choice."""
        return cls([KernelCall(kernel, tiles, args, scratch, work)], choice=kernel.name, reason=reason)

    def with_room_for(self, unnamed: Mapping[int, int]) -> Emission:
        """The same with temporaries for outputs that nobody asked for: `unnamed` gives their bytes by their numbers."""
        if not unnamed:
            return self
        numbers = {output: len(self.temps) + k for k, output in enumerate(unnamed)}

        def placed(value: Argument) -> Argument:
            if isinstance(value, Buffer) and value.kind == "out" and value.number in numbers:
                return Buffer("temp", numbers[value.number], value.offset)
            return value

        calls = [replace(call, args={name: placed(value) for name, value in call.args.items()}) for call in self.calls]
        return replace(self, calls=calls, temps=(*self.temps, *unnamed.values()))

    @property
    def scratch(self) -> int:
        """Bytes of scratch a thread."""
        return max((c.scratch for c in self.calls), default=0)

    @property
    def work(self) -> float:
        """Nanoseconds that it should take on one thread."""
        return sum(c.work for c in self.calls)


def flat_emission(kernel: Kernel, count: int, kind: int = 0, more_ns: float = 0.0, **more: Argument) -> Emission:
    """A kernel of FLAT's fields, and more, over `count` elements that lie side by side.

    more_ns: of each, beyond a plain one's.
    """
    args = {**IN_AND_OUT, "kind": kind, "count": count, **more}
    work = (NS_PER_ELEMENT + more_ns) * count
    return Emission.of(kernel, -(-count // TILE), args, 0, work)


@dataclass(frozen=True, slots=True)
class Relocation:
    """A place in a program that takes the address of a buffer."""

    step: int
    column: int
    buffer: Buffer


@dataclass(slots=True)
class Assembled:
    """Rows of a native program with the relocations still open. `kept`: constants whose addresses are in the rows."""

    code: np.ndarray[tuple[int, int], np.dtype[np.int64]]
    relocations: list[Relocation] = field(default_factory=list)
    kept: list[Array] = field(default_factory=list)


def assemble(calls: Sequence[KernelCall]) -> Assembled:
    """Encode calls as rows. Compiles the kernels that are not compiled yet."""
    out = Assembled(np.zeros((len(calls), driver.ROW), np.int64))
    for step, call in enumerate(calls):
        row = out.code[step]
        for column, name in enumerate(call.kernel.fields):
            value = call.args.get(name, 0)
            if callable(value):
                value = value()
            if isinstance(value, Buffer):
                out.relocations.append(Relocation(step, column, value))
            elif isinstance(value, np.ndarray):
                out.kept.append(value)
                row[column] = value.ctypes.data
            else:
                row[column] = float_argument(value) if isinstance(value, float) else value
        row[driver.TILES] = call.tiles
        row[driver.ADDRESS] = call.kernel.address
    return out


def aligned(size: int) -> int:
    """`size` rounded up to the alignment of buffers."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def aligned_empty(size: int) -> Array:
    """Uninitialised uint8 [size], aligned for buffers."""
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size]


class NativeOp(Op):
    """An op that runs as kernels. In a plan its calls join a native program; alone, `run` does the same."""

    leaves_out = False
    """Whether its kernels leave out an output whose address is 0, as it is where nobody asked for it."""

    def emits(self, call: Call, ins: Inputs) -> bool:
        """Whether there are kernels for operands of these types; if not, the op's own `run` is used."""
        return True

    @abstractmethod
    def emit(self, call: Call, ins: Inputs, outs: Types) -> Emission:
        """Kernel calls for operands of these types, which `infer` has accepted."""

    def check_values(self, ins: Arrays) -> None:
        """Raise OpError where values (indices, say) are out of a table. Called with the real inputs, before kernels."""

    def run(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        self.run_kernels(call, operands(ins), outs)

    def run_kernels(self, call: Call, ins: Inputs, outs: Outputs) -> None:
        """Write the outputs for operands whose values are there."""
        arrays = [None if x is None else np.asarray(x.value, order="C") for x in ins]
        self.check_values(arrays)
        emission = self.emit(call, ins, [TensorType(y.dtype, y.shape) for y in outs])
        temps = [aligned_empty(size) for size in emission.temps]
        scratch = aligned_empty(emission.scratch)
        program = assemble(emission.calls)
        for place in program.relocations:
            array = {"in": arrays, "out": outs, "temp": temps}[place.buffer.kind][place.buffer.number]
            assert array is not None  # noqa: S101
            program.code[place.step, place.column] = array.ctypes.data + place.buffer.offset
        Program(program.code, scratch.ctypes.data, emission.scratch).run()


class KernelOrNumPy(NativeOp):
    """An op that has kernels for some operands, and does the others by NumPy."""

    @abstractmethod
    def emits(self, call: Call, ins: Inputs) -> bool: ...

    @abstractmethod
    def compute(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        """By NumPy, where `emits` says that there are no kernels."""

    def run(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        known = operands(ins)
        if self.emits(call, known):
            self.run_kernels(call, known, outs)
        else:
            self.compute(call, ins, outs)
