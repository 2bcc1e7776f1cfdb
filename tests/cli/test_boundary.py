"""The error boundary: every way a command can end has its exit code and one last line on stderr."""

import signal
import subprocess
import sys
import time

import click
import pytest

from dgmn2cli.cli import boundary
from dgmn2cli.errors import DataError, DistributedError, IntegrityError, NetworkError, NonFiniteError


def ending(capsys, error, debug=False):
    def run():
        print("the answer so far")  # noqa: T201
        raise error

    code = boundary.guarded(run, debug)
    captured = capsys.readouterr()
    assert captured.out == "the answer so far\n"
    return code, captured.err.splitlines()


KINDS = [(IntegrityError, 3), (NetworkError, 4), (DataError, 6), (NonFiniteError, 7), (DistributedError, 8)]


@pytest.mark.parametrize(("kind", "code"), KINDS)
def test_our_errors_keep_their_code(capsys, kind, code):
    error = kind("cannot do it", where="a\x1b[31m", why="because", hint="Do that.")
    assert ending(capsys, error) == (code, ["Error: cannot do it (a\\x1b[31m): because. Do that."])


def test_single_faults_come_before_the_last_line(capsys):
    code, lines = ending(capsys, DataError("bad files", faults=[f"fault {i}" for i in range(25)]))
    assert code == 6
    assert lines == [*(f"fault {i}" for i in range(20)), "... and 5 more", "Error: bad files."]


def test_other_endings(capsys):
    cases = [
        (KeyboardInterrupt(), 130, "interrupted"),
        (boundary.Terminated(), 143, "SIGTERM"),
        (MemoryError(), 5, "out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: x"), 5, "out of memory"),
        (OSError(28, "No space left on device", "file.png"), 5, "(file.png): No space left on device. Free some"),
        (PermissionError(13, "Permission denied", "x\n"), 5, "(x\\n): Permission denied"),
        (ZeroDivisionError("division by zero"), 1, "ZeroDivisionError: division by zero. Run again with --debug"),
        (ValueError("two\nlines"), 1, "ValueError: two. Run again with --debug"),
        (AssertionError(), 1, "AssertionError. Run again"),
        (click.UsageError("Bad thing."), 2, "Error: bad thing (dgmn2). See `dgmn2 --help`."),
    ]
    for error, code, said in cases:
        seen, lines = ending(capsys, error)
        assert (seen, len(lines)) == (code, 1)
        assert lines[0].startswith("Error: ")
        assert said in lines[0]


def test_gpu_memory(capsys):
    import torch

    code, lines = ending(capsys, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert code == 5
    assert lines[0].startswith("Error: out of memory: CUDA out of memory.")


def test_debug_shows_the_traceback_first(capsys):
    code, lines = ending(capsys, ZeroDivisionError("division by zero"), debug=True)
    assert code == 1
    assert lines[0].startswith("Traceback")
    assert lines[-1] == "Error: an unforeseen failure: ZeroDivisionError: division by zero."


def test_warnings_of_libraries_are_for_debug(capsys):
    import warnings

    with warnings.catch_warnings():
        assert boundary.guarded(lambda: warnings.warn("noise", stacklevel=1)) == 0
    assert capsys.readouterr().err == ""


SLEEPER = """
import sys, time
from dgmn2cli.cli.boundary import guarded
def run():
    try:
        print("ready", flush=True)
        time.sleep(30)
    finally:
        print("cleaned up", flush=True)
sys.exit(guarded(run))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_clean_up_and_say_so(number, code):
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    began = time.monotonic()
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert time.monotonic() - began < 10
    assert (process.returncode, out) == (code, "cleaned up\n")
    assert err.count("\n") == 1
    assert err.startswith("Error: ")
