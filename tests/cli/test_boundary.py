"""The error boundary: every way a command can end has its exit code and one last line on stderr."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from rich.console import Console
from rich.text import Text

import dgmn2cli
from dgmn2cli.cli import boundary, render
from dgmn2cli.errors import DataError, DistributedError, IntegrityError, NetworkError, NonFiniteError

ROOT = Path(dgmn2cli.__file__).parents[1]


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


def test_whatever_is_named_the_last_line_stays_one_that_can_be_read(capsys):
    name = "x" * 10_000
    _, lines = ending(capsys, DataError(name, where=name, why=name, hint=f"Look into {name}.", faults=[name, name]))
    assert [len(line) // 650 for line in lines] == [0, 0, 3]  # four parts of the last one, of 600 letters each


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


def test_what_ran_out_is_named_and_no_file_is_blamed(capsys):
    wrapped = DataError("cannot read the image", where="a.png", why="too many open files")
    wrapped.__cause__ = OSError(24, "Too many open files", "a.png")
    cases = [
        (OSError(24, "Too many open files"), "too many open files: the limit of open files (ulimit -n) is "),
        (OSError(23, "Too many open files in system", "x.png"), "too many open files"),
        (wrapped, "too many open files"),
        (OSError(12, "Cannot allocate memory"), "out of memory"),
        (ImportError("libfoo.so: failed to map segment from shared object"), "out of memory"),
        (RuntimeError("std::bad_alloc"), "out of memory"),
        (RuntimeError("can't start new thread"), "cannot start a thread"),
    ]
    for error, said in cases:
        code, lines = ending(capsys, error)
        assert (code, len(lines)) == (5, 1), error
        assert said in lines[0]
        assert "standard output" not in lines[0]


def test_the_limit_of_memory_is_named():
    code = "import resource, sys\nresource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
    code += "from dgmn2cli.cli.boundary import guarded\ndef run():\n    bytes(1 << 31)\nsys.exit(guarded(run))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 5
    assert "the limit of address space (ulimit -v) is 1,073,741,824" in done.stderr


SWALLOWS = """
import os, signal
try:
    os.kill(os.getpid(), signal.{name})
    import json
except BaseException:
    pass
"""
IMPORTS = """
import sys, time
from dgmn2cli.cli.boundary import guarded
def run():
    import swallows
    time.sleep(30)
sys.exit(guarded(run))
"""


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_signals_during_imports_are_neither_lost_nor_taken_for_failures(tmp_path, name, code):
    (tmp_path / "swallows.py").write_text(SWALLOWS.format(name=name))
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, env=environment, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (code, 1)
    assert done.stderr.startswith("Error: ")
    early = "import os, signal, dgmn2cli.cli as c, dgmn2cli.__main__ as m\n"
    early += f"c.main = lambda: os.kill(os.getpid(), signal.{name})\nm.main()"
    done = subprocess.run([sys.executable, "-c", early], capture_output=True, text=True, env=environment, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (code, 1)


@pytest.mark.parametrize("then", ["pass", "raise ValueError('something else')"])
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_that_a_library_swallows_or_turns_into_an_error_still_counts(name, code, then):
    program = "import os, signal, sys\nfrom dgmn2cli.cli.boundary import guarded\ndef run():\n    try:\n"
    program += f"        os.kill(os.getpid(), signal.{name})\n    except BaseException:\n        {then}\n"
    program += "sys.exit(guarded(run))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (code, 1)


def test_an_import_without_an_end_does_not_hold_a_signal_up(tmp_path):
    (tmp_path / "swallows.py").write_text("import time\nprint(1, flush=True)\nwhile True: time.sleep(0.1)\n")
    program = IMPORTS.replace("def run", "import dgmn2cli.cli.boundary as b\nb.PATIENCE = 0.3\ndef run")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    running = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert running.stdout.readline() == "1\n"
    running.terminate()
    out, err = running.communicate(timeout=60)
    assert (running.returncode, out, err) == (143, "", "Error: stopped by SIGTERM.\n")


def test_an_ignored_interrupt_stays_ignored():
    code = "import os, signal, sys\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    code += "from dgmn2cli.cli.boundary import guarded\n"
    code += "sys.exit(guarded(lambda: os.kill(os.getpid(), signal.SIGINT)))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, timeout=60).returncode == 0


HOSTILE = "road\x1b]0;PWNED\x07\x1b[2J\u202e"


@pytest.mark.parametrize("terminal", [True, False])
def test_no_escape_sequence_of_a_name_reaches_the_terminal(capsys, terminal):
    table = render.make_table("class", title=HOSTILE)
    table.add_row(HOSTILE)
    for part in (HOSTILE, f"one\n{HOSTILE}", Text(HOSTILE), table):
        stream = io.StringIO()
        render.print_to(Console(file=stream, force_terminal=terminal, color_system=None, width=200), part)
        shown = stream.getvalue() + capsys.readouterr().out
        assert "\x1b" not in shown
        assert "\u202e" not in shown
        assert "\\x1b]0;PWNED" in shown
        assert len(shown.splitlines()) == 1 + (isinstance(part, str) and "\n" in part) + 3 * (part is table)


def test_a_working_folder_that_is_gone_is_named(capsys, tmp_path, monkeypatch):
    """What starts processes asks for it, and the system's error names nothing."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(FileNotFoundError) as caught:
        os.getcwd()
    code, [line] = ending(capsys, caught.value)
    assert (code, line.startswith("Error: the folder in which the command was started is gone.")) == (5, True)
