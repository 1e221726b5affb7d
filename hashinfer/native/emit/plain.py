"""A kernel as plain LLVM IR: unoptimised, without Python's wrapper, fit for any target. Kept in the user's cache."""

import re
import zlib

import llvmlite.binding as llvm
import numba

from hashinfer.errors import HashinferError
from hashinfer.files import atomic_write
from hashinfer.kernels.cache import cache_folder
from hashinfer.kernels.compiler import entry_ir
from hashinfer.kernels.jit import Kernel
from hashinfer.native.emit.driver import symbol

LARGEST_IR = 2**27


def plain_ir(kernel: Kernel) -> str:
    """The kernel's IR, its entry named by driver.symbol, everything else internal or linkonce.

    Only in a process that began with NUMBA_OPT=0: optimised IR holds what one CPU alone can do. Its indices are Numba's
    intp (hashinfer.native.emit.narrow).
    """
    if int(numba.config.OPT):
        raise HashinferError("kernels are emitted in a process of their own, with NUMBA_OPT=0")
    folder = cache_folder()
    path = None if folder is None else folder / f"{kernel.name}.{numba.types.intp.bitwidth}.ll.z"
    if path is not None and path.exists():
        try:
            return zlib.decompressobj().decompress(path.read_bytes(), LARGEST_IR).decode()
        except (OSError, zlib.error, UnicodeDecodeError):
            path.unlink(missing_ok=True)
    text = _reduced(kernel)
    if path is not None:
        with atomic_write(path) as file:
            file.write(zlib.compress(text.encode()))
    return text


def _reduced(kernel: Kernel) -> str:
    text, name = entry_ir(kernel)
    text = re.sub(r"^target (?:triple|datalayout) = .*$", "", text, flags=re.MULTILINE)
    text = text.replace(f"@{name}(", f'@"{symbol(kernel.name)}"(')
    module = llvm.parse_assembly(text)
    for function in module.functions:
        if function.name.startswith("cfunc."):
            function.linkage = "internal"
    for variable in module.global_variables:
        if not variable.is_declaration:
            variable.linkage = "internal"
    passes = llvm.create_new_module_pass_manager()
    passes.add_global_dead_code_eliminate_pass()
    machine = llvm.Target.from_default_triple().create_target_machine()
    passes.run(module, llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(0)))
    return str(module)
