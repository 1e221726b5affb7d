"""Linking a model's kernels with its driver, and compiling them for a target: LLVM's part of the work."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import llvmlite.binding as llvm

from hashinfer.errors import InputError
from hashinfer.kernels.compiler import MATHS, refuse_others
from hashinfer.kernels.jit import Kernel
from hashinfer.native.emit.plain import plain_ir
from hashinfer.native.emit.targets import Target


@dataclass(frozen=True, slots=True)
class Machine:
    """A target as LLVM knows it. machine: llvmlite's TargetMachine. bits: of a pointer."""

    target: Target
    machine: llvm.TargetMachine
    bits: int

    @classmethod
    def of(cls, target: Target) -> Machine:
        """Raises InputError where LLVM has no such target, or the CPU is not one of it."""
        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
        cpu, features, triple = target.cpu, target.features, target.triple
        if target.name == "host":
            triple = llvm.get_process_triple()
            cpu = cpu or llvm.get_host_cpu_name()
            features = features or llvm.get_host_cpu_features().flatten()
        try:
            found = llvm.Target.from_triple(triple)
        except RuntimeError as error:
            raise InputError(f"target {target.name!r}: {error}") from None
        machine = found.create_target_machine(
            cpu=cpu,
            features=features,
            opt=2 if target.small else 3,
            reloc="static" if target.small else "pic",
            codemodel="default",
            abiname=target.abi,
        )
        bits = 32 if re.search(r"(^|-)p:32:", str(machine.target_data)) else 64
        return cls(target, machine, bits)

    @property
    def triple(self) -> str:
        return str(self.machine.triple)

    def compile(
        self, driver: str, kernels: Sequence[Kernel], exported: Sequence[str], told: Callable[[str], None]
    ) -> bytes:
        """An object file of the driver and the kernels it calls, everything but `exported` internal to it."""
        module = self._parsed(driver)
        for kernel in kernels:
            told(kernel.name)
            module.link_in(self._parsed(plain_ir(kernel)))
        told("the whole model")
        for item in (*module.functions, *module.global_variables):
            if not item.is_declaration and item.name not in exported:
                item.linkage = "internal"
        if self.target.small:
            for function in module.functions:
                if not function.is_declaration:
                    function.add_function_attribute("optsize")
        tuning = llvm.create_pipeline_tuning_options(2 if self.target.small else 3)
        tuning.loop_vectorization = tuning.slp_vectorization = not self.target.small
        passes = llvm.create_pass_builder(self.machine, tuning)
        passes.getModulePassManager().run(module, passes)
        refuse_others(module, MATHS)
        return bytes(self.machine.emit_object(module))

    def _parsed(self, text: str) -> llvm.ModuleRef:
        module = llvm.parse_assembly(text)
        module.triple, module.data_layout = self.triple, str(self.machine.target_data)
        return module
