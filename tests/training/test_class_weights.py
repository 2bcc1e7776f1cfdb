"""Loss weights from a file of the user's: what is read, and what is refused by its line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dgmn2cli.errors import ConfigError
from dgmn2cli.training.initial_weights import class_weights_from

NAMES = ("road", "sky")


@pytest.mark.parametrize(
    "content",
    [
        b"road = 1\nsky = 2.5\n",
        b"# by hand\n1\n\n2.5  # rare\n",
        b"\xef\xbb\xbfsky = 2.5\r\nroad = 1\r\n",
    ],
)
def test_what_users_write_is_read(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "weights.txt"
    path.write_bytes(content)
    assert class_weights_from(str(path), (), NAMES) == (1.0, 2.5)
    assert class_weights_from("auto", (0.5, 1.5), NAMES) == (0.5, 1.5)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"road = 1\n\nsky = heavy\n", "line 3: 'heavy' is no number"),
        (b"road = 1\nsky = \xff\n", "line 2 is not UTF-8"),
        (b"road = 1\nsky = 2\0\n", "line 2 holds a NUL"),
        (b"road = 1\n", "'sky'"),
        (b"road = 1\nsky = nan\n", "a weight from 0"),
        (b"road = 1\nsky = -1\n", "a weight from 0"),
        (b"road = 1\nsea = 2\n", "'sea'"),
        (b"#" * 2_000_000, "larger than"),
    ],
)
def test_what_is_wrong_is_named(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.txt"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=says):
        class_weights_from(str(path), (), NAMES)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="wanted a file"):
        class_weights_from(str(tmp_path / "pipe"), (), NAMES)
