"""Finding image files: one set of rules for folders, globs, lists and data sets."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import dropwhile
from pathlib import Path

from dgmn2cli.data.names import comparable
from dgmn2cli.errors import DataError
from dgmn2cli.files import absence
from dgmn2cli.observer import Observer, Silent

# every format that `read_image` decodes, as files of it are named; compared in lower case
SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif",
    ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip
_LITTER = frozenset({"thumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "system volume information"})
_NAMED = 3  # examples in a note
_KERNELS = ("/proc", "/sys")  # what the kernel shows there are no files, and links lead from there everywhere
MOST_FOLDERS, MOST_ENTRIES = 100_000, 5_000_000  # that one search goes through


_Identity = tuple[int, int]


@dataclass(frozen=True)
class Found:
    """What a search found."""

    files: tuple[Path, ...]  # by name; each lies below the folder that was searched, links not resolved
    notes: tuple[str, ...]  # one line for each kind of entry left out, with how many and the first names


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name is hidden or left by a desktop (`._x.jpg`, `Thumbs.db`, `__MACOSX`)."""
    return name.startswith(".") or name.lower() in _LITTER


def ends_with(name: str, suffixes: Sequence[str]) -> str:
    """The first of `suffixes` that `name` ends in, in any case and Unicode form; empty if there is none."""
    folded = comparable(name).lower()
    return next((suffix for suffix in suffixes if folded.endswith(comparable(suffix).lower())), "")


def find_files(
    folder: Path, suffixes: Sequence[str] = SUFFIXES, *, name_others: bool = True, observer: Observer = Silent()
) -> Found:
    """The files below `folder` whose names end in one of `suffixes`, in any case.

    Links to files and folders are followed, but not in circles. Left out, and named in a note: what is hidden or left
    by a desktop, folders that are named like images, that may not be read or are the kernel's, files of other names.
    What is no regular file but named like one (a pipe, a link that leads nowhere) is found: reading it says what it is.

    Args:
        folder: where to search, with its subfolders.
        suffixes: what the names end in.
        name_others: whether files of other names are noted.
        observer: told of each folder.

    Raises:
        DataError: there is no such folder, or the search leads to more than 100,000 folders or 5,000,000 entries.
    """
    if not os.path.isdir(folder):
        raise DataError("cannot search the folder", where=folder, why=absence(folder, "folder"), hint="Check the path.")
    endings = tuple(comparable(suffix).lower() for suffix in suffixes)
    found: list[tuple[str, Path]] = []
    left_out: dict[str, list[str]] = {}
    pending: list[tuple[str, tuple[_Identity, ...]]] = [("", ())]
    bounds = _Bounds(folder, observer)
    while pending:
        inside, above = pending.pop()
        here = os.path.join(folder, inside) if inside else str(folder)
        try:
            own = _identity(here)
            if own in above:
                left_out.setdefault("a link in a circle", []).append(inside)
                continue
            if own[0] in bounds.kernels:
                left_out.setdefault("of the kernel", []).append(inside or str(folder))
                continue
            with os.scandir(here) as scan:
                entries = list(scan)
        except OSError as error:
            left_out.setdefault(f"a folder that cannot be read ({error.strerror})", []).append(inside)
            continue
        bounds.count(len(entries))
        for entry in entries:
            name = os.path.join(inside, entry.name)
            matches = comparable(entry.name).lower().endswith(endings)
            if is_litter(entry.name):
                left_out.setdefault("hidden, or left by a desktop", []).append(name)
            elif _is_folder(entry):
                if matches:
                    left_out.setdefault("a folder named like a file", []).append(name)
                pending.append((name, (*above, own)))
            elif matches:
                found.append((comparable(name), Path(folder, name)))
            elif name_others:
                left_out.setdefault("of another suffix", []).append(name)
    notes = tuple(_note(folder, kind, names) for kind, names in sorted(left_out.items()))
    return Found(tuple(path for _, path in sorted(found)), notes)


def find_matches(pattern: str, observer: Observer = Silent()) -> Found:
    """The files that a glob matches (`**` for any folders); hidden ones only where the pattern names them.

    Every file counts, whatever its suffix; folders and what a desktop leaves are left out, and named in a note. `**`
    follows links, but not in circles.

    Args:
        pattern: the glob.
        observer: told of each folder that `**` stands for.

    Raises:
        DataError: nothing matches, or `**` stands for more folders than `find_files` goes through.
    """
    try:
        matches = sorted(set(_expand(pattern, _Bounds(pattern, observer))), key=comparable)
    except ValueError:  # a NUL byte
        matches = []
    folders = [match for match in matches if os.path.isdir(match)]
    litter = [match for match in matches if is_litter(Path(match).name) and match not in folders]
    files = tuple(Path(match) for match in matches if match not in folders and match not in litter)
    if not files:
        raise DataError("no file matches", where=pattern, hint="Give files, folders, globs or @list.txt.")
    kinds = {"a folder": folders, "hidden, or left by a desktop": litter}
    return Found(files, tuple(_note(pattern, kind, names) for kind, names in kinds.items() if names))


def _expand(pattern: str, bounds: _Bounds) -> Iterator[str]:
    """What a glob matches; not by Python's `**`, which goes round in circles of links."""
    parts = pattern.split(os.sep)
    if "**" not in parts:
        yield from glob.iglob(pattern)
        return
    place = parts.index("**")
    head = os.sep.join(parts[:place]) + os.sep * (place > 0)
    rest = list(dropwhile(lambda part: part == "**", parts[place:])) or ["*"]
    for start in glob.iglob(head) if head else [""]:
        pending: list[tuple[str, tuple[_Identity, ...]]] = [(start, ())]
        while pending:
            folder, above = pending.pop()
            with suppress(OSError):
                own = _identity(folder or ".")
                if own in above or own[0] in bounds.kernels:
                    continue
                yield from _expand(os.path.join(glob.escape(folder), *rest), bounds)
                with os.scandir(folder or ".") as scan:
                    entries = list(scan)
                bounds.count(len(entries))
                inside = [entry.name for entry in entries if _is_folder(entry) and not is_litter(entry.name)]
                pending += [(os.path.join(folder, name), (*above, own)) for name in inside]


def _identity(folder: str) -> _Identity:
    """What tells a folder from others, whatever link led to it."""
    found = os.stat(folder)
    return found.st_dev, found.st_ino


class _Bounds:
    """How far one search has come; it tells an observer and ends what goes too far."""

    def __init__(self, where: str | Path, observer: Observer) -> None:
        self.where, self.observer, self.folders, self.entries = where, observer, 0, 0
        self.kernels = {os.stat(path).st_dev for path in _KERNELS if os.path.ismount(path)}
        observer.begin(f"searching {where}", unit="folders")

    def count(self, entries: int) -> None:
        """One folder more, which has so many entries."""
        self.folders, self.entries = self.folders + 1, self.entries + entries
        self.observer.advance(detail=f"{self.folders:,} folders, {self.entries:,} entries")
        if self.folders > MOST_FOLDERS or self.entries > MOST_ENTRIES:
            what = f"{MOST_FOLDERS:,} folders" if self.folders > MOST_FOLDERS else f"{MOST_ENTRIES:,} entries"
            why, hint = f"the search, which follows links, leads to more than {what}", "Name a folder further down."
            raise DataError("cannot search the folder", where=self.where, why=why, hint=hint)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle: reading it says so
        return False


def _note(where: str | Path, kind: str, names: Sequence[str]) -> str:
    some = ", ".join(sorted(names)[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
    return f"{where}: left out {len(names)} ({kind}): {some}"
