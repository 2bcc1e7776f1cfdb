"""The data set that the training tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_trainings import write_streets


@pytest.fixture(scope="session")
def streets(tmp_path_factory) -> Path:
    """A data set that no test changes."""
    return write_streets(tmp_path_factory.mktemp("streets"))
