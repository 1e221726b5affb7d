"""The error function, which NumPy lacks."""

from __future__ import annotations

import numpy as np

from hashinfer.ops.base import Array

_SINGLE_END = 3.92
_SINGLE_P = (
    2.0500695063361478e-06,
    0.0002848827488787945,
    0.0037656548295645926,
    0.05274884058039972,
    0.19040746929739866,
    1.1283791461365669,
)
_SINGLE_Q = (
    3.809153020723079e-05,
    0.0011625430667582294,
    0.014969294303105604,
    0.11410951223555828,
    0.5020769669602623,
    1.0,
)

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
    """x P(x^2) / Q(x^2), computed in float64.

    P and Q, of degree 5 each, were fitted by least squares with Lawson's weights, on 4000 Chebyshev points of
    [0, 3.92^2], to the smallest relative error: 1.9e-8. From 3.92 on erf is 1 in float32.
    """
    clipped = np.clip(x.astype(np.float64), -_SINGLE_END, _SINGLE_END)
    square = clipped * clipped
    return (clipped * _horner(_SINGLE_P, square) / _horner(_SINGLE_Q, square)).astype(np.float32)


def _double(x: Array) -> Array:
    """W. J. Cody, Rational Chebyshev approximations for the error function, Math. Comp. 23 (1969).

    The second of his three intervals is used to 6, where erf is 1 in float64: there erfc no longer matters.
    """
    size = np.minimum(np.abs(x), _FAR_END)
    square = size * size
    near = x * (_horner(_NEAR_P, square) / _horner(_NEAR_Q, square))
    far = 1 - np.exp(-square) * (_horner(_FAR_P, size) / _horner(_FAR_Q, size))
    return np.where(size <= _NEAR_END, near, np.copysign(far, x))
