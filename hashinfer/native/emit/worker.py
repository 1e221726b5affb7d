"""The process that compiles: `python -m hashinfer.native.emit.worker`, a job as JSON on its standard input.

Numba's optimiser is off in the whole process, which is why it is one of its own. Writes model.o and model.h into the
job's folder and says what it does, one JSON document a line.
"""

import json
import sys
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any


def main() -> None:
    """Do the job on standard input; exit code 2 where it is refused, with the error as the last line."""
    from hashinfer.errors import HashinferError

    try:
        _say(done=_build(json.load(sys.stdin)))
    except KeyboardInterrupt:
        sys.exit(130)
    except (HashinferError, OSError, MemoryError) as error:
        _say(error=type(error).__name__, text=str(error))
        sys.exit(2)


def _say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def _build(job: dict[str, Any]) -> dict[str, Any]:
    from hashinfer.kernels import jit
    from hashinfer.model.read import read_model
    from hashinfer.native.emit.driver import driver_ir
    from hashinfer.native.emit.header import header
    from hashinfer.native.emit.lower import lower
    from hashinfer.native.emit.machine import Machine
    from hashinfer.native.emit.objects import compile_object
    from hashinfer.native.emit.targets import Target
    from hashinfer.native.runtime import DESCRIBE, FORMAT
    from hashinfer.plan.limits import physical_memory

    jit.compile_listeners.append(lambda name: _say(step=name))
    version = str(import_module("hashinfer").__version__)
    name, folder = job["name"], Path(job["folder"])
    machine = Machine.of(Target(**job["target"]))
    model = read_model(job["model"])
    shapes = {name: tuple(shape) for name, shape in job["shapes"].items()}
    lowered = lower(model, shapes, physical_memory(), machine.bits)
    about = {
        "format": FORMAT,
        "version": version,
        "name": name,
        "target": machine.triple,
        "batched": lowered.batched,
        "scratch": lowered.scratch_bytes,
        "weights": sum(c.nbytes for c in lowered.constants),
        "inputs": [_port(p) for p in lowered.inputs],
        "outputs": [_port(p) for p in lowered.outputs],
        "meta": {
            "producer_name": model.producer,
            "graph_name": model.graph.name,
            "domain": model.domain,
            "description": model.description,
            "graph_description": model.graph_description,
            "version": model.version,
            "custom_metadata_map": dict(model.metadata),
        },
    }
    exported = [f"{name}_{what}" for what in ("run", "scratch_size", "describe")] + [DESCRIBE]
    driver = driver_ir(lowered, name, about, machine.bits, bool(job["shared"]))
    data = compile_object(machine, driver, lowered.kernels(), exported, lambda step: _say(step=step))
    (folder / "model.o").write_bytes(data)
    (folder / "model.h").write_text(header(lowered, name, version, job["source"]))
    return about | {"kernels": [k.name for k in lowered.kernels()], "target_machine": asdict(machine.target)}


def _port(port: Any) -> dict[str, Any]:
    return {
        "name": port.name,
        "type": port.onnx_type,
        "dtype": port.type.dtype.name,
        "shape": list(port.shape),
        "grows": port.grows,
        "rows": port.type.shape[0] if port.grows else 0,
    }


if __name__ == "__main__":
    main()
