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

import dgmn2cli
from dgmn2cli.training.state import load_state

ROOT = Path(dgmn2cli.__file__).parents[1]
STEPS = 8
SMALL = (
    "--scale", "96x64", "--crop", "64", "--window", "64", "--stride", "48", "--batch-size", "1", "--from", "scratch",
    "--max-iters", str(STEPS), "--val-every", "0", "--device", "cpu", "--threads", "1", "--workers", "1",
)  # fmt: skip
PYTHON = (sys.executable, "-m")
TORCHRUN = (*PYTHON, "torch.distributed.run", "--nproc-per-node", "2", "-m")


def command(out: str, *options: str, by: Sequence[str] = PYTHON) -> list[str]:
    return [*by, "dgmn2cli", "train", "setr_naive-tiny", "--data-root", "data", "--out", out, *SMALL, *options]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs are, beside their data."""
    made = tmp_path_factory.mktemp("interrupted")
    write_streets(made / "data")
    return made


def finished(folder: Path, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, cwd=folder, env=environment(), capture_output=True, text=True, timeout=120)


def steps_in(log: Path) -> int:
    return log.read_bytes().count(b'"loss"') if log.exists() else 0


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


@contextmanager
def running(
    folder: Path, arguments: Sequence[str], until_step: int, start_new_session: bool = False
) -> Iterator[subprocess.Popen[str]]:
    """A training that has taken `until_step` steps."""
    pipe = subprocess.PIPE
    child = subprocess.Popen(
        arguments,
        cwd=folder,
        env=environment(),
        stdout=pipe,
        stderr=pipe,
        text=True,
        start_new_session=start_new_session,
    )
    log = folder / arguments[arguments.index("--out") + 1] / "log.jsonl"
    try:
        wait_for(lambda: steps_in(log) >= until_step or child.poll() is not None)
        assert child.poll() is None, child.stderr.read()
        yield child
    finally:
        child.kill()
        child.wait()


def interrupted(folder: Path, arguments: Sequence[str], until_step: int, number: signal.Signals) -> tuple[int, str]:
    """Exit code and last line of a training that gets a signal; its state is that of its last step."""
    with running(folder, arguments, until_step) as child:
        child.send_signal(number)
        out, err = child.communicate(timeout=60)
    assert out == ""
    run = folder / arguments[arguments.index("--out") + 1]
    state, _ = load_state(run / "checkpoints" / "last.pth")
    assert until_step <= state.iteration == steps_in(run / "log.jsonl") < STEPS
    assert f"Stopped after {state.iteration} steps; `--resume` goes on from there." in err
    return child.returncode, err.splitlines()[-1]


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
        pipe = subprocess.PIPE
        with subprocess.Popen(
            command("alone"), cwd=folder, env=environment() | group, stdout=pipe, stderr=pipe, text=True
        ) as child:
            try:
                assert child.stderr.readline().startswith("waiting for process 2 of 2")
                child.send_signal(number)
                err = child.communicate(timeout=30)[1]
            finally:
                child.kill()
        assert (child.returncode, err.splitlines()[-1]) == said


def test_signals_end_a_run_with_its_state_saved(folder):
    assert interrupted(folder, command("r"), 2, signal.SIGTERM) == SAYS[signal.SIGTERM]
    assert interrupted(folder, command("r", "--resume"), 4, signal.SIGINT) == SAYS[signal.SIGINT]


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_two_processes_stopped_and_killed_and_resumed_equal_the_unbroken_run(folder, number):
    """A signal, then one process killed, then the rest under torchrun."""
    two, run = ("--gpus", "2"), f"run-{number}"
    if not (folder / "unbroken2").exists():
        assert finished(folder, command("unbroken2", *two)).returncode == 0
    ended = interrupted(folder, command(run, *two), 2, number)
    assert ended == SAYS[number]

    with running(folder, command(run, *two, "--resume"), 4) as child:
        family = descendants(child.pid)
        first = int((folder / run / "lock").read_text().split()[1])
        ranks = {number for number, line in family.items() if "spawn_main" in line and descendants(number)}
        assert first in ranks
        assert len(ranks) == 2
        began = time.monotonic()
        os.kill((ranks - {first}).pop(), signal.SIGKILL)
        _, err = child.communicate(timeout=60)
        took = time.monotonic() - began
    assert child.returncode == 8
    assert took < 30
    assert err.splitlines()[-1].startswith("Error: process 2 of 2 died: ended by SIGKILL")
    assert err.count("Error") == 1
    assert "Traceback" not in err
    wait_for(lambda: not any(map(lives, family)), 30.0)

    done = finished(folder, [*command(run, "--resume", by=TORCHRUN)])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run folder") == 1
    assert outcome(folder / run) == outcome(folder / "unbroken2")
    alone = finished(folder, command(run, "--resume"))
    assert alone.returncode == 2
    assert alone.stderr.splitlines()[0] == "processes: 2 -> 1"


def workers_of(process: int) -> list[int]:
    """The data workers of a training process: children that it has forked."""
    mine = Path(f"/proc/{process}/cmdline").read_bytes()
    found = [
        int(number) for path in Path(f"/proc/{process}/task").glob("*/children") for number in path.read_text().split()
    ]
    return [number for number in found if Path(f"/proc/{number}/cmdline").read_bytes() == mine]


def test_a_killed_data_worker_ends_it_with_exit_5_and_the_state_saved(folder):
    options = ("--workers", "2", "--val-every", "4", "--save-every", "3")
    with running(folder, command("worker", *options), 2) as child:
        workers = workers_of(child.pid)
        assert len(workers) == 2
        os.kill(workers[1], signal.SIGKILL)
        _, err = child.communicate(timeout=30)
    assert child.returncode == 5
    assert [line for line in err.splitlines() if "Error" in line] == [err.splitlines()[-1]]
    assert err.splitlines()[-1].startswith("Error: a data worker died: ")
    state, _ = load_state(folder / "worker" / "checkpoints" / "last.pth")
    assert 2 <= state.iteration == steps_in(folder / "worker" / "log.jsonl") < STEPS
    assert finished(folder, command("worker", *options, "--resume")).returncode == 0
    assert finished(folder, command("whole", *options)).returncode == 0
    assert outcome(folder / "worker") == outcome(folder / "whole")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_process_group_saves_the_state_too(folder, number):
    arguments = command(f"group{number}", "--workers", "2")
    with running(folder, arguments, 2, start_new_session=True) as child:
        os.killpg(child.pid, number)
        _, err = child.communicate(timeout=30)
    assert (child.returncode, err.splitlines()[-1]) == SAYS[number]
    state, _ = load_state(folder / f"group{number}" / "checkpoints" / "last.pth")
    assert state.iteration >= 2


@pytest.mark.parametrize("size", ["64k", "4m"])
def test_a_full_shared_memory_ends_it_with_exit_5(folder, size):
    """The smaller has no room for the locks of three workers, the larger none for a batch."""
    crop = () if size == "64k" else ("--crop", "640")
    line = shlex.join(command(f"shm{size}", *crop, "--workers", "3"))
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
    line = shlex.join(command("few", "--workers", "2"))
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
    line = shlex.join(command("disk/r", *options))
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
    assert finished(folder, command("unbroken3", *options)).returncode == 0
    assert outcome(folder / "kept") == outcome(folder / "unbroken3")
