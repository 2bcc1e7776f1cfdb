"""A short campaign: some faults of every kind without a violation, and weakened programs that do show violations."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import pytest

from faults.__main__ import run_control
from faults.catalogue import KINDS
from faults.verdicts import VIOLATION, Kind, outcome_of


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")  # of the maker of a hostile archive
@pytest.mark.parametrize("kind", KINDS, ids=[kind.name for kind in KINDS])
def test_no_violation(kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dgmn2cli.zoo.fetch.OVERHEAD", 1_000_000)
    monkeypatch.setattr(logging.root.manager, "disable", logging.CRITICAL)
    results = [(label, *outcome_of(judge)) for label, judge in kind.faults(random.Random(2), tmp_path, kind.short)]
    assert len(results) == kind.short
    assert [result for result in results if result[1] == VIOLATION] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["no hash compared at load", "weights_only=False", "lenient image decoding"])
def test_a_weakened_program_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parents[2]}:{Path(__file__).parents[1]}")
    assert run_control(name, 1)["violations"] >= 1
