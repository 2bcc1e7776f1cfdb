"""The real command line in a process of its own: run in a watched folder, judged by its end and what it leaves.

The process is forked from one that has everything imported, so a fault costs no start of Python; the entry, the exit
code, the streams and the signals are the real ones.
"""

from __future__ import annotations

import getpass
import hashlib
import io
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from dgmn2cli import cli
from faults.verdicts import REFUSED, RIGHT, Violation, die_with_parent, note_message

LIMIT = 60.0  # seconds a command may take
GRACE = 2.0  # seconds in which what it started must end after it, as Python's own resource tracker does
MEMORY = 4_000_000_000  # bytes it may have at most
UNFORESEEN = "unforeseen failure"
READER_GONE = 128 + signal.SIGPIPE
KEPT = ("PATH", "PYTHONPATH", "OMP_NUM_THREADS", "OMP_WAIT_POLICY")
OUT, ERR = 1, 2
LEFT_WRONG = 121  # exit code of a process that found what its command left behind wrong
FONTS = Path(tempfile.gettempdir()) / "dgmn2-faults-matplotlib"  # its list of fonts, made by whoever draws first
TORCH_FOLDERS = tuple(f"tmp/torchinductor_{name}" for name in ("root", getpass.getuser()))  # torch makes one on import


@dataclass(frozen=True)
class Box:
    """A folder of its own for one command; everything in it is watched."""

    top: Path

    @property
    def work(self) -> Path:
        """Where the command runs; deep, so that `../../x` is still in the box."""
        return self.top / "a" / "b" / "desk"

    @property
    def cache(self) -> Path:
        """The cache of the command."""
        return self.top / "cache"

    def make(self) -> Box:
        """Creates it, empty."""
        shutil.rmtree(self.top, ignore_errors=True)
        for folder in (self.work, self.cache, self.top / "home", self.top / "tmp"):
            folder.mkdir(parents=True)
        return self

    def environment(self) -> dict[str, str]:
        """What the command finds there."""
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        return {
            **kept, "HOME": str(self.top / "home"), "TMPDIR": str(self.top / "tmp"), "LANG": "C.UTF-8",
            "DGMN2_CACHE": str(self.cache), "MPLCONFIGDIR": str(FONTS),
        }  # fmt: skip

    def seen(self) -> dict[str, tuple[int, int, int]]:
        """What is in the box: kind, size and time of change by name."""
        found = {}
        for folder, folders, files in os.walk(self.top):
            for name in (*folders, *files):
                path = os.path.join(folder, name)
                status = os.lstat(path)
                regular = not os.path.isdir(path) or os.path.islink(path)
                key = os.path.relpath(path, self.top)
                found[key] = (status.st_mode, status.st_size * regular, status.st_mtime_ns * regular)
        return found


@dataclass(frozen=True)
class Streams:
    """What the caller's shell makes of the standard streams.

    Attributes:
        out: `file`, `closed`, `full` (a full device) or `head` (a reader that leaves after the first line).
        err: `file`, `closed` or `full`.
        encoding: what Python takes the terminal for.
    """

    out: str = "file"
    err: str = "file"
    encoding: str = "utf-8"


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code (negative: the signal), what it wrote, its peak memory in bytes."""

    code: int
    out: str
    err: str
    memory: int


@dataclass(frozen=True)
class Call:
    """A command, and the exit codes that fit.

    Attributes:
        arguments: the command line.
        codes: what it may end with.
        environment: changes to the box's; None removes a variable.
        streams: the standard streams.
        may_write: folders of the box, relative to its top, in which something may appear or change.
        right: whether an exit code 0 was deserved, judged by what was written to stdout.
        prepare: done in the process before the command.
        after: done in the process after the command, with its exit code; raises a Violation.
        limit: seconds it may take.
    """

    arguments: tuple[str, ...]
    codes: Collection[int]
    environment: Mapping[str, str | None] = field(default_factory=dict)
    streams: Streams = Streams()
    may_write: tuple[str, ...] = ("cache", "a/b/desk/out")
    right: Callable[[str], bool] = lambda out: True
    prepare: Callable[[], object] = lambda: None
    after: Callable[[int], object] = lambda code: None
    limit: float = LIMIT


def judge(box: Box, call: Call) -> str:
    """Runs the command and looks at everything it must not do.

    Raises:
        Violation: a traceback, a signal, a hang, a wrong exit code or last line, something written elsewhere.
    """
    before = box.seen()
    ended = run(box, call)
    _check_ending(ended, call)
    after = box.seen()
    touched = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    allowed = (*call.may_write, *TORCH_FOLDERS)
    outside = [name for name in touched if not any(f"{name}/".startswith(f"{place}/") for place in allowed)]
    if outside:
        raise Violation(f"exit code {ended.code}, and written or changed: {', '.join(outside[:5])[:300]}")
    left = [name for name in touched if name in after and name.endswith(".part")]
    if left and ended.code != 4:  # a download that was cut off may keep its part
        raise Violation(f"exit code {ended.code}, and left behind: {', '.join(left[:5])[:300]}")
    check_published(box.cache, {name for name in after if name not in before})
    if ended.code == 0:
        if not call.right(ended.out):
            raise Violation(f"exit code 0 and a wrong answer: {ended.out[-300:]!r}")
        return RIGHT
    return f"{REFUSED} {ended.code}"


def check_published(cache: Path, names: Collection[str]) -> None:
    """Every file that appeared in the cache has the content its name says."""
    for path in (cache / "files").glob("*") if (cache / "files").is_dir() else ():
        new = f"cache/files/{path.name}" in names
        if new and hashlib.sha256(path.read_bytes()).hexdigest() != path.stem:
            raise Violation("a file in the cache has another content than its name says")


def _check_ending(ended: Ended, call: Call) -> None:
    if ended.code == LEFT_WRONG:
        raise Violation(ended.err[-300:])
    last = ended.err.rstrip("\n").splitlines()[-1:] or [""]
    if "Traceback" in ended.err or UNFORESEEN in ended.err or "Exception ignored" in ended.err:
        raise Violation(f"exit code {ended.code}, and a traceback: {ended.err[-400:]!r}")
    if ended.code not in call.codes:
        raise Violation(f"exit code {ended.code}, wanted {sorted(call.codes)}: {last[0][:300]!r}")
    if ended.memory > MEMORY:
        raise Violation(f"exit code {ended.code}, and {ended.memory / 1e9:.1f} GB")
    if any(not line.isprintable() for line in ended.err.splitlines()):
        raise Violation(f"exit code {ended.code}, and a message that is not printable: {ended.err[-300:]!r}")
    if call.streams.err == "file" and ended.code not in (0, READER_GONE):
        if not last[0].startswith("Error: ") or len(last[0]) > 2000:
            raise Violation(f"exit code {ended.code}, and the last line says {last[0][:300]!r}")
        note_message(ended.err)


def run(box: Box, call: Call) -> Ended:
    """Runs the command in a forked process.

    Raises:
        Violation: it hung.
    """
    files = {OUT: os.memfd_create("out"), ERR: os.memfd_create("err")}
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(reader)
        _as_command(box, call, files, writer)
    os.close(writer)
    try:
        if call.streams.out == "head":
            while (byte := os.read(reader, 1)) and byte != b"\n":
                pass
    finally:
        os.close(reader)
    code, memory = _wait(process, call.limit)
    texts = []
    for number in (OUT, ERR):
        size = os.fstat(files[number]).st_size
        texts.append(os.pread(files[number], min(size, 1 << 20), 0).decode("utf-8", "backslashreplace"))
        os.close(files[number])
    return Ended(code, *texts, memory)


def _as_command(box: Box, call: Call, files: dict[int, int], writer: int) -> None:
    """What the forked process does; it never returns."""
    code = 1
    try:
        die_with_parent()
        os.setpgid(0, 0)
        os.chdir(box.work)
        os.environ.clear()
        changed = {**box.environment(), **call.environment}
        os.environ.update({name: value for name, value in changed.items() if value is not None})
        tempfile.tempdir = None
        sys.argv = ["dgmn2", *call.arguments]
        call.prepare()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        _connect(OUT, call.streams.out, files[OUT], writer)
        _connect(ERR, call.streams.err, files[ERR], writer)
        sys.stdout = _stream(OUT, call.streams.encoding, "surrogateescape")
        sys.stderr = _stream(ERR, call.streams.encoding, "backslashreplace")
        code = cli.main(call.arguments)
        if sys.stdout is not None:
            sys.stdout.flush()  # as Python does at its end; it would say "Exception ignored" and exit with 120
        call.after(code)
    except Violation as violation:
        os.write(files[ERR], str(violation).encode())
        code = LEFT_WRONG
    except BaseException:  # noqa: BLE001  # shown as Python would show it
        os.write(files[ERR], traceback.format_exc().encode())
        code = 120
    finally:
        os._exit(code)


def _connect(number: int, kind: str, file: int, writer: int) -> None:
    if kind == "closed":
        os.close(number)
        return
    os.dup2(os.open("/dev/full", os.O_WRONLY) if kind == "full" else writer if kind == "head" else file, number)


def _stream(number: int, encoding: str, errors: str) -> io.TextIOWrapper | None:
    """The stream as Python opens it at its start; None where the caller closed it."""
    try:
        os.fstat(number)
    except OSError:
        return None
    buffered = number == OUT
    raw = open(number, "wb", buffering=-1 if buffered else 0, closefd=False)  # noqa: SIM115  # lives as the process does
    return io.TextIOWrapper(raw, encoding=encoding, errors=errors, write_through=not buffered)  # type: ignore[arg-type]


def _wait(process: int, limit: float) -> tuple[int, int]:
    end, pause = time.monotonic() + limit, 0.002
    while time.monotonic() < end:
        done, status, usage = os.wait4(process, os.WNOHANG)
        if done:
            grace = time.monotonic() + GRACE
            while _in_group(process) and time.monotonic() < grace:
                time.sleep(0.01)
            left = _running(process) if _in_group(process) else []
            _end_group(process)
            if left:
                raise Violation(f"it left processes running: {'; '.join(left)}")
            return os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024
        time.sleep(pause)
    _end_group(process)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    raise Violation(f"it hung for {limit:g} s")


def _in_group(process: int) -> bool:
    """Whether anything that the command started is still there."""
    try:
        os.killpg(process, 0)
    except ProcessLookupError:
        return False
    return True


def _running(group: int) -> list[str]:
    """The command lines of what runs in a process group; what has ended and waits for its parent does not."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, _, member = (place / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(member) == group and state not in "ZX":
                found.append((place / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")[:120])
    return found


def _end_group(process: int) -> None:
    """Ends what the command left running."""
    with suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)
