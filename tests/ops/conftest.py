"""The compiled kernels must be there: under CI a missing extension fails, elsewhere it is skipped and says so."""

from __future__ import annotations

import os

import pytest

from dgmn2cli import ops


@pytest.fixture(scope="session")
def native() -> str:
    """The name of the compiled backend."""
    backend = ops.available_backends()["native"]
    if not backend.usable:
        message = f"compiled kernels: {backend.reason}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return "native"
