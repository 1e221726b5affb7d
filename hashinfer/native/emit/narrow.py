"""Kernels for targets with 32-bit addresses: indices, and all that is computed of them, in 32 bits.

Numba takes an index to be as wide as an address of its own process, so they are emitted in one that says otherwise:
`python -m hashinfer.native.emit.narrow NAME ...` prints a JSON array, a kernel's name and its IR, a line.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

from hashinfer.errors import HashinferError


def narrow_ir(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """plain_ir of kernels, as it is for a 32-bit machine, by name. Raises HashinferError where there is none."""
    command = [sys.executable, "-P", "-m", __spec__.name, *names]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:  # noqa: S603
        assert process.stdout is not None and process.stderr is not None  # noqa: S101, PT018
        for line in process.stdout:
            name, text = json.loads(line)
            yield name, text
        said = process.stderr.read().strip().splitlines() or ["nothing"]
    if process.returncode:
        raise HashinferError(f"the process that emits kernels ended with code {process.returncode}, saying: {said[-1]}")


def use_32_bits() -> None:
    """Make Numba's intp an int32 in this process. What it then compiles is for other machines, and is not run here.

    Numba looks once how wide an address is, in a module that is loaded here before the others can read it. Raises
    HashinferError where Numba has been imported before, or does not work so.
    """
    if "numba" in sys.modules:
        raise HashinferError("kernels for 32-bit targets are emitted in a process of their own")
    name, found = "numba.core.config", find_spec("numba")
    assert found is not None and found.origin is not None  # noqa: S101, PT018
    spec = spec_from_file_location(name, Path(found.origin).parent / "core" / "config.py")
    assert spec is not None and spec.loader is not None  # noqa: S101, PT018
    config = sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(config)
    vars(config).update(MACHINE_BITS=32, IS_32BITS=True)
    vars(import_module("numba.core"))["config"] = config
    numba = import_module("numba")
    if numba.types.intp is not numba.types.int32:
        raise HashinferError(f"numba {numba.__version__} does not compile for 32-bit targets")


def main() -> None:
    """Print the IR of the kernels named on the command line; exit code 2, and why, where that fails."""
    try:
        use_32_bits()
        from hashinfer.kernels.jit import every_kernel  # noqa: PLC0415
        from hashinfer.native.emit.plain import plain_ir  # noqa: PLC0415

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
