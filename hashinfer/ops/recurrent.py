"""LSTM and GRU with their default activations, float32: kernels over whole sequences.

Peepholes, clipping, sequence lengths, coupled gates and other activations go to the reference implementation.
"""

from hashinfer.errors import OpError
from hashinfer.kernels import recurrent
from hashinfer.kernels.jit import Kernel
from hashinfer.ops.base import Call, Inputs, Shape, TensorType, Types, optional, register, text
from hashinfer.ops.checks import FLOAT32, need_all
from hashinfer.ops.emission import Arguments, Buffer, Emission, KernelCall, NativeOp

NS_PER_WEIGHT, NS_PER_GATE, NS_PER_TURNED = 0.05, 12.0, 0.6
"""Rough times: of one multiply-add, of one gate's activation, of one weight that is moved."""
DIRECTIONS = {"forward": (1, 0), "reverse": (1, 1), "bidirectional": (2, 2)}
"""How many there are, and which run backwards, as bits."""
SEQUENCE_LENGTHS, INITIAL_H, INITIAL_C, PEEPHOLES = 4, 5, 6, 7


class Recurrent(NativeOp):
    """What LSTM and GRU share. Inputs: X, W, R, B, sequence lengths, initial h (and c); outputs: Y, Y_h (and Y_c)."""

    kernel: Kernel
    gates: int
    activations: tuple[str, ...]
    outputs: int
    leaves_out = True

    def supports(self, call: Call, ins: Inputs) -> bool:
        given = [text(name).lower() for name in call.get("activations", [])]
        count = DIRECTIONS.get(call.text("direction", "forward"), (0, 0))[0]
        plain = not given or given == list(self.activations) * count
        parts = [optional(ins, at) for at in range(PEEPHOLES + 1)]
        floats = all(p is None or p.dtype == FLOAT32 for at, p in enumerate(parts) if at != SEQUENCE_LENGTHS)
        whole = parts[SEQUENCE_LENGTHS] is None and parts[PEEPHOLES] is None
        return plain and count > 0 and floats and whole and not call.get("clip", 0) and not call.get("input_forget", 0)

    def sizes(self, call: Call, ins: Inputs) -> tuple[int, int, int, int, int]:
        """(directions, steps, batch, inputs, hidden). Raises OpError where shapes do not fit together."""
        x, w, r = need_all(ins, "X", "W", "R")
        directions = DIRECTIONS[call.text("direction", "forward")][0]
        if x.rank != 3 or w.rank != 3 or r.rank != 3:
            raise OpError(f"X is {x.type}, W is {w.type} and R is {r.type}; expected three dimensions each")
        first, second, inputs = x.shape
        steps, batch = (second, first) if call.get("layout", 0) else (first, second)
        hidden = r.shape[2]
        if w.shape != (directions, self.gates * hidden, inputs) or r.shape[:2] != w.shape[:2]:
            expected = f"[{directions}, {self.gates} hidden, {inputs}] and [{directions}, {self.gates} hidden, hidden]"
            raise OpError(f"W is {w.type} and R is {r.type}; expected {expected}")
        if call.get("hidden_size", hidden) != hidden:
            raise OpError(f"hidden_size is {call.get('hidden_size', 0)}; R is {r.type}")
        for at, what, shape in (
            (3, "B", (directions, 2 * self.gates * hidden)),
            (INITIAL_H, "initial_h", self.state(call, directions, batch, hidden)),
            (INITIAL_C, "initial_c", self.state(call, directions, batch, hidden)),
        ):
            operand = optional(ins, at)
            if operand is not None and operand.shape != shape:
                raise OpError(f"{what} is {operand.type}; expected shape {list(shape)}")
        return directions, steps, batch, inputs, hidden

    @staticmethod
    def state(call: Call, directions: int, batch: int, hidden: int) -> Shape:
        """Of an initial or final state."""
        return (batch, directions, hidden) if call.get("layout", 0) else (directions, batch, hidden)

    def infer(self, call: Call, ins: Inputs) -> Types:
        directions, steps, batch, _, hidden = self.sizes(call, ins)
        by_row = (batch, steps, directions, hidden)
        y = by_row if call.get("layout", 0) else (steps, directions, batch, hidden)
        state = TensorType(FLOAT32, self.state(call, directions, batch, hidden))
        return [TensorType(FLOAT32, y), *[state] * (self.outputs - 1)][: call.outputs]

    def emit(self, call: Call, ins: Inputs, outs: Types) -> Emission:
        directions, steps, batch, inputs, hidden = self.sizes(call, ins)
        by_row = bool(call.get("layout", 0))
        apart = 1 if by_row else batch
        args: Arguments = {
            "w": Buffer("temp", 0),
            "r": Buffer("temp", 1),
            "steps": steps,
            "batch": batch,
            "inputs": inputs,
            "hidden": hidden,
            "backwards": DIRECTIONS[call.text("direction", "forward")][1],
            # Axes before the last: batch, steps and directions of Y by row; steps, directions and batch otherwise.
            "x_step": inputs * apart,
            "x_row": inputs * (steps if by_row else 1),
            "y_step": hidden * directions * apart,
            "y_direction": hidden * apart,
            "y_row": hidden * (steps * directions if by_row else 1),
            "s_direction": hidden * apart,
            "s_row": hidden * (directions if by_row else 1),
            "reset_after": int(call.get("linear_before_reset", 0)),
        }
        sources = {"x": 0, "b": 3, "h0": INITIAL_H, "c0": INITIAL_C}
        args |= {name: Buffer("in", at) for name, at in sources.items() if optional(ins, at) is not None}
        args |= {name: Buffer("out", at) for at, name in enumerate(("y", "yh", "yc")[: len(outs)])}
        width = self.gates * hidden
        products = width * (inputs + hidden)
        work = directions * batch * steps * (NS_PER_WEIGHT * products + NS_PER_GATE * width)
        temps: list[int] = []
        calls: list[KernelCall] = []
        for number, cols in enumerate((inputs, hidden)):
            turned: Arguments = {"x": Buffer("in", 1 + number), "y": Buffer("temp", number)}
            turned |= {"rows": width, "cols": cols}
            work_of = NS_PER_TURNED * directions * width * cols
            calls.append(KernelCall(recurrent.transpose_matrices, directions, turned, 0, work_of))
            temps.append(4 * directions * width * cols)
        calls.append(KernelCall(self.kernel, directions * batch, args, recurrent.scratch_bytes(hidden), work))
        reason = f"{directions * batch} sequences of {steps} steps"
        return Emission(calls, temps, self.kernel.name, reason)


@register("LSTM")
class Lstm(Recurrent):
    kernel, gates, outputs = recurrent.lstm, 4, 3
    activations = ("sigmoid", "tanh", "tanh")


@register("GRU")
class Gru(Recurrent):
    kernel, gates, outputs = recurrent.gru, 3, 2
    activations = ("sigmoid", "tanh")
