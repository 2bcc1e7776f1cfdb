"""Commands on bad disks: full ones, read-only ones, and links laid where something is to be written."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import mounts

from dgmn2cli.zoo import cache as caching
from dgmn2cli.zoo.bundle import INDEX
from faults.bad_files import goods
from faults.commands import DATA, SMALL, TRAIN, Setup, fill, kind_of
from faults.sandbox import Box, Call
from faults.verdicts import Faults, Kind, Skipped, Violation

# what was there before: looks like a bundle or a report, so that it may be replaced
OLD = {".tar": INDEX.encode() + b"\0 of before", ".json": b'{"of": "before"}'}
# name -> the command, what it writes to `out`, at least so many bytes (0: not known)
WRITERS: dict[str, tuple[tuple[str, ...], str, int]] = {
    "convert": (("convert", "model.pth", "out/x.safetensors", "--overwrite"), "x.safetensors", 55_000_000),
    "bundle": (("download", "--offline", "--bundle", "out/x.tar"), "x.tar", 55_000_000),
    "--dest": (("download", "--offline", "--dest", "out"), "", 55_000_000),
    "zoo pin": (("zoo", "pin", "-o", "out/x.json", "--overwrite"), "x.json", 10_000),
    "infer": (
        ("infer", "photo.png", "-o", "out", *SMALL, "--offline", "--overwrite", "--save", "probs"),
        "photo_probs.npz", 5000,
    ),
    "eval": (("eval", *DATA, *SMALL, "--offline", "--report", "out/x.json", "--save-preds", "out/p"), "x.json", 0),
    "submit": (("submit", *DATA, *SMALL, "--offline", "-o", "out/sub", "--zip", "out/x.zip"), "x.zip", 0),
    "train": (("train", *TRAIN, "--from", "scratch", "--threads", "1"), "", 50_000_000),
}  # fmt: skip


def whole_box(box: Box) -> None:
    """Everything a command may want, and an empty `out`."""
    fill(box, data=True, cached=True)
    os.link(goods().model, box.work / "model.pth")
    (box.work / "out").mkdir()


def full_disk_setups(rng: random.Random) -> Iterator[Setup]:
    """Each command that writes, on a disk that has too little room or none; what was there before must stay."""
    for name, (arguments, target, needed) in WRITERS.items():
        for room in (0, 1, 0.5, 0.9, 0.999, -1):
            size = 4096 if room in (0, -1) else int(room * needed) if room < 1 else 3 * 4096
            if room in (0.5, 0.9, 0.999) and not needed:
                continue
            yield f"{name}, a disk of {size:,} bytes", _on_small_disk(arguments, target, size, 3 if room == -1 else 0)
    for room in (4096, 100_000, 20_000_000, 55_000_000):
        yield f"download, a cache of {room:,} bytes", _small_cache(room)


def _on_small_disk(arguments: tuple[str, ...], target: str, size: int, files: int) -> Callable[[Box], Call]:
    def prepare(box: Box) -> Call:
        whole_box(box)
        out = box.work / "out"

        def shrink() -> None:
            mounts.go_private()
            mounts.mount_small(out, size, files)
            if target:
                (out / target).write_bytes(_old(target))

        def look(code: int) -> None:
            if target and (out / target).read_bytes() != _old(target):
                raise Violation("the old file is not what it was")
            _no_parts(out)

        return Call(arguments, {5}, prepare=shrink, after=look)

    return prepare


def _old(name: str) -> bytes:
    return OLD.get(Path(name).suffix, b"what was there before")


def _no_parts(folder: Path) -> None:
    left = [str(path) for path in folder.rglob("*.part")]
    if left:
        raise Violation(f"left behind: {left}")


def _small_cache(size: int) -> Callable[[Box], Call]:
    def prepare(box: Box) -> Call:
        whole_box(box)

        def shrink() -> None:
            mounts.go_private()
            mounts.mount_small(box.cache, size)

        def look(code: int) -> None:
            _no_parts(box.cache)
            if any((box.cache / "files").glob("*")):
                raise Violation("something was published")

        return Call(("download", "setr_pup-tiny", "--from", "model.pth"), {5}, prepare=shrink, after=look)

    return prepare


def read_only_setups(rng: random.Random) -> Iterator[Setup]:
    """Outputs on a read-only disk are refused; a read-only cache with the good file serves, with a bad one does not."""
    for name, (arguments, _, _) in WRITERS.items():
        yield f"{name}, output on a read-only disk", _read_only(arguments, "out", {5})
    readers = {
        "download": ("download", "--offline"), "zoo verify": ("zoo", "verify"), "zoo show": ("zoo", "show"),
        "infer": ("infer", "photo.png", "-o", "out", *SMALL, "--offline"),
        "eval": ("eval", *DATA, *SMALL, "--offline", "--limit", "1"), "zoo pin": ("zoo", "pin", "-o", "out/x.json"),
        "submit": ("submit", *DATA, *SMALL, "--offline", "-o", "out/sub"), "info": ("info", "model.pth"),
        "bundle": ("download", "--offline", "--bundle", "out/x.tar"),
    }  # fmt: skip
    bad = {"zoo verify": {1}, "zoo show": {0}, "info": {0}}
    for name, arguments in readers.items():
        yield f"{name}, a read-only cache", _read_only(arguments, "cache", {0})
        yield f"{name}, a read-only cache, its file cut", _read_only(arguments, "cache", bad.get(name, {3}), _cut)
    adopting = ("download", "setr_pup-tiny", "--from", "model.pth")
    yield "download --from, a read-only cache", _read_only(adopting, "cache", {5})
    yield "download --from, a read-only empty cache", _read_only(adopting, "cache", {5}, lambda box: _empty(box))


def _cut(box: Box) -> None:
    path = caching.file_path(box.cache, goods().sha256)
    content = path.read_bytes()[:-1]
    path.unlink()
    path.write_bytes(content)


def _empty(box: Box) -> None:
    shutil.rmtree(box.cache)
    box.cache.mkdir()


def _read_only(
    arguments: tuple[str, ...], what: str, codes: set[int], change: Callable[[Box], object] = lambda box: None
) -> Callable[[Box], Call]:
    def prepare(box: Box) -> Call:
        whole_box(box)
        change(box)

        def freeze() -> None:
            mounts.go_private()
            mounts.make_read_only(box.cache if what == "cache" else box.work / "out")
            os.chdir(box.work)  # into the new mount

        return Call(arguments, codes, prepare=freeze)

    return prepare


def link_setups(rng: random.Random) -> Iterator[Setup]:
    """Links laid where a command writes: it is refused or replaces the link; what the link points to stays as it is."""
    for name, (arguments, target, _) in WRITERS.items():
        names = {target} - {""} or {
            "--dest": {"setr_pup_dgmn2_tiny_4x2_769x769_40k_cityscapes.pth"},
            "train": {"run/config.toml", "run/best.pth", "run/last.pth", "run/report.json"},
        }[name]
        for file in sorted(names):
            for about, points_to in (("a file", "../victim"), ("nothing", "../elsewhere"), ("a folder", "../folder")):
                yield f"{name}, out/{file} is a link to {about}", _linked(arguments, file, points_to)
    for about, place in (
        ("the file", lambda box: caching.file_path(box.cache, goods().sha256)),
        ("the note", lambda box: next((box.cache / "index").iterdir())),
        ("the lock", lambda box: box.cache / "parts" / "setr_pup-tiny.lock"),
    ):  # fmt: skip
        for more in ((), ("--force",)):
            yield f"download {' '.join(more)}, {about} in the cache is a link", _linked_cache(place, more)


def _linked(arguments: tuple[str, ...], file: str, points_to: str) -> Callable[[Box], Call]:
    def prepare(box: Box) -> Call:
        whole_box(box)
        (box.work / "victim").write_bytes(_old(file))
        (box.work / "folder").mkdir()
        link = box.work / "out" / file
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(Path("../" * file.count("/")) / points_to)
        return Call(arguments, {0, 2, 5, 6})

    return prepare


def _linked_cache(place: Callable[[Box], Path], more: tuple[str, ...]) -> Callable[[Box], Call]:
    """The bytes come from a file; a link in the cache is used if what it leads to has the right hash, never written."""

    def prepare(box: Box) -> Call:
        whole_box(box)
        target = place(box)
        target.parent.mkdir(exist_ok=True)
        victim = box.work / "victim"
        victim.write_bytes(target.read_bytes() if target.exists() else b"before")
        target.unlink(missing_ok=True)
        target.symlink_to(victim)
        return Call(("download", "setr_pup-tiny", "--from", "model.pth", *more), {0})

    return prepare


def _where_permitted(
    setups: Callable[[random.Random], Iterator[Setup]],
) -> Callable[[random.Random, Path, int], Faults]:
    made = kind_of(setups)

    def faults(rng: random.Random, folder: Path, count: int) -> Faults:
        if mounts.permitted():
            yield from made(rng, folder, count)
            return
        for index in range(count):
            yield f"{index} not permitted", _not_permitted

    return faults


def _not_permitted() -> str:
    raise Skipped("mounting in a private namespace is not permitted here")


KINDS = (
    Kind("command line, full disk", _where_permitted(full_disk_setups), 46, 2, patience=90, forks=True),
    Kind("command line, read-only disk", _where_permitted(read_only_setups), 28, 2, patience=90, forks=True),
    Kind("command line, links laid", kind_of(link_setups), 39, 2, patience=90, forks=True),
)
