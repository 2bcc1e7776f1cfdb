"""Untrained networks, shared by the export's tests."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import pytest

from dgmn2cli.inference.load import build_model
from dgmn2cli.model.filled import filled_state
from dgmn2cli.model.segmentor import Segmentor


@lru_cache(maxsize=4)
def _network(name: str, num_classes: int | None) -> Segmentor:
    model = build_model(name, num_classes)
    model.load_state_dict(filled_state(model))
    return model.eval().requires_grad_(requires_grad=False)


@pytest.fixture(scope="session")
def network() -> Callable[..., Segmentor]:
    """Gives a network by name and number of classes, with stand-in weights."""
    return lambda name, num_classes=None: _network(name, num_classes)
