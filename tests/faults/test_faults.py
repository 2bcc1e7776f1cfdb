"""A short campaign: some faults of every kind without a violation, and weakened programs that do show violations."""

from __future__ import annotations

import logging
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from faults.catalogue import KINDS, SHORT
from faults.controls import CONTROLS
from faults.running import run_control, run_kind
from faults.sandbox import Box, Call, Streams, run
from faults.verdicts import VIOLATION, Kind, outcome_of

TESTS = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{TESTS.parent}:{TESTS}")


def ids(kinds: list[Kind]) -> list[str]:
    return [kind.name for kind in kinds]


HERE = [kind for kind in KINDS if not kind.forks]


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")  # of the maker of a hostile archive
@pytest.mark.parametrize("kind", HERE, ids=ids(HERE))
def test_no_violation(kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dgmn2cli.zoo.fetch.OVERHEAD", 1_000_000)
    monkeypatch.setattr(logging.root.manager, "disable", logging.CRITICAL)
    results = [(label, *outcome_of(judge)) for label, judge in kind.faults(random.Random(2), tmp_path, kind.short)]
    assert len(results) == kind.short
    assert [result for result in results if result[1] == VIOLATION] == []


def test_no_violation_through_the_command_line() -> None:
    result = run_kind(SHORT, 2, SHORT.short)
    assert result["run"] == SHORT.short
    assert result["violations_listed"] == []


ENDINGS = [
    ("zoo show fpn-tny", Streams(), ""), ("info page.pth", Streams(), ""),
    ("zoo list", Streams(out="full"), ">/dev/full"),
    ("zoo list", Streams(out="closed"), ">&-"), ("zoo show", Streams(out="head"), "| head -1; exit ${PIPESTATUS[0]}"),
    ("convert page.pth page.pth", Streams(err="closed"), "2>&-"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "streams", "redirect"), ENDINGS)
def test_a_forked_command_ends_as_a_started_one(line: str, streams: Streams, redirect: str, tmp_path: Path) -> None:
    box = Box(tmp_path / "box").make()
    (box.work / "page.pth").write_text("<!DOCTYPE html>")
    shell = ["bash", "-c", f"{sys.executable} -m dgmn2cli {line} {redirect}"]
    environment = {**box.environment(), "PYTHONPATH": os.environ["PYTHONPATH"]}
    started = subprocess.run(shell, cwd=box.work, env=environment, capture_output=True, text=True, timeout=60)
    forked = run(box, Call(tuple(line.split()), (), streams=streams))
    assert (forked.code, forked.err) == (started.returncode, started.stderr)
    assert streams.out == "head" or forked.out == started.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", CONTROLS)
def test_a_weakened_program_is_noticed(name: str) -> None:
    assert run_control(name, 1)["violations"] >= 1
