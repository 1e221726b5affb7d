"""Benchmarks: they time, print what they saw and where, and judge nothing."""
