"""Run an .hnet file, with this engine and, where it is installed, with onnxruntime: the calls are the same.

python models/examples/run.py models/mnist-dyadic-64x.hnet models/mnist-test-1k.npy
"""

from __future__ import annotations

import argparse

import numpy as np

import hashinfer


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("input", help="an .npy file for the model's one input")
    args = parser.parse_args()
    session = hashinfer.InferenceSession(args.model)
    (value,) = session.get_inputs()
    x = np.load(args.input)
    (y,) = session.run(None, {value.name: x})
    memory = session.report({value.name: x.shape})["memory"]
    print(f"{value.name} {x.dtype}{list(x.shape)} -> {y.dtype}{list(y.shape)}; weights {memory['weights']:,} bytes")
    try:
        import onnxruntime
    except ImportError:
        return
    (expected,) = onnxruntime.InferenceSession(args.model).run(None, {value.name: x})
    print(f"onnxruntime {onnxruntime.__version__}: differs by at most {float(np.abs(y - expected).max()):.2g}")


if __name__ == "__main__":
    main()
