"""Models compiled ahead of time: `emit` makes them from a plan, `runtime` loads them without any compiler."""
