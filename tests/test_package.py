"""The package as it is installed: light to import, typed, with nothing compiled before it is used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

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


API = ("session.session", "session.options", "errors", "compress", "backend", "schemes")


def test_api_pages_are_made_of_the_docstrings(tmp_path: Path) -> None:
    pytest.importorskip("pdoc")
    modules = [f"hashinfer.{name}" for name in API]
    done = subprocess.run(
        [sys.executable, "-m", "pdoc", "-o", str(tmp_path), *modules], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "hashinfer" / "session" / "session.html").read_text()
    assert "memory_budget: bytes" in page


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of this package, by way of a source distribution."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")

    def python(*module: str | Path, cwd: Path) -> None:
        subprocess.run([sys.executable, "-m", *map(str, module)], cwd=cwd, check=True, capture_output=True)

    python("hatchling", "build", "-t", "sdist", "-d", folder, cwd=Path(__file__).parent.parent)
    (archive,) = folder.glob("*.tar.gz")
    python("tarfile", "-e", archive, folder, cwd=folder)
    python("hatchling", "build", "-t", "wheel", "-d", folder, cwd=folder / archive.name.removesuffix(".tar.gz"))
    (made,) = folder.glob("*.whl")
    return made


def test_a_wheel_of_the_source_distribution_runs_where_it_is_put(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
        names = archive.namelist()
    assert {"hashinfer/py.typed", "hashinfer/model/schemas.json.gz"} <= set(names)
    with zipfile.ZipFile(wheel) as archive:
        sizes = {i.filename: i.file_size for i in archive.infolist()}
    assert sum(size for name, size in sizes.items() if name.startswith("hashinfer/")) < 10**6
    assert sum(sizes.values()) < 2**20
    models = Path(__file__).parent.parent / "models"
    arguments = ["run", models / "mnist-dyadic-64x.hnet", models / "mnist-test-1k.npy"]
    done = subprocess.run(
        [sys.executable, "-m", "hashinfer", *map(str, arguments), "--json"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == 1000
