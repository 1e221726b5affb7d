"""Compiled models on other CPUs: emulators, counted instructions, sizes, and other runtimes beside them."""
