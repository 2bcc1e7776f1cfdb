"""A short campaign: some faults of every kind without a violation, and weakened programs that do show violations."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import time
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
    monkeypatch.setattr("dgmn2cli.zoo.manifest.OVERHEAD", 1_000_000)
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


def campaign_processes(folder: Path) -> list[int]:
    """Whose command line or environment names `folder`."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            said = (place / "cmdline").read_bytes() + (place / "environ").read_bytes()
        except OSError:  # it has ended, or is another user's
            continue
        if os.fsencode(folder) in said:
            found.append(int(place.name))
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_campaign_that_is_stopped_leaves_nothing_behind(number: signal.Signals, tmp_path: Path) -> None:
    temporary, report = tmp_path / "tmp", tmp_path / "report.json"
    temporary.mkdir()
    command = [sys.executable, "-m", "faults", "--out", str(report), "--only", "command line, other name"]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as campaign:
        assert campaign.stderr is not None
        end = time.monotonic() + 120
        while not list(temporary.glob("tmp*/*/a/b/desk")) and time.monotonic() < end:  # until commands run
            time.sleep(0.05)
        assert len(campaign_processes(temporary)) > 1
        campaign.send_signal(number)
        said = campaign.stderr.read()
        assert campaign.wait(60) == 128 + number, said
    assert said.splitlines() == ["stopped; what was complete is in the report, and --resume goes on from there"]
    assert list(temporary.glob("tmp*")) == []
    assert campaign_processes(temporary) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", CONTROLS)
def test_a_weakened_program_is_noticed(name: str) -> None:
    assert run_control(name, 1)["violations"] >= 1
