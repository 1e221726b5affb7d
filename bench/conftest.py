"""`pytest bench` times; the option that keeps `pytest` over the tests from timing is undone here."""

from __future__ import annotations

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Runs before pytest-benchmark looks at its options. An option on the command line itself is kept."""
    if "--benchmark-disable" not in config.invocation_params.args:
        config.option.benchmark_disable = False
