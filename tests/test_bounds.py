"""The kernels' product tables once more, in a process whose compiled code checks every array index."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import unmeasured

HERE = Path(__file__).parent
pytestmark = pytest.mark.unmeasured

SCRIPT = """
import sys
import numpy as np
import pytest
from hashinfer.kernels.hadamard import hadamard

try:
    hadamard(np.ones(1, np.float32), 2, 1)
except IndexError:
    chosen = "test_product[ or test_convolution[ or test_lookup[ or test_expand["
    chosen = f"float32 and ({chosen}) or int8_products".replace("[", "")
    sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-k", chosen, *sys.argv[1:]]))
sys.exit("indices are not checked")
"""


def test_kernels_stay_inside_their_arrays():
    """An IndexError inside an entry cannot propagate; Numba reports it as unraisable, and pytest fails for that."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *(str(HERE / f"test_{name}.py") for name in ("kernels", "small", "bytewise"))],
        capture_output=True,
        text=True,
        check=False,
        cwd=HERE.parent,
        env=unmeasured(NUMBA_BOUNDSCHECK="1"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "IndexError" not in done.stdout + done.stderr
    assert " passed" in done.stdout
