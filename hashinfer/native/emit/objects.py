"""Linking a model's kernels with its driver, and compiling them for a target: LLVM's part of the work."""

from collections.abc import Callable, Iterator, Sequence

import llvmlite.binding as llvm

from hashinfer.kernels.compiler import MATHS, make_internal, refuse_others
from hashinfer.kernels.jit import Kernel
from hashinfer.native.emit.machine import Machine
from hashinfer.native.emit.narrow import narrow_ir
from hashinfer.native.emit.plain import plain_ir


def compile_object(
    machine: Machine, driver: str, kernels: Sequence[Kernel], exported: Sequence[str], told: Callable[[str], None]
) -> bytes:
    """An object file of the driver and the kernels it calls, everything but `exported` internal to it."""
    module = _parsed(machine, driver)
    for text in _kernels(machine, kernels, told):
        module.link_in(_parsed(machine, text))
    told("the whole model")
    make_internal(module, exported)
    if machine.target.small:
        for function in module.functions:
            if not function.is_declaration:
                function.add_function_attribute("optsize")
    tuning = llvm.create_pipeline_tuning_options(2 if machine.target.small else 3)
    tuning.loop_vectorization = tuning.slp_vectorization = not machine.target.small
    passes = llvm.create_pass_builder(machine.machine, tuning)
    passes.getModulePassManager().run(module, passes)
    refuse_others(module, MATHS)
    return bytes(machine.machine.emit_object(module))


def _kernels(machine: Machine, kernels: Sequence[Kernel], told: Callable[[str], None]) -> Iterator[str]:
    if machine.bits == 32:
        told("the kernels, for 32-bit addresses")
        yield from (text for _, text in narrow_ir([kernel.name for kernel in kernels]))
        return
    for kernel in kernels:
        told(kernel.name)
        yield plain_ir(kernel)


def _parsed(machine: Machine, text: str) -> llvm.ModuleRef:
    module = llvm.parse_assembly(text)
    module.triple, module.data_layout = machine.triple, str(machine.machine.target_data)
    return module
