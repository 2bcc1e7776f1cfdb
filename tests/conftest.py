"""Owns what every test shares: two quiet threads, and the golden tensors."""

from __future__ import annotations

import os
import signal

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads slow tiny ops down a hundredfold on two cores
os.environ.setdefault("CUDA_VISIBLE_DEVICES", os.environ.get("DGMN2_TEST_GPUS", ""))

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job, and each process it starts
    signal.signal(signal.SIGINT, signal.default_int_handler)

from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of tensors measured on the published system."""
    return GOLDEN
