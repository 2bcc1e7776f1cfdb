"""Files that appear whole or not at all, and never in the place of something that is no file."""

import hashlib
import os
import signal
import subprocess
import sys
import threading

import pytest

from dgmn2cli.errors import ConfigError, DataError, IntegrityError, ResourceError
from dgmn2cli.files import (
    atomic_write,
    hash_file,
    open_in_place,
    open_regular,
    read_bounded,
)
from dgmn2cli.folders import atomic_folder, temporary_folder


def test_a_file_is_replaced_and_nothing_is_left(tmp_path):
    path = tmp_path / "new" / "report.json"
    assert atomic_write(path, "first") == path
    atomic_write(path, lambda file: file.write(b"second"))
    assert path.read_bytes() == b"second"
    with pytest.raises(ZeroDivisionError):
        atomic_write(path, lambda file: file.write(b"x" * (1 // 0)))
    assert [p.name for p in path.parent.iterdir()] == ["report.json"]
    assert path.read_bytes() == b"second"


def test_what_is_no_file_is_never_replaced(tmp_path):
    """As root, a rename over a device would replace it: `--report /dev/null` must not cost a machine its /dev/null."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "folder").mkdir()
    before = sorted(path.name for path in tmp_path.iterdir())
    for name, kind in (("pipe", "pipe, socket or device"), ("link", "pipe, socket or device"), ("folder", "a folder")):
        with pytest.raises(ResourceError, match=kind):
            atomic_write(tmp_path / name, "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert (tmp_path / "pipe").is_fifo()


def test_a_link_is_replaced_not_followed(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "to-mine").symlink_to("mine")
    (tmp_path / "to-nothing").symlink_to("nothing")
    for name in ("to-mine", "to-nothing"):
        atomic_write(tmp_path / name, "new")
        assert not (tmp_path / name).is_symlink()
    assert (tmp_path / "mine").read_text() == "mine"
    assert not (tmp_path / "nothing").exists()


def test_what_is_written_in_place_is_a_plain_file_of_that_very_name(tmp_path):
    """A link planted as a run's log would have every step appended to the file it leads to."""
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "to-mine").symlink_to("mine")
    (tmp_path / "to-nothing").symlink_to("nothing")
    (tmp_path / "to-itself").symlink_to("to-itself")
    (tmp_path / "to-null").symlink_to("/dev/null")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    before = sorted(path.name for path in tmp_path.iterdir())
    kinds = {"to-mine": "a link", "to-nothing": "a link", "to-itself": "a link", "to-null": "a link"}
    kinds |= {"pipe": "a pipe, socket or device", "folder": "a folder"}
    for name, kind in kinds.items():
        with pytest.raises(ResourceError, match=f"{name}.: {kind} is there, not a plain file. Remove it, or"):
            open_in_place(tmp_path / name, os.O_WRONLY | os.O_APPEND)
    with pytest.raises(ResourceError, match="Remove it"):
        open_in_place(tmp_path / "pipe", os.O_RDWR)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert (tmp_path / "mine").read_text() == "mine"
    for _ in range(2):
        with os.fdopen(open_in_place(tmp_path / "log", os.O_WRONLY | os.O_APPEND), "ab") as file:
            file.write(b"line\n")
    assert (tmp_path / "log").read_text() == "line\nline\n"


def test_hashing(tmp_path):
    path, content = tmp_path / "file", b"weights" * 300_000
    path.write_bytes(content)
    steps = []
    assert hash_file(path, steps.append) == hashlib.sha256(content).hexdigest()
    assert sum(steps) == len(content)
    assert len(steps) > 1


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to-pipe").symlink_to("pipe")
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    for bad in (tmp_path, tmp_path / "pipe", tmp_path / "to-pipe", "/dev/zero"):
        for use in (open_regular, hash_file, lambda path: read_bounded(path, 10)):
            with pytest.raises(IntegrityError, match="wanted a file"):
                use(bad)
        with pytest.raises(DataError):
            open_regular(bad, "cannot read the image", kind=DataError)
    for absent in (tmp_path / "none", tmp_path / "file" / "x", "nul\0byte", "x" * 5000):
        for use in (open_regular, hash_file, lambda path: read_bounded(path, 10)):
            with pytest.raises(ResourceError):
                use(absent)
        with pytest.raises(ConfigError):
            read_bounded(absent, 10, unreadable=ConfigError)
    assert read_bounded(tmp_path / "link", 5) == b"12345"
    with pytest.raises(IntegrityError, match="larger than 4 bytes"):
        read_bounded(tmp_path / "file", 4)


def test_a_file_that_is_called_regular_and_is_not():
    path = "/proc/self/mem"
    if not os.access(path, os.R_OK):
        pytest.skip(f"{path} is not here, or only for root")
    for use in (open_regular, hash_file, lambda path: read_bounded(path, 10)):
        with pytest.raises(ResourceError):
            use(path)


@pytest.mark.parametrize("mask", [0o077, 0o027, 0o002])
def test_files_get_the_modes_of_the_umask_whatever_the_threads_do(tmp_path, mask):
    """The mask belongs to the process: a thread that set it to read it would set it for all others."""
    interval, before = sys.getswitchinterval(), os.umask(mask)
    sys.setswitchinterval(1e-6)
    try:
        threads = [
            threading.Thread(target=lambda k=k: [atomic_write(tmp_path / f"{k}_{i}", b"x") for i in range(25)])
            for k in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
        found = os.umask(before)
    assert found == mask
    modes = [path.stat().st_mode & 0o777 for path in tmp_path.iterdir()]
    assert modes == [0o666 & ~mask] * 100


WRITER = """
import sys
from dgmn2cli.files import atomic_write
def write(file):
    file.write(b"x")
    file.flush()
    print("writing", flush=True)
    sys.stdin.readline()
    file.write(b"y")
atomic_write(sys.argv[1], write)
"""


def _writer(path):
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "writing\n"
    return process


def test_a_live_writer_keeps_its_temporary_file_whatever_its_number_means_here(tmp_path):
    """In another container's process namespace the number in the name is nobody's."""
    path = tmp_path / "report.json"
    with _writer(path) as writer:
        (part,) = tmp_path.glob(".report.json.*.part")
        elsewhere = part.with_name(part.name.replace(f".{writer.pid}.", ".999999999."))
        part.rename(elsewhere)
        atomic_write(path, b"z")
        assert elsewhere.read_bytes() == b"x"
        elsewhere.rename(part)
        writer.communicate("go\n", timeout=20)
    assert writer.returncode == 0
    assert path.read_bytes() == b"xy"
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_a_killed_writer_leaves_nothing_for_long(tmp_path):
    path = tmp_path / "report.json"
    stranger = tmp_path / ".report.json.notes.part"
    stranger.write_text("mine")
    with _writer(path) as writer:
        writer.send_signal(signal.SIGKILL)
        writer.wait(timeout=20)
    assert len(list(tmp_path.glob(".report.json.*.part"))) == 2
    atomic_write(path, b"z")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".report.json.notes.part", "report.json"]


def test_long_names_in_any_script_are_written(tmp_path):
    for name in ("x" * 255, "字" * 85):
        assert atomic_write(tmp_path / name, b"z").read_bytes() == b"z"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "deep" / "folder"
    with atomic_folder(target) as part:
        assert (part.parent, target.exists()) == (target.parent, False)
        atomic_write(part / "a", "1")
    assert os.listdir(target.parent) == ["folder"]
    assert (target / "a").read_text() == "1"
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "deep" / "other") as part:
        atomic_write(part / "a", str(1 // 0))
    assert os.listdir(target.parent) == ["folder"]
    with pytest.raises(ResourceError), atomic_folder(target):  # it holds a file
        pass
    assert os.listdir(target.parent) == ["folder"]
    assert os.listdir(target) == ["a"]


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_takes_anothers_place_at_once(tmp_path, monkeypatch, exchanges):
    target = tmp_path / "folder"
    atomic_write(target / "deep" / "old", "1")
    if not exchanges:
        monkeypatch.setattr("dgmn2cli.folders.ctypes.CDLL", lambda name: None)
    with pytest.raises(ZeroDivisionError), atomic_folder(target, overwrite=True) as part:
        atomic_write(part / "new", str(1 // 0))
    assert (os.listdir(tmp_path), os.listdir(target)) == (["folder"], ["deep"])
    with atomic_folder(target, overwrite=True) as part:
        atomic_write(part / "new", "2")
        assert os.listdir(target) == ["deep"]
    assert (os.listdir(tmp_path), os.listdir(target)) == (["folder"], ["new"])


def test_what_a_killed_writer_of_a_folder_left_is_removed(tmp_path):
    target = tmp_path / "model"
    script = "import sys, dgmn2cli.files as f, dgmn2cli.folders as g, pathlib\n"
    script += "with g.atomic_folder(pathlib.Path(sys.argv[1])) as part:\n"
    script += "    f.atomic_write(part / 'a', '1')\n    print(flush=True)\n    input()\n"
    command = [sys.executable, "-c", script, str(target)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout
        writer.stdout.readline()
        with atomic_folder(tmp_path / "other"):
            pass
        with atomic_folder(target):  # beside a living one
            assert len(list(tmp_path.glob(".model.*.part"))) == 2
        assert len(list(tmp_path.glob(".model.*.part"))) == 1
        writer.kill()
        writer.wait(timeout=20)
    assert len(list(tmp_path.glob(".model.*.part"))) == 1
    with atomic_folder(target):
        pass
    assert sorted(os.listdir(tmp_path)) == ["model", "other"]


def test_a_temporary_folder_is_the_users_own_and_what_a_killed_process_left_is_removed(tmp_path, monkeypatch):
    script = "import dgmn2cli.folders as f\nwith f.temporary_folder('dgmn2-x') as made:\n"
    script += "    (made / 'a').touch()\n    print(made, flush=True)\n    input()\n"
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        theirs = holder.stdout.readline().strip()
        with temporary_folder("dgmn2-x") as mine:
            assert sorted(tmp_path.iterdir()) == sorted(map(type(mine), (theirs, mine)))
            assert mine.stat().st_mode & 0o777 == 0o700
        holder.kill()
        holder.wait(timeout=20)
    assert os.listdir(theirs) == ["a"]
    with temporary_folder("dgmn2-x") as mine:
        assert list(tmp_path.iterdir()) == [mine]
    assert os.listdir(tmp_path) == []
