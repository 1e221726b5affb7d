"""A target as LLVM knows it."""

from __future__ import annotations

import re
from dataclasses import dataclass

import llvmlite.binding as llvm

from hashinfer.errors import InputError
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
