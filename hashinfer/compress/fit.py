"""The least-squares weight vector of a dense matrix: the mean over each bucket, signs applied."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from hashinfer.schemes import Scheme


def least_squares(matrix: npt.NDArray[Any], scheme: Scheme) -> tuple[npt.NDArray[np.float32], float]:
    """(w, error): the w [buckets] that brings the virtual matrix closest to `matrix` [rows, cols], and how close.

    error: ||W - matrix|| / ||matrix|| in the Frobenius norm, 0 for a matrix of zeros. Buckets of no cell get 0.
    Works by blocks of rows, in float64.
    """
    sums, counts, square = np.zeros(scheme.buckets), np.zeros(scheme.buckets, np.int64), 0.0
    for rows, bucket, sign in scheme.blocks():
        block = matrix[rows].astype(np.float64)
        flat = bucket.reshape(-1)
        sums += np.bincount(flat, (block * sign).reshape(-1), scheme.buckets)
        counts += np.bincount(flat, minlength=scheme.buckets)
        square += float(np.square(block).sum())
    w = sums / np.maximum(counts, 1)
    # The fit is an orthogonal projection: what it misses is what it does not hold.
    missed = max(0.0, square - float(w @ sums))
    return w.astype(np.float32), math.sqrt(missed / square) if square > 0 else 0.0
