"""From a plan to native code for this CPU or another one: the JIT's own kernels, retargeted and compiled once."""
