"""Expand for a weight vector that is computed while the model runs, or of a dtype no kernel reads: W through NumPy."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hashinfer.errors import OpError, SchemeError
from hashinfer.ops.base import Arrays, Call, Inputs, Op, Outputs, TensorType, Types
from hashinfer.ops.checks import array, need
from hashinfer.schemes import Scheme


@dataclass(eq=False)
class ExpandOp(Op):
    """W [rows, cols] from w [K], in w's dtype."""

    scheme: type[Scheme]
    attributes: Mapping[str, Any]

    def infer(self, call: Call, ins: Inputs) -> Types:
        w = need(ins, 0, "the weight vector")
        if w.rank != 1 or w.dtype.kind not in "fi":
            raise OpError(f"the weight vector is {w.type}; expected numbers of rank 1")
        scheme = self._scheme(w.shape[0])
        return [TensorType(w.dtype, (scheme.rows, scheme.cols))]

    def run(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        w = array(ins, 0)
        self._scheme(w.size).expand(w, outs[0])

    def _scheme(self, buckets: int) -> Scheme:
        try:
            return self.scheme(buckets, **self.attributes)
        except SchemeError as error:
            raise OpError(str(error)) from None
