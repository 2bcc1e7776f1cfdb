"""The compiled kernels must be there: under CI a missing extension fails, elsewhere it is skipped and says so."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

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


@pytest.fixture(scope="session", autouse=True)
def interpreter(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[subprocess.Popen[bytes], Path] | None]:
    """`test_triton_kernels.py` in a process where Triton interprets, beside the room's other tests; and its output."""
    if not any(item.name == "test_kernels_under_the_interpreter" for item in request.session.items):
        yield None
        return
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/ops/test_triton_kernels.py"]
    output = tmp_path_factory.mktemp("interpreter") / "output"
    with output.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=Path(__file__).parents[2], env=environment, stdout=file, stderr=subprocess.STDOUT
        )
    yield process, output
    process.kill()
    process.wait()
