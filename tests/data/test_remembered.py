"""A second check decodes nothing, and looks at what has changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dgmn2cli.data import check as checking
from dgmn2cli.data import dataset, images
from dgmn2cli.data.catalog import open_dataset
from dgmn2cli.data.check import Remembered, check_dataset, fingerprint
from dgmn2cli.data.images import write_png

SIZE = (6, 8)
IDS = (np.arange(48) % 3).reshape(SIZE).astype(np.uint8)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are read, as they are."""
    files: list[str] = []

    def counted(module: object, name: str) -> None:
        real: Callable[..., object] = getattr(module, name)

        def reading(path: Path, *arguments: object, **named: object) -> object:
            files.append(Path(path).name)
            return real(path, *arguments, **named)

        monkeypatch.setattr(module, name, reading)

    counted(checking, "decode_file")
    counted(checking, "hash_file")
    counted(dataset, "read_label")
    counted(images, "read_bytes")
    return files


def make(root: Path, count: int) -> Path:
    (root / "images").mkdir(parents=True)
    (root / "dataset.toml").write_text('classes = ["a", "b", "c"]\nimages = "images"\nlabels = "labels"')
    for number in range(count):
        write_png(root / f"images/{number:04}.png", np.full((*SIZE, 3), number % 256, np.uint8))
        write_png(root / f"labels/{number:04}.png", IDS)
    return root


def test_nothing_is_decoded_the_second_time(tmp_path: Path, decoded: list[str]) -> None:
    root, memory = make(tmp_path / "set", 200), tmp_path / "cache"
    first = check_dataset(open_dataset(root, "all"), memory=memory)
    whole = fingerprint(open_dataset(root, "all"), memory=memory)
    assert len(decoded) == 4 * 200 + 400
    decoded.clear()
    before = sorted(path.name for path in root.rglob("*"))
    assert check_dataset(open_dataset(root, "all"), memory=memory) == first
    assert fingerprint(open_dataset(root, "all"), memory=memory) == whole
    assert decoded == []
    assert sorted(path.name for path in root.rglob("*")) == before


def test_only_what_changed_is_looked_at_and_faults_are_not_remembered(tmp_path: Path, decoded: list[str]) -> None:
    root, memory = make(tmp_path / "set", 8), tmp_path / "cache"
    (root / "images/0003.png").write_bytes(b"no image")
    for _ in range(2):
        assert len(check_dataset(open_dataset(root, "all"), memory=memory).faults) == 1
    decoded.clear()
    write_png(root / "images/0003.png", np.zeros((*SIZE, 3), np.uint8))
    write_png(root / "labels/0005.png", np.zeros(SIZE, np.uint8))
    write_png(root / "labels/0006.png", np.zeros((3, 3), np.uint8))
    os.utime(root / "images/0007.png", ns=(5, 5))
    report = check_dataset(open_dataset(root, "all"), memory=memory)
    assert set(decoded) == {"0003.png", "0005.png", "0006.png", "0007.png"}
    assert len(report.faults) == 1
    assert "it is 3x3" in report.faults[0]
    anew = check_dataset(open_dataset(root, "all"))
    assert anew == report


def test_other_settings_count_anew(tmp_path: Path) -> None:
    root, memory = make(tmp_path / "set", 3), tmp_path / "cache"
    assert check_dataset(open_dataset(root, "all"), memory=memory).faults == ()
    assert len(check_dataset(open_dataset(root, "all"), memory=memory, max_pixels=20).faults) == 3
    text = (root / "dataset.toml").read_text()
    (root / "dataset.toml").write_text(text.replace(', "c"', ""))
    assert all("it holds 2" in fault for fault in check_dataset(open_dataset(root, "all"), memory=memory).faults)
    (root / "dataset.toml").write_text(text + "\nignore = 2")
    assert check_dataset(open_dataset(root, "all"), memory=memory).ignored_share == pytest.approx(1 / 3)
    colours = text + '\npalette = [[0, 0, 0], [1, 1, 1], [2, 2, 2]]\nlabel_format = "colour"'
    (root / "dataset.toml").write_text(colours)
    assert check_dataset(open_dataset(root, "all"), memory=memory).faults == ()
    (root / "dataset.toml").write_text(colours.replace("[2, 2, 2]", "[3, 3, 3]"))
    assert len(check_dataset(open_dataset(root, "all"), memory=memory).faults) == 3


def test_a_damaged_or_unwritable_memory_is_none(tmp_path: Path, decoded: list[str]) -> None:
    root, memory = make(tmp_path / "set", 2), tmp_path / "cache"
    first = check_dataset(open_dataset(root, "all"), memory=memory)
    (file,) = memory.iterdir()
    whole = file.read_bytes()
    for damaged in (b"", whole[:-1], whole.replace(b", 16]", b", 17]"), b"{}", whole[1:]):
        file.write_bytes(damaged)
        decoded.clear()
        assert check_dataset(open_dataset(root, "all"), memory=memory) == first
        assert len(decoded) == 8
    file.unlink()
    file.mkdir()
    assert check_dataset(open_dataset(root, "all"), memory=memory) == first
    assert check_dataset(open_dataset(root, "all"), memory=root / "dataset.toml") == first


def test_names_that_are_no_text_are_remembered(tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    odd.write_bytes(b"x")
    for found in ([1], [2]):
        remembered = Remembered(tmp_path, tmp_path / "cache")
        assert remembered.recall(odd, "kind", lambda found=found: found) == [1]
        remembered.save()
