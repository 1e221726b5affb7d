"""exp, the logistic function, tanh, erf and GELU of float32, so that loops over them become vectors.

In float64 without branches, rounded once: within 1 ulp where no other bound is stated. NaN stays NaN. Where there are
no vectors, and float64 is emulated, the C library is asked instead.
"""

import math
from typing import Any

import numpy as np

from hashinfer.kernels.isa import SCALAR
from hashinfer.kernels.jit import inlined

_LOG2_E, _LN_2 = 1 / math.log(2), math.log(2)
_C2, _C3, _C4, _C5, _C6, _C7, _C8 = (1 / math.factorial(k) for k in range(2, 9))
_END = 200.0
"""Beyond it exp of a float32 is 0 or infinite."""
_LINEAR = 2.0**-12
"""Below it tanh(x) is x in float32."""

ERF_END = 3.92
ERF_P = (
    2.0500695063361478e-06,
    0.0002848827488787945,
    0.0037656548295645926,
    0.05274884058039972,
    0.19040746929739866,
    1.1283791461365669,
)
ERF_Q = (
    3.809153020723079e-05,
    0.0011625430667582294,
    0.014969294303105604,
    0.11410951223555828,
    0.5020769669602623,
    1.0,
)
"""erf(x) = x P(x^2) / Q(x^2), highest powers first.

Fitted by least squares with Lawson's weights, on 4000 Chebyshev points of [0, 3.92^2], to the smallest relative error:
1.9e-8. From ERF_END on erf is 1 in float32."""
_P0, _P1, _P2, _P3, _P4, _P5 = ERF_P
_Q0, _Q1, _Q2, _Q3, _Q4, _Q5 = ERF_Q


@inlined
def _wide_exp(x: Any) -> Any:
    """exp of a float64 in [-_END, _END], within 2e-10 of itself: 2^n by its bits, the rest by Taylor's series."""
    # Truncation is towards zero: what is truncated must be positive.
    n = np.int32(x * _LOG2_E + 1024.5) - np.int32(1024)
    r = x - n * _LN_2
    s = ((_C8 * r + _C7) * r + _C6) * r + _C5
    s = (((s * r + _C4) * r + _C3) * r + _C2) * r
    return (s * r + r + 1.0) * np.int64((np.int64(n) + 1023) << 52).view(np.float64)


@inlined
def _clipped(x: Any) -> Any:
    """x in [-_END, _END]; NaN becomes some number of these."""
    return x if abs(x) <= _END else (_END if x > 0.0 else -_END)


@inlined
def exp32(x: Any) -> Any:
    """exp(x)."""
    if SCALAR:
        return np.float32(math.exp(x))
    value = np.float32(_wide_exp(_clipped(np.float64(x))))
    return x if np.isnan(x) else value


@inlined
def logistic32(x: Any) -> Any:
    """1 / (1 + exp(-x))."""
    if SCALAR:
        e = np.float32(math.exp(-abs(x)))
        return (e if x < np.float32(0.0) else np.float32(1.0)) / (np.float32(1.0) + e)
    value = np.float32(1.0 / (1.0 + _wide_exp(_clipped(-np.float64(x)))))
    return x if np.isnan(x) else value


@inlined
def _wide_tanh(x: Any) -> Any:
    e = _wide_exp(_clipped(2.0 * x))
    return (e - 1.0) / (e + 1.0)


@inlined
def tanh32(x: Any) -> Any:
    """tanh(x)."""
    if SCALAR:
        return np.float32(math.tanh(x))
    value = np.float32(_wide_tanh(np.float64(x)))
    return value if abs(x) >= np.float32(_LINEAR) else x


@inlined
def _wide_erf(x: Any) -> Any:
    s = x * x
    p = ((((_P0 * s + _P1) * s + _P2) * s + _P3) * s + _P4) * s + _P5
    q = ((((_Q0 * s + _Q1) * s + _Q2) * s + _Q3) * s + _Q4) * s + _Q5
    # A NaN takes the last branch.
    return 1.0 if x >= ERF_END else (-1.0 if x <= -ERF_END else x * p / q)


@inlined
def erf32(x: Any) -> Any:
    """erf(x)."""
    return np.float32(math.erf(x)) if SCALAR else np.float32(_wide_erf(np.float64(x)))


@inlined
def gelu32(x: Any) -> Any:
    """x Phi(x), within 8 eps |x|."""
    if SCALAR:
        return np.float32(0.5) * x * np.float32(math.erfc(-x * np.float32(math.sqrt(0.5))))
    wide = np.float64(x)
    return np.float32(0.5 * wide * (1.0 + _wide_erf(wide * math.sqrt(0.5))))


@inlined
def gelu_by_tanh32(x: Any) -> Any:
    """x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2, within 8 eps |x|."""
    if SCALAR:
        inner = np.float32(math.sqrt(2.0 / math.pi)) * (x + np.float32(0.044715) * x * x * x)
        return np.float32(0.5) * x * (np.float32(1.0) + np.float32(math.tanh(inner)))
    wide = np.float64(x)
    inner = math.sqrt(2.0 / math.pi) * (wide + 0.044715 * wide * wide * wide)
    return np.float32(0.5 * wide * (1.0 + _wide_tanh(inner)))
