"""All Numba plumbing: how functions and entries are compiled, and what Numba keeps where no library can be made."""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numba
from numba import cfunc, njit, types
from numba.core.registry import cpu_target

from hashinfer.errors import HashinferError
from hashinfer.kernels import isa, jit
from hashinfer.kernels.cache import exclusive
from hashinfer.kernels.isa import cpu_identity
from hashinfer.kernels.jit import Kernel
from hashinfer.native import libraries
from hashinfer.native.link import host_linkers

if isa.NARROWED:
    # Numba reads these when it compiles for the first time in a process.
    numba.config.CPU_NAME, numba.config.CPU_FEATURES = isa.MACHINES[isa.ISA], ""

log = logging.getLogger("hashinfer")

OPTIONS: dict[str, Any] = {"fastmath": {"reassoc", "nsz", "contract"}, "error_model": "numpy", "_nrt": False}
"""Sums may be reordered and products fused; NaN and Inf stay. Kernels own no memory: with Numba's runtime on, every
array that is handed to a function costs two calls that count references."""

_MATHS = """
    memcpy memset memmove expf exp tanhf tanh erff erf erfcf erfc logf log powf sqrtf sqrt floorf ceilf rintf fmaf
"""
MATHS = frozenset(_MATHS.split())
"""What compiled code may leave to the C library and libm."""
SYSTEM = frozenset(("syscall", "sched_yield", "sched_getcpu", "sched_getaffinity", "sched_setaffinity"))
"""What the driver of a process calls beside them."""


def _ready() -> None:
    import hashinfer.kernels.intrinsics  # noqa: F401, PLC0415

    while jit.at_first_compile:
        jit.at_first_compile.pop()()


def device(function: Callable[..., Any]) -> Any:
    """Numba's dispatcher of a device function."""
    _ready()
    return njit(function, nogil=True, **OPTIONS)


def inlined(function: Callable[..., Any]) -> Any:
    """The same, always inlined."""
    _ready()
    return njit(function, nogil=True, forceinline=True, **OPTIONS)


def external(name: str, returns: str, takes: tuple[str, ...]) -> Any:
    """A function of the C library."""
    return types.ExternalFunction(name, getattr(types, returns)(*(getattr(types, kind) for kind in takes)))


def type_of(made: Any) -> Any:
    """Numba's type of a global that a kernel names."""
    cpu_target.typing_context.refresh()
    return cpu_target.typing_context.resolve_value_type(made)


def _signature(kernel: Kernel) -> Any:
    if kernel.plain:
        return types.void(*[types.intp] * len(kernel.fields))
    return types.void(types.CPointer(types.intp), types.intp, types.intp)


def compile_kernel(kernel: Kernel) -> Any:
    """Compile a kernel that is in no cache, and keep it: as a library, or, where none can be made, as Numba does.

    What comes back has its address; without a cache folder the process compiles for itself.
    """
    _ready()
    folder = jit.folder_of(kernel)
    if folder is None:
        _tell(kernel)
        return cfunc(_signature(kernel), **OPTIONS)(kernel.function)
    with exclusive(folder):
        found = libraries.open_kept(folder, kernel.name)
        if found is not None:
            return found
        # Numba has what no library could be opened of before, as on a file system that runs no programs.
        if not _numba_has(kernel.function, folder):
            _tell(kernel)
            command = linker()
            if command is not None:
                try:
                    return libraries.keep(folder, kernel.name, host_object(kernel), command)
                except (HashinferError, OSError) as error:
                    _give_up(error)
        return _cached_by_numba(kernel, folder)


_given_up: list[str] = []


def _give_up(reason: object) -> None:
    """No library is made by this process any more; says so once."""
    if not _given_up:
        log.info("compiled kernels are kept by Numba, not as libraries: %s", reason)
    _given_up.append(str(reason))


def linker() -> list[str] | None:
    """The command that makes libraries; None, and a log line, where there is none or this CPU cannot be told."""
    if _given_up:
        return None
    commands = host_linkers()
    if commands and cpu_identity():
        return commands[0]
    _give_up("this CPU is unknown" if commands else "no C compiler is here")
    return None


def _tell(kernel: Kernel) -> None:
    for listener in list(jit.compile_listeners):
        listener(kernel.name)


def entry_ir(kernel: Kernel) -> tuple[str, str]:
    """LLVM IR of a kernel and of all it calls, as Numba's settings make it, and the name of its `define i32`."""
    _ready()
    text = str(cfunc(_signature(kernel), **OPTIONS)(kernel.function)._library.get_llvm_str())
    found = re.search(r"^define [^@]*i32 @([\w.$]+)\(", text, re.MULTILINE)
    if found is None:
        raise HashinferError(f"kernel {kernel.name} has no entry of the expected form")
    # What would be raised is never looked at: a kernel's status is.
    return re.sub(r"^ *store ptr @\.const\.picklebuf\..*$", "", text, flags=re.MULTILINE), found[1]


def host_object(kernel: Kernel) -> bytes:
    """An object file of a kernel for this CPU, position independent; it exports a C function, `libraries.symbol`."""
    text, name = entry_ir(kernel)
    kinds = ["i64"] * len(kernel.fields) if kernel.plain else ["ptr", "i64", "i64"]
    takes = ", ".join(f"{kind} %a{k}" for k, kind in enumerate(kinds))
    exported = libraries.symbol(kernel.name)
    text += f"""
define void @{exported}({takes}) {{
  %value = alloca ptr
  %error = alloca ptr
  call i32 @{name}(ptr %value, ptr %error, {takes}) alwaysinline
  ret void
}}
"""
    module = llvm.parse_assembly(text)
    make_internal(module, [exported])
    triple, cpu, features = cpu_target.target_context.codegen().magic_tuple()
    machine = llvm.Target.from_triple(triple).create_target_machine(
        cpu=cpu, features=features, opt=3, reloc="pic", codemodel="default"
    )
    passes = llvm.create_new_module_pass_manager()
    passes.add_always_inliner_pass()
    passes.add_global_dead_code_eliminate_pass()
    passes.run(module, llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(0)))
    refuse_others(module, MATHS | SYSTEM)
    return bytes(machine.emit_object(module))


def make_internal(module: Any, exported: Sequence[str]) -> None:
    """Nothing that a module defines is seen from outside but `exported`."""
    for item in (*module.functions, *module.global_variables):
        if not item.is_declaration and item.name not in exported:
            item.linkage = "internal"


def refuse_others(module: Any, known: frozenset[str]) -> None:
    """Raise HashinferError where a module needs a function that is not among those known."""
    for item in (*module.functions, *module.global_variables):
        if item.is_declaration and not item.name.startswith("llvm.") and item.name not in known:
            raise HashinferError(f"compiled code would need {item.name}, which is outside the native subset")


def _cached_by_numba(kernel: Kernel, folder: Path) -> Any:
    function, signature = kernel.function, _signature(kernel)
    with _numba_cache(folder):
        try:
            return cfunc(signature, cache=True, **OPTIONS)(function)
        except Exception as error:
            # A cache entry may be truncated, corrupt or of another build: anything may come out of unpickling it.
            log.warning("the cache entry of %s is thrown away: %s", kernel.name, error)
            _drop(function)
        try:
            return cfunc(signature, cache=True, **OPTIONS)(function)
        except Exception as error:
            log.warning("compiled code of %s could not be kept: %s", kernel.name, error)
            return cfunc(signature, **OPTIONS)(function)


@contextmanager
def _numba_cache(folder: Path) -> Iterator[None]:
    """Points Numba's cache at our own folder for the length of one compilation."""
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(folder)
    try:
        yield
    finally:
        numba.config.CACHE_DIR = before


def _index(function: Callable[..., Any]) -> Path:
    from numba.core.caching import FunctionCache  # noqa: PLC0415

    return Path(FunctionCache(function)._cache_file._index_path)


def _drop(function: Callable[..., Any]) -> None:
    """Remove Numba's files of one function."""
    with suppress(AttributeError, RuntimeError, OSError):
        index = _index(function)
        for path in index.parent.glob(f"{index.stem}*"):
            path.unlink()


def _numba_has(function: Callable[..., Any], folder: Path) -> bool:
    """Whether Numba has kept a function already."""
    with suppress(AttributeError, RuntimeError, OSError), _numba_cache(folder):
        return _index(function).exists()
    return False
