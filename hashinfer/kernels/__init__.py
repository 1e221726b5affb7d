"""Kernels: jitted functions over arrays, and the native driver that runs a program of them. No graph, no files.

Kernels trust their arguments. The loader proved the hash parameters (`hashinfer.schemes`), the ops proved the shapes
(`hashinfer.ops`), and the plan laid out the buffers (`hashinfer.plan`), before any address reached a program.
"""
