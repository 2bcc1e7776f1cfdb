"""What every test shares: two quiet threads, the golden tensors, the published state dicts."""

from __future__ import annotations

import gzip
import json
import os
import signal

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads slow tiny ops down a hundredfold on two cores
os.environ.setdefault("CUDA_VISIBLE_DEVICES", os.environ.get("DGMN2_TEST_GPUS", ""))

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job, and each process it starts
    signal.signal(signal.SIGINT, signal.default_int_handler)

from pathlib import Path
from typing import Any

import pytest

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of tensors measured on the published system."""
    return GOLDEN


@pytest.fixture(scope="session")
def listings(golden: Path) -> dict[str, Any]:
    """Keys, shapes, dtypes and parameter counts of the 16 published segmentors and 4 classifiers."""
    return json.loads(gzip.decompress((golden / "state_dicts.json.gz").read_bytes()))
