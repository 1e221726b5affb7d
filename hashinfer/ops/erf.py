"""The error function, which NumPy lacks."""

from __future__ import annotations

import numpy as np

from hashinfer.kernels.maths import ERF_END, ERF_P, ERF_Q
from hashinfer.ops.base import Array

_NEAR_END = 0.46875
_NEAR_P = (
    1.85777706184603153e-1,
    3.16112374387056560e00,
    1.13864154151050156e02,
    3.77485237685302021e02,
    3.20937758913846947e03,
)
_NEAR_Q = (1.0, 2.36012909523441209e01, 2.44024637934444173e02, 1.28261652607737228e03, 2.84423683343917062e03)
_FAR_END = 6.0
_FAR_P = (
    2.15311535474403846e-8,
    5.64188496988670089e-1,
    8.88314979438837594e0,
    6.61191906371416295e01,
    2.98635138197400131e02,
    8.81952221241769090e02,
    1.71204761263407058e03,
    2.05107837782607147e03,
    1.23033935479799725e03,
)
_FAR_Q = (
    1.0,
    1.57449261107098347e01,
    1.17693950891312499e02,
    5.37181101862009858e02,
    1.62138957456669019e03,
    3.29079923573345963e03,
    4.36261909014324716e03,
    3.43936767414372164e03,
    1.23033935480374942e03,
)


def erf(x: Array) -> Array:
    """erf(x): within 1 ulp for float32 x, within 4 ulp for float64 x. Not for arrays that are large: use blocks."""
    return _single(x) if x.dtype == np.float32 else _double(x)


def _horner(coefficients: tuple[float, ...], x: Array) -> Array:
    total = coefficients[0] * x + coefficients[1]
    for coefficient in coefficients[2:]:
        total *= x
        total += coefficient
    return total


def _single(x: Array) -> Array:
    """x P(x^2) / Q(x^2) of hashinfer.kernels.maths, computed in float64."""
    clipped = np.clip(x.astype(np.float64), -ERF_END, ERF_END)
    square = clipped * clipped
    return (clipped * _horner(ERF_P, square) / _horner(ERF_Q, square)).astype(np.float32)


def _double(x: Array) -> Array:
    """W. J. Cody, Rational Chebyshev approximations for the error function, Math. Comp. 23 (1969).

    The second of his three intervals is used to 6, where erf is 1 in float64: there erfc no longer matters.
    """
    size = np.minimum(np.abs(x), _FAR_END)
    square = size * size
    near = x * (_horner(_NEAR_P, square) / _horner(_NEAR_Q, square))
    far = 1 - np.exp(-square) * (_horner(_FAR_P, size) / _horner(_FAR_Q, size))
    return np.where(size <= _NEAR_END, near, np.copysign(far, x))
