"""What ends a training from outside, met by the command line in processes of its own: signals, death, a full disk."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from mounts import in_own_mounts
from small_trainings import outcome, write_streets
from train_children import Forked, Started

import dgmn2cli
from dgmn2cli.training.state import load_state

ROOT = Path(dgmn2cli.__file__).parents[1]
STEPS = 8
SMALL = (
    "--scale", "96x64", "--crop", "64", "--window", "64", "--stride", "48", "--batch-size", "1", "--from", "scratch",
    "--max-iters", str(STEPS), "--val-every", "0", "--device", "cpu", "--threads", "1", "--workers", "1",
)  # fmt: skip
PYTHON = (sys.executable, "-m", "dgmn2cli")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "dgmn2cli")


def command(out: str, *options: str) -> list[str]:
    return ["train", "setr_naive-tiny", "--data-root", "data", "--out", out, *SMALL, *options]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def started(arguments: Sequence[str], folder: Path, by: Sequence[str] = PYTHON, **variables: str) -> Started:
    return Started(arguments, folder, by, environment() | variables)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs are, beside their data."""
    made = tmp_path_factory.mktemp("interrupted")
    write_streets(made / "data")
    return made


def steps_in(log: Path) -> int:
    return log.read_bytes().count(b'"loss"') if log.exists() else 0


def wait_for(condition: Callable[[], bool], seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


@contextmanager
def running(child: Forked, run: Path, until_step: int) -> Iterator[Forked]:
    """A training that has taken `until_step` steps."""
    try:
        wait_for(lambda: steps_in(run / "log.jsonl") >= until_step or child.code is not None)
        assert child.code is None, child.said[1]
        yield child
    finally:
        child.kill()


def interrupted(child: Forked, run: Path, until_step: int, number: signal.Signals) -> tuple[int, str]:
    """Exit code and last line of a training that gets a signal; its state is that of its last step."""
    with running(child, run, until_step):
        os.kill(child.pid, number)
        code, err = child.finish(60)
    assert child.said[0] == ""
    state = load_state(run / "checkpoints" / "last.pth")
    assert until_step <= state.iteration == steps_in(run / "log.jsonl") < STEPS
    assert f"Stopped after {state.iteration} steps; `--resume` goes on from there." in err
    return code, err.splitlines()[-1]


def descendants(process: int) -> dict[int, str]:
    """The command lines of all processes that `process` started, and that those started."""
    found: dict[int, str] = {}
    for child in Path(f"/proc/{process}/task").glob("*/children"):
        for number in map(int, child.read_text().split()):
            found[number] = Path(f"/proc/{number}/cmdline").read_text().replace("\0", " ")
            found |= descendants(number)
    return found


def lives(process: int) -> bool:
    """Whether it runs; one that has ended and that nobody has asked about does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


SAYS = {
    signal.SIGTERM: (143, "Error: stopped by SIGTERM."),
    signal.SIGINT: (130, "Error: interrupted by Ctrl-C."),
}


def test_signals_end_the_wait_for_a_process_that_does_not_come(folder):
    group = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29573"}
    for number, said in SAYS.items():
        child = started(command("alone"), folder, **group)
        try:
            wait_for(lambda child=child: child.said[1].startswith("waiting for process 2 of 2"), 30.0)
            os.kill(child.pid, number)
            code, err = child.finish(30)
        finally:
            child.kill()
        assert (code, err.splitlines()[-1]) == said


def test_signals_end_a_run_with_its_state_saved(folder):
    for number, options, steps in ((signal.SIGTERM, (), 2), (signal.SIGINT, ("--resume",), 4)):
        child = Forked(command("r", *options), folder)
        assert interrupted(child, folder / "r", steps, number) == SAYS[number]


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_two_processes_stopped_and_killed_and_resumed_equal_the_unbroken_run(folder, number):
    """A signal, then one process killed, then the rest under torchrun."""
    two, run = ("--gpus", "2"), folder / f"run-{number}"
    if not (folder / "unbroken2").exists():
        assert started(command("unbroken2", *two), folder).finish()[0] == 0
    assert interrupted(started(command(run.name, *two), folder), run, 2, number) == SAYS[number]

    with running(started(command(run.name, *two, "--resume"), folder), run, 4) as child:
        family = descendants(child.pid)
        first = int((run / "lock").read_text().split()[1])
        ranks = {number for number, line in family.items() if "spawn_main" in line and descendants(number)}
        assert first in ranks
        assert len(ranks) == 2
        began = time.monotonic()
        os.kill((ranks - {first}).pop(), signal.SIGKILL)
        code, err = child.finish(60)
        took = time.monotonic() - began
    assert code == 8
    assert took < 30
    assert err.splitlines()[-1].startswith("Error: process 2 of 2 died: ended by SIGKILL")
    assert err.count("Error") == 1, err
    assert "Traceback" not in err
    wait_for(lambda: not any(map(lives, family)), 30.0)

    last = started(command(run.name, "--resume"), folder, TORCHRUN)
    code, err = last.finish()
    assert code == 0, err
    assert last.said[0].count("run folder") == 1
    assert outcome(run) == outcome(folder / "unbroken2")
    code, err = Forked(command(run.name, "--resume"), folder).finish()
    assert (code, err.splitlines()[0]) == (2, "processes: 2 -> 1")


def workers_of(process: int) -> list[int]:
    """The data workers of a training process: children that it has forked."""
    mine = Path(f"/proc/{process}/cmdline").read_bytes()
    found = [
        int(number) for path in Path(f"/proc/{process}/task").glob("*/children") for number in path.read_text().split()
    ]
    return [number for number in found if Path(f"/proc/{number}/cmdline").read_bytes() == mine]


def test_a_killed_data_worker_ends_it_with_exit_5_and_the_state_saved(folder):
    options, run = ("--workers", "2", "--val-every", "4", "--save-every", "3", "--freeze-backbone"), folder / "worker"
    with running(started(command("worker", *options), folder), run, 2) as child:
        workers = workers_of(child.pid)
        assert len(workers) == 2
        os.kill(workers[1], signal.SIGKILL)
        code, err = child.finish(30)
    assert code == 5
    assert [line for line in err.splitlines() if "Error" in line] == [err.splitlines()[-1]]
    assert err.splitlines()[-1].startswith("Error: a data worker died: ")
    state = load_state(run / "checkpoints" / "last.pth")
    assert 2 <= state.iteration == steps_in(run / "log.jsonl") < STEPS
    assert Forked(command("worker", *options, "--resume"), folder).finish()[0] == 0
    assert Forked(command("whole", *options), folder).finish()[0] == 0
    assert outcome(run) == outcome(folder / "whole")


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_to_the_whole_process_group_saves_the_state_too(folder, number):
    run = folder / f"group{number}"
    with running(Forked(command(run.name, "--workers", "2"), folder, session=True), run, 2) as child:
        os.killpg(child.pid, number)
        code, err = child.finish(30)
    assert (code, err.splitlines()[-1]) == SAYS[number]
    state = load_state(run / "checkpoints" / "last.pth")
    assert state.iteration >= 2


@pytest.mark.parametrize("size", ["64k", "4m"])
def test_a_full_shared_memory_ends_it_with_exit_5(folder, size):
    """The smaller has no room for the locks of three workers, the larger none for a batch."""
    crop = () if size == "64k" else ("--crop", "640")
    line = shlex.join([*PYTHON, *command(f"shm{size}", *crop, "--workers", "3")])
    script = f"""cd {shlex.quote(str(folder))}
        mount -t tmpfs -o size={size} tmpfs /dev/shm
        {line} && code=0 || code=$?
        echo code=$code"""
    done = in_own_mounts(script, env=environment(), timeout=100)
    assert done.stdout.splitlines() == ["code=5"]
    last = done.stderr.splitlines()[-1]
    assert last.startswith("Error: a data worker cannot hand over its batch (/dev/shm): ")
    assert "--workers 0" in last
    assert "Traceback" not in done.stderr


def test_too_few_open_files_are_named(folder):
    line = shlex.join([*PYTHON, *command("few", "--workers", "2")])
    done = subprocess.run(
        ["bash", "-c", f"ulimit -n 28; exec {line}"],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 5
    assert "the limit is 28 (ulimit -n)" in done.stderr.splitlines()[-1]


def test_a_full_disk_ends_it_with_exit_5_and_the_previous_checkpoint_is_good(folder):
    """A tmpfs with room for two checkpoints of a head in training (48 MB each), and not for a third."""
    options = ("--freeze-backbone", "--save-every", "1", "--max-iters", "4")
    line = shlex.join([*PYTHON, *command("disk/r", *options)])
    (folder / "disk").mkdir()
    script = f"""cd {shlex.quote(str(folder))}
        mount -t tmpfs -o size=120m none disk
        {line} && code=0 || code=$?
        echo code=$code
        ls -A disk/r/checkpoints
        mount -o remount,size=1g disk
        {line} --resume
        cp -r disk/r kept"""
    done = in_own_mounts(script, env=environment(), timeout=120)
    said = done.stdout.splitlines()
    assert said[:5] == ["code=5", "iter_000000001.pth", "iter_000000002.pth", "last.pth", "previous.pth"]
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert "No space left on device" in errors[0]
    assert "Resumed after 2 steps." in done.stderr
    assert Forked(command("unbroken3", *options), folder).finish()[0] == 0
    assert outcome(folder / "kept") == outcome(folder / "unbroken3")
