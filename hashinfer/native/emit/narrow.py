"""Kernels for targets with 32-bit addresses: indices, and all that is computed of them, in 32 bits.

Numba takes an index to be as wide as an address of its own process, so they are emitted in one that says otherwise:
`python -m hashinfer.native.emit.narrow NAME ...` prints a JSON array, a kernel's name and its IR, a line.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import SourceFileLoader
from importlib.metadata import distribution
from types import ModuleType

from hashinfer.errors import HashinferError


def narrow_ir(names: Sequence[str]) -> list[tuple[str, str]]:
    """plain_ir of kernels, as it is for a 32-bit machine, by name. Raises HashinferError where there is none."""
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-P", "-m", __spec__.name, *names], capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["nothing"]
        raise HashinferError(f"the process that emits kernels ended with code {done.returncode}, saying: {said[-1]}")
    return [(name, text) for name, text in map(json.loads, done.stdout.splitlines())]


def use_32_bits() -> None:
    """Make Numba's intp an int32 in this process. What it then compiles is for other machines, and is not run here.

    Numba looks once how wide an address is, in a module that is loaded here before the others can read it. Raises
    HashinferError where Numba has been imported before, or does not work so.
    """
    if "numba" in sys.modules:
        raise HashinferError("kernels for 32-bit targets are emitted in a process of their own")
    name = "numba.core.config"
    config = sys.modules[name] = ModuleType(name)
    path = distribution("numba").locate_file("numba/core/config.py")
    SourceFileLoader(name, str(path)).exec_module(config)
    vars(config).update(MACHINE_BITS=32, IS_32BITS=True)
    vars(import_module("numba.core"))["config"] = config
    numba = import_module("numba")
    if numba.types.intp is not numba.types.int32:
        raise HashinferError(f"numba {numba.__version__} does not compile for 32-bit targets")


def main() -> None:
    """Print the IR of the kernels named on the command line; exit code 2, and why, where that fails."""
    try:
        use_32_bits()
        from hashinfer.kernels.jit import every_kernel
        from hashinfer.native.emit.plain import plain_ir

        kernels = {kernel.name: kernel for kernel in every_kernel()}
        for name in sys.argv[1:]:
            print(json.dumps([name, plain_ir(kernels[name])]), flush=True)
    except KeyboardInterrupt:
        sys.exit(130)
    except (HashinferError, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
