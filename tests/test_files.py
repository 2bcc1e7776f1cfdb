"""Files that appear whole or not at all, and never in the place of something that is no file."""

import os

import pytest

from dgmn2cli.errors import ResourceError
from dgmn2cli.files import atomic_write, open_in_place


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
