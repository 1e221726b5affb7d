"""The package as it is installed: light to import, typed, with nothing compiled before it is used."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import hashinfer

HEAVY = {"numba", "llvmlite", "onnx", "torch", "rich", "click", "numpy", "onnxruntime"}

COMPILED = """
import importlib, pkgutil, sys
import hashinfer.kernels, hashinfer.session.session
from hashinfer.kernels.jit import Deferred, Kernel
kernels, compiled = 0, []
for module in pkgutil.iter_modules(hashinfer.kernels.__path__):
    if module.name in ("compiler", "intrinsics"):
        continue
    for name, value in vars(importlib.import_module(f"hashinfer.kernels.{module.name}")).items():
        kernels += isinstance(value, Kernel)
        if isinstance(value, Kernel) and value._code is not None or isinstance(value, Deferred) and value._made:
            compiled.append(name)
print(kernels, compiled, "numba" in sys.modules)
"""


def modules_after(code: str) -> set[str]:
    program = f"{code}\nimport sys; print(*sorted(sys.modules))"
    return set(
        subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    )


def test_import_is_light() -> None:
    assert not HEAVY & modules_after("import hashinfer")
    assert not (HEAVY - {"numpy"}) & modules_after("import hashinfer; hashinfer.SessionOptions, hashinfer.ModelError")


def test_the_engine_needs_no_training_or_terminal_packages() -> None:
    assert not {"torch", "rich", "click", "onnxruntime"} & modules_after("import hashinfer; hashinfer.InferenceSession")


def test_nothing_compiles_at_import() -> None:
    out = subprocess.run([sys.executable, "-c", COMPILED], check=True, capture_output=True, text=True).stdout
    count, _, compiled = out.partition(" ")
    assert int(count) > 20
    assert compiled.strip() == "[] False"


def test_every_public_name_is_there() -> None:
    for name in hashinfer.__all__:
        assert getattr(hashinfer, name) is not None
    assert set(hashinfer.__all__) <= set(dir(hashinfer))


def test_version_and_typing_marker() -> None:
    pyproject = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    assert hashinfer.__version__ == pyproject["project"]["version"] == metadata.version("hashinfer")
    assert (Path(hashinfer.__file__).parent / "py.typed").exists()
