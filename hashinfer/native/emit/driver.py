"""The driver of one model as LLVM IR: arguments on the stack, each kernel's tiles in order, row by row.

Nothing is allocated, nothing is kept between calls: two calls with two scratches may run at once.
"""

import json
from collections.abc import Iterator

from hashinfer.native.emit.lower import CheckIds, Copy, Invoke, Lowered, Memory
from hashinfer.native.runtime import DESCRIBE

OK, BAD_ARGUMENT, BAD_INDEX, FAULT = range(4)
"""What NAME_run returns: done; an argument that cannot be; an index outside its table; a kernel that gave up."""

SCRATCH_ALIGNMENT = 64


def symbol(kernel: str) -> str:
    """The name of a kernel's entry while modules are linked; the optimiser folds most entries into the driver."""
    return f"hashinfer.{kernel}"


def driver_ir(model: Lowered, name: str, description: dict[str, object], pointer_bits: int, shared: bool) -> str:
    """A module that defines NAME_run, NAME_scratch_size and NAME_describe; hashinfer_describe too where `shared`."""
    return "\n".join(_Driver(model, name, pointer_bits).lines(json.dumps(description, sort_keys=True), shared)) + "\n"


class _Driver:
    def __init__(self, model: Lowered, name: str, pointer_bits: int) -> None:
        self.model = model
        self.name = name
        self.size = f"i{pointer_bits}"
        self.count = 0

    def lines(self, description: str, shared: bool) -> Iterator[str]:
        name, size = self.name, self.size
        for number, array in enumerate(self.model.constants):
            data = array.tobytes() or b"\0"
            yield f"@{name}.c{number} = internal constant {_bytes(data)}, align {64 if len(data) >= 64 else 16}"
        text = description.encode() + b"\0"
        yield f'@{name}.about = internal constant {_bytes(text)}, section ".rodata.{name}_describe"'
        for kernel in self.model.kernels():
            yield f'declare i32 @"{symbol(kernel.name)}"(ptr, ptr, ptr, {size}, {size})'
        yield f"declare void @llvm.memcpy.p0.p0.{size}(ptr, ptr, {size}, i1)"
        yield f'define ptr @{name}_describe() section ".text.{name}_describe" {{ ret ptr @{name}.about }}'
        if shared:
            yield f"@{DESCRIBE} = alias ptr (), ptr @{name}_describe"
        yield f"define {size} @{name}_scratch_size(i32 %batch) {{"
        yield "  %some = icmp sgt i32 %batch, 0"
        yield f"  %bytes = select i1 %some, {size} {self.model.scratch_bytes}, {size} 0"
        yield f"  ret {size} %bytes"
        yield "}"
        yield f"define i32 @{name}_run(ptr %inputs, ptr %outputs, i32 %batch, ptr %scratch) {{"
        yield from self._entry()
        yield from self._rows()
        for label, code in (("done", OK), ("bad_argument", BAD_ARGUMENT), ("bad_index", BAD_INDEX), ("fault", FAULT)):
            yield f"{label}:"
            yield f"  ret i32 {code}"
        yield "}"

    def _entry(self) -> Iterator[str]:
        model, size = self.model, self.size
        yield "entry:"
        yield "  %ret = alloca ptr"
        yield "  %error = alloca ptr"
        for k, operation in enumerate(model.operations):
            if isinstance(operation, Invoke):
                yield f"  %args{k} = alloca [{max(1, len(operation.args))} x {size}], align 8"
        yield f"  %wrong.batch = icmp {'slt' if model.batched else 'ne'} i32 %batch, 1"
        yield f"  %base = ptrtoint ptr %scratch to {size}"
        yield f"  %low = and {size} %base, 7"
        yield f"  %odd = icmp ne {size} %low, 0"
        yield f"  %none = icmp eq ptr %scratch, {'null' if model.scratch_bytes else f'inttoptr ({size} -1 to ptr)'}"
        yield "  %no.inputs = icmp eq ptr %inputs, null"
        yield "  %no.outputs = icmp eq ptr %outputs, null"
        yield "  %w0 = or i1 %wrong.batch, %odd"
        yield "  %w1 = or i1 %no.inputs, %no.outputs"
        yield "  %w2 = or i1 %none, %w1"
        yield "  %w3 = or i1 %w0, %w2"
        yield "  br i1 %w3, label %bad_argument, label %arrays"
        yield "arrays:"
        wrong = "false"
        for kind, ports in (("input", model.inputs), ("output", model.outputs)):
            for k, port in enumerate(ports):
                yield f"  %{kind}{k}.at = getelementptr ptr, ptr %{kind}s, i32 {k}"
                yield f"  %{kind}{k}.first = load ptr, ptr %{kind}{k}.at"
                yield f"  %{kind}{k}.base = ptrtoint ptr %{kind}{k}.first to {size}"
                if port.type.nbytes:
                    yield f"  %{kind}{k}.null = icmp eq ptr %{kind}{k}.first, null"
                    yield f"  %{kind}{k}.wrong = or i1 {wrong}, %{kind}{k}.null"
                    wrong = f"%{kind}{k}.wrong"
        yield f"  br i1 {wrong}, label %bad_argument, label %row"

    def _rows(self) -> Iterator[str]:
        model, size, row = self.model, self.size, "%r"
        yield "row:"
        yield "  %r = phi i32 [ 0, %arrays ], [ %r.next, %row.end ]"
        if size != "i32":
            row = "%r.wide"
            yield f"  {row} = zext i32 %r to {size}"
        for kind, ports in (("input", model.inputs), ("output", model.outputs)):
            for k, port in enumerate(ports):
                yield f"  %{kind}{k}.past = mul {size} {row}, {port.stride}"
                yield f"  %{kind}{k} = add {size} %{kind}{k}.base, %{kind}{k}.past"
        for k, operation in enumerate(model.operations):
            yield f"  br label %op{k}"
            yield f"op{k}:"
            if isinstance(operation, Invoke):
                yield from self._invoke(k, operation)
            elif isinstance(operation, CheckIds):
                yield from self._check(k, operation)
            else:
                yield from self._copy(operation)
        yield "  br label %row.end"
        yield "row.end:"
        yield "  %r.next = add i32 %r, 1"
        yield f"  %more = icmp slt i32 %r.next, {'%batch' if model.batched else '1'}"
        yield "  br i1 %more, label %row, label %done"

    def _fresh(self) -> str:
        self.count += 1
        return f"%t{self.count}"

    def _address(self, place: Memory) -> tuple[list[str], str]:
        """Lines that compute a place's address as a number, and its name."""
        if place.kind == "constant":
            base = self._fresh()
            lines = [f"  {base} = ptrtoint ptr @{self.name}.c{place.number} to {self.size}"]
        else:
            lines, base = [], "%base" if place.kind == "scratch" else f"%{place.kind}{place.number}"
        if not place.offset:
            return lines, base
        out = self._fresh()
        return [*lines, f"  {out} = add {self.size} {base}, {place.offset}"], out

    def _invoke(self, k: int, call: Invoke) -> Iterator[str]:
        for column, value in enumerate(call.args):
            text = str(value)
            if isinstance(value, Memory):
                lines, text = self._address(value)
                yield from lines
            cell = self._fresh()
            yield f"  {cell} = getelementptr {self.size}, ptr %args{k}, i32 {column}"
            yield f"  store {self.size} {text}, ptr {cell}"
        if call.tiles <= 0:
            return
        size = self.size
        lines, scratch = self._address(Memory("scratch", 0, self.model.scratch_start))
        yield from lines
        yield from self._loop_start(k)
        function = symbol(call.kernel.name)
        yield f'  %s{k} = call i32 @"{function}"(ptr %ret, ptr %error, ptr %args{k}, {size} %n{k}, {size} {scratch})'
        yield f"  %f{k} = icmp eq i32 %s{k}, 0"
        yield f"  br i1 %f{k}, label %loop{k}.end, label %fault"
        yield from self._loop_end(k, call.tiles)

    def _loop_start(self, k: int) -> Iterator[str]:
        yield f"  br label %loop{k}"
        yield f"loop{k}:"
        yield f"  %n{k} = phi {self.size} [ 0, %op{k} ], [ %next{k}, %loop{k}.end ]"

    def _loop_end(self, k: int, count: int) -> Iterator[str]:
        yield f"loop{k}.end:"
        yield f"  %next{k} = add {self.size} %n{k}, 1"
        yield f"  %more{k} = icmp slt {self.size} %next{k}, {count}"
        yield f"  br i1 %more{k}, label %loop{k}, label %after{k}"
        yield f"after{k}:"

    def _check(self, k: int, check: CheckIds) -> Iterator[str]:
        if not check.count:
            return
        kind, size = f"i{8 * check.item}", self.size
        lines, address = self._address(check.ids)
        yield from lines
        yield f"  %ids{k} = inttoptr {size} {address} to ptr"
        yield from self._loop_start(k)
        yield f"  %at{k} = getelementptr {kind}, ptr %ids{k}, {size} %n{k}"
        yield f"  %v{k} = load {kind}, ptr %at{k}"
        yield f"  %above{k} = icmp sge {kind} %v{k}, {check.rows}"
        yield f"  %below{k} = icmp slt {kind} %v{k}, {-check.rows}"
        yield f"  %out{k} = or i1 %above{k}, %below{k}"
        yield f"  br i1 %out{k}, label %bad_index, label %loop{k}.end"
        yield from self._loop_end(k, check.count)

    def _copy(self, copy: Copy) -> Iterator[str]:
        pointers, size = [], self.size
        for place in (copy.target, copy.source):
            lines, address = self._address(place)
            yield from lines
            pointers.append(self._fresh())
            yield f"  {pointers[-1]} = inttoptr {size} {address} to ptr"
        to, source = pointers
        yield f"  call void @llvm.memcpy.p0.p0.{size}(ptr {to}, ptr {source}, {size} {copy.size}, i1 false)"


def _bytes(data: bytes) -> str:
    plain = set(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,:;_-+/()[]{}<>=!?*")
    text = "".join(chr(b) if b in plain else f"\\{b:02X}" for b in data)
    return f'[{len(data)} x i8] c"{text}"'
