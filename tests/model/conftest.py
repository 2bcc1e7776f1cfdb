"""Owns the published state-dict listings, read once."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def listings(golden: Path) -> dict[str, Any]:
    """Keys, shapes, dtypes and parameter counts of the 16 published segmentors and 4 classifiers."""
    return json.loads(gzip.decompress((golden / "state_dicts.json.gz").read_bytes()))
