"""Processes started here or by others: what they tell each other, how they wait, and how they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import active_children
from pathlib import Path

import pytest
import torch
from children import threads, work

import dgmn2cli
from dgmn2cli.distributed import launch as launching
from dgmn2cli.distributed.group import Group, join, launched_rank, launched_world, require_devices
from dgmn2cli.distributed.launch import launch
from dgmn2cli.distributed.processes import _on_this_process
from dgmn2cli.distributed.signals import StopRequest
from dgmn2cli.errors import ConfigError, Dgmn2Error, DistributedError, NonFiniteError, ResourceError
from dgmn2cli.observer import Silent

HERE = Path(__file__).parent
ROOT = Path(dgmn2cli.__file__).parents[1]


class Notes(Silent):
    """An observer that remembers; at its first note it may send this process a signal."""

    def __init__(self, number: signal.Signals | None = None) -> None:
        self.heard: list[tuple[object, ...]] = []
        self._number = number

    def note(self, message: str) -> None:
        self.heard.append(("note", message))
        self.noted = time.monotonic()
        if self._number is not None:
            signal.raise_signal(self._number)

    def begin(self, task: str, total: float | None = None, *, done: float = 0, unit: str = "") -> None:
        self.heard.append(("begin", task, total))

    def advance(
        self, parts: float = 1, *, done: float | None = None, total: float | None = None, detail: str = ""
    ) -> None:
        self.heard.append(("advance", parts, detail))


def test_what_processes_tell_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    notes = Notes()
    result, number = launch(work, ("talk",), 2, notes)
    assert number == 0
    assert result == {
        "mean": [0.5, 3.0], "gathered": ["x", "xx"], "once": ("by", 0), "told": ["one", "two"], "again": [],
    }  # fmt: skip
    told = [
        words for words in notes.heard if words[0] != "note"
    ]  # a slow machine: that it waits for the other to start
    assert told == [("begin", "talking", 2), ("advance", 1, "rank 0")], "of the first process only"
    assert not active_children()
    assert not list(tmp_path.iterdir()), "what a killed launch would leave behind"


def test_a_process_that_waits_may_give_up_for_all() -> None:
    began = time.monotonic()
    assert launch(work, ("give_up_waiting",), 2) == (["enough of process 0."] * 2, 0)
    assert time.monotonic() - began < 55, "the second would be busy for 60 s"


def test_an_error_keeps_its_kind_and_what_is_unforeseen_is_said() -> None:
    with pytest.raises(NonFiniteError, match="step 3") as caught:
        launch(work, ("refuse",), 2)
    assert caught.value.faults == ("a", "b")
    with pytest.raises(Dgmn2Error, match="unforeseen failure in process 1: KeyError") as unforeseen:
        launch(work, ("odd",), 2)
    assert unforeseen.value.exit_code == 1


@pytest.mark.parametrize("how", ["killed_waiting", pytest.param("killed_busy", marks=pytest.mark.slow)])
def test_the_death_of_a_process_ends_the_others(how: str, capfd: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    with pytest.raises(DistributedError, match="process 2 of 2 died: ended by SIGKILL") as caught:
        launch(work, (how,), 2)
    assert caught.value.exit_code == 8
    assert time.monotonic() - began < 30
    assert not active_children()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_ends_processes_that_wait(number: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    notes = Notes(number)
    assert launch(work, ("lag",), 2, notes) == (None, number)
    assert time.monotonic() - notes.noted < 30, (
        "from the signal on; how long they take to start is the machine's matter"
    )
    assert not active_children()
    assert capfd.readouterr() == ("", "")


def test_what_fails_after_a_signal_is_said() -> None:
    notes = Notes(signal.SIGINT)
    with pytest.raises(ResourceError, match="the disk is full") as caught:
        launch(work, ("stopped",), 2, notes)
    assert not caught.value.told
    assert ("note", "waiting for a signal") in notes.heard


@pytest.mark.parametrize(("asked", "each"), [(3, 3), (None, 2)])
def test_threads_are_those_of_each_process_or_torchs_shared_out(asked: int | None, each: int) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        assert _on_this_process(threads, (), "cpu", 2, asked, Silent()) == [each]
    finally:
        torch.set_num_threads(before)


def test_too_few_files_are_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching.resource, "getrlimit", lambda which: (24, 24))
    with pytest.raises(ResourceError, match=r"the limit is 24 \(ulimit -n\)") as caught:
        launch(work, ("talk",), 2)
    assert caught.value.exit_code == 5


@contextmanager
def waiting_alone(rank: int, port: int) -> Iterator[subprocess.Popen[str]]:
    """One of two processes, the other one nowhere."""
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "WORLD_SIZE": "2", "RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }  # fmt: skip
    command = [sys.executable, str(HERE / "children.py")]
    child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


@pytest.mark.parametrize(
    ("rank", "number", "code"),
    [(0, signal.SIGINT, 130), pytest.param(1, signal.SIGTERM, -signal.SIGTERM, marks=pytest.mark.slow)],
)
def test_waiting_for_a_peer_says_so_and_obeys_signals(rank: int, number: signal.Signals, code: int) -> None:
    with waiting_alone(rank, 29571) as child:
        assert child.stdout is not None
        line = child.stdout.readline()
        assert line.startswith(f"waiting for process {2 - rank}")
        assert "127.0.0.1:29571" in line
        child.send_signal(number)
        out, err = child.communicate(timeout=10)
    assert (child.returncode, out, err) == (code, "", "")


@pytest.mark.slow
def test_a_peer_that_comes_late_is_met() -> None:
    with waiting_alone(1, 29572) as second:
        assert second.stdout is not None
        assert second.stdout.readline().startswith("waiting for process 1")
        with waiting_alone(0, 29572) as first:
            assert first.communicate(timeout=60)[0].endswith("[0, 1]\n")
            assert second.communicate(timeout=60)[0].endswith("[0, 1]\n")


def test_a_process_alone_is_a_group_of_one() -> None:
    with join("cpu") as group:
        assert (group.rank, group.world, group.main, group.device.type) == (0, 1, True, "cpu")
        assert group.mean([2, 4.5]) == [2.0, 4.5]
        assert group.gather("a") == ["a"]
        assert group.once(lambda: 7) == 7
        assert list(group.told()) == []
    assert Group(1, 2, group.device).main is False


def test_the_environment_says_who_is_who(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (launched_world(), launched_rank()) == (1, 0)
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert launched_world() == 1, "RANK is what a launcher sets"
    monkeypatch.setenv("RANK", "3")
    assert (launched_world(), launched_rank()) == (4, 3)
    with pytest.raises(ConfigError, match="--gpus within torchrun"):
        require_devices("cpu", 2)
    with pytest.raises(ConfigError, match="do not know where to meet"), join("cpu"):
        pass
    monkeypatch.setenv("RANK", "4")
    with pytest.raises(ConfigError, match="it is 4, WORLD_SIZE is 4"):
        launched_rank()
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ConfigError, match="it is 'two'"):
        launched_world()


def test_a_stop_is_noted_and_the_same_signal_again_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # as from the terminal and from a launcher
        assert stop.number == signal.SIGINT
        monkeypatch.setattr("dgmn2cli.distributed.signals.SAME", -1.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
