"""Compiled kernels as libraries in the cache: opened without a compiler, never trusted unseen, never needed."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hashinfer.kernels import cache, compiler, intrinsics, vectors
from hashinfer.kernels.jit import Deferred, entry, every_kernel, folder_of
from hashinfer.native import libraries
from tests import nets

COMPILERS = {"numba", "llvmlite"}

RUN = """
import logging, sys
import numpy as np
logging.basicConfig(level=logging.INFO, stream=sys.stderr)
import hashinfer
session = hashinfer.InferenceSession(sys.argv[1], threads=int(sys.argv[2]))
x = np.random.default_rng(0).standard_normal((int(sys.argv[3]), 40)).astype(np.float32)
np.save(sys.argv[4], session(x))
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""

linked = pytest.mark.skipif(compiler.linker() is None, reason="no C compiler is here, or the CPU is unknown")


class Engine:
    """Runs of one small model, each in a process of its own, with a cache of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.model = folder, folder / "m.hnet"
        self.cache = folder / "cache"
        self.model.write_bytes(nets.hashed_mlp([40, 24, 5], "dyadic", 4).SerializeToString())

    def run(self, threads: int = 1, rows: int = 3, **env: str) -> tuple[np.ndarray, set[str], str]:
        """(the outputs, top-level modules that were imported, what was logged)"""
        out = self.folder / "y.npy"
        done = subprocess.run(
            [sys.executable, "-c", RUN, str(self.model), str(threads), str(rows), str(out)],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"HASHINFER_CACHE_DIR": str(self.cache)} | env,
        )
        assert done.returncode == 0, done.stderr
        return np.load(out), set(done.stdout.split()), done.stderr

    def libraries(self) -> list[Path]:
        return sorted(self.cache.rglob("*.so"))

    def library(self, kernel: str) -> Path:
        (found,) = (path for path in self.libraries() if path.name.startswith(f"{kernel}-"))
        return found


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """A cache that has seen one run, for tests to look at; `engine` is what they may change."""
    made = Engine(tmp_path_factory.mktemp("warm"))
    _, imported, _ = made.run(3, rows=300)
    assert imported & COMPILERS == COMPILERS
    return made


@pytest.fixture
def engine(warm: Engine, tmp_path: Path) -> Engine:
    made = Engine(tmp_path)
    shutil.copytree(warm.cache, made.cache)
    return made


@linked
def test_the_second_process_needs_no_compiler(warm: Engine) -> None:
    assert warm.libraries()
    assert not list(warm.cache.rglob("*.nbi"))
    by_itself, _, _ = warm.run(3, rows=300, HASHINFER_CACHE_DIR="")
    for threads in (1, 3):
        found, imported, _ = warm.run(threads, rows=300)
        assert not imported & COMPILERS
        assert np.array_equal(found, by_itself)


@linked
def test_libraries_are_the_users_alone(warm: Engine) -> None:
    for path in warm.libraries():
        assert path.stat().st_mode & 0o077 == 0
        assert libraries._fault(path) is None
        assert path.name.rpartition("-")[0] in {k.name for k in every_kernel()}


def spoil(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif how == "one bit":
        path.write_bytes(data[:-100] + bytes([data[-100] ^ 1]) + data[-99:])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "writable by others":
        path.chmod(0o777)
    elif how == "a link":
        path.rename(path.with_suffix(".elsewhere"))
        path.symlink_to(path.with_suffix(".elsewhere"))
    else:
        path.unlink()
        path.mkdir()


@linked
@pytest.mark.parametrize("how", ["truncated", "one bit", "empty", "writable by others", "a link"])
def test_what_cannot_be_trusted_is_made_anew(engine: Engine, how: str) -> None:
    expected, _, _ = engine.run()
    names = [path.name.rpartition("-")[0] for path in engine.libraries()]
    spoil(engine.library("run_alone"), how)
    found, imported, said = engine.run()
    assert "thrown away" in said
    assert np.array_equal(found, expected)
    assert imported & COMPILERS
    assert [path.name.rpartition("-")[0] for path in engine.libraries()] == names
    assert not engine.run()[1] & COMPILERS


@linked
def test_a_folder_in_the_way_only_costs_time(engine: Engine) -> None:
    expected, _, _ = engine.run()
    spoil(engine.library("run_alone"), "a folder")
    for _ in range(2):
        assert np.array_equal(engine.run()[0], expected)


def test_without_a_linker_numba_keeps_the_code_and_one_line_says_so(tmp_path: Path) -> None:
    engine, env = Engine(tmp_path), {"HASHINFER_CC": "no-such-compiler"}
    expected, _, said = engine.run(**env)
    assert said.count("are kept by Numba") == 1
    assert not engine.libraries()
    assert list(engine.cache.rglob("*.nbi"))
    again, _, _ = engine.run(**env)
    assert np.array_equal(again, expected)


def test_every_kernel_has_fields_and_one_name() -> None:
    kernels = every_kernel()
    assert len({k.name for k in kernels}) == len(kernels) > 20
    assert {"run_alone", "run_shared", "serve", "stop"} <= {k.name for k in kernels if k.plain}


@entry("x")
def foreign(_args, _tile, _scratch):
    """A kernel whose source does not name the set."""


def test_only_kernels_of_the_package_are_kept(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HASHINFER_CACHE_DIR", str(tmp_path))
    assert all(folder_of(kernel) == cache.cache_folder() for kernel in every_kernel())
    assert foreign.address != 0
    assert not [file for file in tmp_path.rglob("*") if "foreign" in file.name]


def test_kernels_ask_for_the_intrinsics_there_are() -> None:
    folder = Path(vectors.__file__).parent
    imports = [
        node
        for path in folder.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == vectors.__name__
    ]
    names = {alias.name for node in imports for alias in node.names}
    asked = {name for name in names if isinstance(getattr(vectors, name), Deferred)}
    made = {
        name
        for name, value in vars(intrinsics).items()
        if not name.startswith("_") and type(value).__name__ == "_Intrinsic"
    }
    assert asked == made
    with pytest.raises(AttributeError, match="_load16"):
        _ = vectors._load16


def command(*arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "hashinfer", "cache", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, check=False, env=os.environ | env)


def test_the_command(tmp_path: Path) -> None:
    engine = Engine(tmp_path)
    env = {"HASHINFER_CACHE_DIR": str(engine.cache)}
    empty = json.loads(command("show", "--json", **env).stdout)
    assert empty == {"folder": str(engine.cache), "sets": []}
    warmed = command("warm", engine.model, "--batch", "3", **env)
    assert warmed.returncode == 0, warmed.stderr
    (found,) = json.loads(command("show", "--json", **env).stdout)["sets"]
    assert found["in_use"]
    assert "run_alone" in found["kernels"]
    assert found["bytes"] > 0
    _, imported, said = engine.run()
    assert "compiling" not in said
    if compiler.linker() is not None:
        assert not imported & COMPILERS
    (engine.cache / f"{cache.PREFIX}older").mkdir()
    assert "of other versions" in command(**env).stdout
    (engine.cache / "notes.txt").write_text("the user's own")
    cleared = command("clear", **env)
    assert cleared.returncode == 0
    assert "removed 2 sets" in cleared.stdout
    assert [p.name for p in engine.cache.iterdir()] == ["notes.txt"]


def test_the_command_without_a_cache() -> None:
    off = {"HASHINFER_CACHE_DIR": ""}
    assert "no cache" in command(**off).stdout
    refused = command("warm", **off)
    assert refused.returncode == 2
    assert refused.stderr.startswith("hashinfer: error: there is no cache")
    assert "removed 0 sets" in command("clear", **off).stdout
