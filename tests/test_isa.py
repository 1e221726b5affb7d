"""The kernels once more with narrower vectors, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import llvmlite.binding as llvm
import pytest

from hashinfer.kernels import isa
from tests.processes import unmeasured

HERE = Path(__file__).parent
pytestmark = pytest.mark.unmeasured

SCRIPT = """
import sys
import pytest
from hashinfer.kernels import isa

assert isa.ISA == sys.argv[1], isa.ISA
chosen = "product or hadamard or convolution or lookup or spectrum or chunks or test_vectors"
options = ["-q", "-x", "-p", "no:cacheprovider", "-k", f"not int8 and not float16 and ({chosen})"]
code = pytest.main([*options, *sys.argv[2:]])
from hashinfer.kernels import dyadic, dyadic_small

kernel = dyadic_small.dyadic_small_f32 if isa.SCALAR else dyadic.dyadic_row_f32
kernel.address
text = kernel._code._library.get_asm_str()
print("registers", *[name for name in ("zmm", "ymm", "xmm") if "%" + name in text])
sys.exit(code)
"""


def run(name: str) -> subprocess.CompletedProcess[str]:
    tests = [str(HERE / f"test_{name}.py") for name in ("kernels", "vectors", "bytewise")]
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, name, *tests],
        capture_output=True,
        text=True,
        check=False,
        cwd=HERE.parent,
        env=unmeasured(HASHINFER_ISA=name, HASHINFER_CACHE_DIR=""),
    )


@pytest.mark.parametrize("name", [isa.AVX2, isa.PORTABLE, isa.SMALL, isa.INTEGER])
def test_narrower_vectors_compute_the_same(name):
    if isa.NAMES.index(name) <= isa.NAMES.index(isa.ISA):
        pytest.skip(f"this run's kernels are {isa.ISA} already, or the CPU has no {name}")
    done = run(name)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    if "x86_64" in llvm.get_process_triple():
        used = done.stdout.split("registers")[1].split()
        assert used[0] == {"avx2": "ymm", "portable": "xmm", "small": "xmm", "integer": "xmm"}[name]


@pytest.mark.parametrize("name", ["avx1024", "AVX2"])
def test_an_unknown_name_is_refused(name):
    done = subprocess.run(
        [sys.executable, "-m", "hashinfer", "run", "models/mnist-dyadic-64x.hnet", "models/mnist-test-1k.npy"],
        capture_output=True,
        text=True,
        check=False,
        cwd=HERE.parent,
        env=os.environ | {"HASHINFER_ISA": name},
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"HASHINFER_ISA is '{name}'" in done.stderr


@pytest.mark.parametrize(
    ("vendor", "state", "gathers"),
    [
        ("GenuineIntel", "Not affected\n", True),
        ("GenuineIntel", "Mitigation: Microcode\n", False),
        ("GenuineIntel", None, False),
        ("GenuineIntel", Path, False),
        ("AuthenticAMD", "Not affected\n", False),
    ],
)
def test_gathers_are_for_cpus_where_nothing_slows_them(tmp_path, monkeypatch, vendor, state, gathers):
    path = tmp_path / "state"
    if state is Path:
        path.mkdir()  # Hardened containers let nobody read what is there.
    elif state is not None:
        path.write_text(state)
    monkeypatch.setattr(isa, "_GATHER_STATE", path)
    monkeypatch.setattr(isa, "_processor", lambda: {"vendor_id": vendor})
    monkeypatch.setattr(isa, "ISA", isa.AVX512)
    monkeypatch.delenv("NUMBA_CPU_NAME", raising=False)
    assert isa._gathers() is gathers
    monkeypatch.setenv("NUMBA_CPU_NAME", "skylake-avx512")
    assert not isa._gathers()
