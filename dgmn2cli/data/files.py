"""Finding image files: one set of rules for folders, globs, lists and data sets."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import dropwhile
from pathlib import Path

from dgmn2cli.data.names import base, comparable
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
_LITTER_LEFT, _OUTPUTS = "hidden, or left by a desktop", "the output folder"


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
    folder: Path,
    suffixes: Sequence[str] = SUFFIXES,
    *,
    name_others: bool = True,
    outputs: Path | None = None,
    observer: Observer = Silent(),
) -> Found:
    """The files below `folder` whose names end in one of `suffixes`, in any case.

    Links to files and folders are followed, but not in circles. Left out, and named in a note: what is hidden or left
    by a desktop, folders that are named like images, that may not be read or are the kernel's, files of other names.
    What is no regular file but named like one (a pipe, a link that leads nowhere) is found: reading it says what it is.

    Args:
        folder: where to search, with its subfolders.
        suffixes: what the names end in.
        name_others: whether files of other names are noted.
        outputs: a folder that is left out if the search leads to it.
        observer: told of each folder.

    Raises:
        DataError: there is no such folder, or the search leads to more than 100,000 folders or 5,000,000 entries.
    """
    if not os.path.isdir(folder):
        raise DataError("cannot search the folder", where=folder, why=absence(folder, "folder"), hint="Check the path.")
    endings = tuple(comparable(suffix).lower() for suffix in suffixes)
    found: list[tuple[str, Path]] = []
    walk = _Walk(folder, observer, outputs)
    for inside, entries in walk.folders(str(folder)):
        for entry in entries:
            name = os.path.join(inside, entry.name)
            matches = comparable(entry.name).lower().endswith(endings)
            if is_litter(entry.name):
                walk.leave(_LITTER_LEFT, name)
            elif _is_folder(entry):
                if matches:
                    walk.leave("a folder named like a file", name)
            elif matches:
                found.append((comparable(name), Path(folder, name)))
            elif name_others:
                walk.leave("of another suffix", name)
    return Found(tuple(path for _, path in sorted(found)), walk.notes())


def find_matches(pattern: str, observer: Observer = Silent(), outputs: Path | None = None) -> Found:
    """The files that a glob matches (`**` for any folders); hidden ones only where the pattern names them.

    Every file counts, whatever its suffix; folders and what a desktop leaves are left out, and named in a note. `**`
    follows links, but not in circles.

    Args:
        pattern: the glob.
        observer: told of each folder that `**` stands for.
        outputs: a folder that `**` does not lead to.

    Raises:
        DataError: nothing matches, or `**` stands for more folders than `find_files` goes through.
    """
    walk = _Walk(pattern, observer, outputs)
    try:
        matches = sorted(set(_expand(pattern, walk)), key=comparable)
    except ValueError:  # a NUL byte
        matches = []
    files, passed = [], walk.left.get(_OUTPUTS)  # whatever else `**` does not lead through is no match
    walk.left = {_OUTPUTS: passed} if passed else {}
    for match in matches:
        if os.path.isdir(match):
            walk.leave("a folder", match)
        elif is_litter(base(match)):
            walk.leave(_LITTER_LEFT, match)
        else:
            files.append(Path(match))
    if not files:
        raise DataError("no file matches", where=pattern, hint="Give files, folders, globs or @list.txt.")
    return Found(tuple(files), walk.notes())


def _expand(pattern: str, walk: _Walk) -> Iterator[str]:
    """What a glob matches; not by Python's `**`, which goes round in circles of links."""
    parts = pattern.split(os.sep)
    if "**" not in parts:
        yield from glob.iglob(pattern)
        return
    place = parts.index("**")
    head = os.sep.join(parts[:place]) + os.sep * (place > 0)
    rest = list(dropwhile(lambda part: part == "**", parts[place:])) or ["*"]
    for start in glob.iglob(head) if head else [""]:
        for inside, _ in walk.folders(start):
            yield from _expand(os.path.join(glob.escape(os.path.join(start, inside)), *rest), walk)


class _Walk:
    """One search through folders: how far it has come, what it leaves out, and where it ends."""

    def __init__(self, where: str | Path, observer: Observer, outputs: Path | None) -> None:
        self.where, self.observer, self.seen, self.entries = where, observer, 0, 0
        self.left: dict[str, list[str]] = {}
        self.outputs = os.stat(outputs) if outputs is not None and os.path.isdir(outputs) else None
        self.kernels = {os.stat(path).st_dev for path in _KERNELS if os.path.ismount(path)}
        observer.begin(f"searching {where}", unit="folders")

    def folders(self, top: str) -> Iterator[tuple[str, list[os.DirEntry[str]]]]:
        """`top` and the folders below it, relative to it, with what is in each; links are followed, not in circles."""
        pending: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", ())]
        while pending:
            inside, above = pending.pop()
            here = os.path.join(top, inside) if inside else top or "."
            try:
                status = os.stat(here)
                own = status.st_dev, status.st_ino  # what tells a folder from others, whatever link led to it
                if own in above or own[0] in self.kernels:
                    self.leave("a link in a circle" if own in above else "of the kernel", inside or top)
                    continue
                if above and self.outputs and os.path.samestat(status, self.outputs):
                    self.leave(_OUTPUTS, inside)
                    continue
                with os.scandir(here) as scan:
                    entries = list(scan)
            except OSError as error:
                self.leave(f"a folder that cannot be read ({error.strerror})", inside)
                continue
            self._count(len(entries))
            yield inside, entries
            below = [entry.name for entry in entries if _is_folder(entry) and not is_litter(entry.name)]
            pending += [(os.path.join(inside, name), (*above, own)) for name in below]

    def leave(self, kind: str, name: str) -> None:
        """Something is left out."""
        self.left.setdefault(kind, []).append(name)

    def notes(self) -> tuple[str, ...]:
        """What was left out, a line for each kind."""
        return tuple(
            f"{self.where}: left out {len(names)} ({kind}): {', '.join(sorted(names)[:_NAMED])}"
            + (", ..." if len(names) > _NAMED else "")
            for kind, names in sorted(self.left.items())
        )

    def _count(self, entries: int) -> None:
        self.seen, self.entries = self.seen + 1, self.entries + entries
        self.observer.advance(detail=f"{self.seen:,} folders, {self.entries:,} entries")
        if self.seen > MOST_FOLDERS or self.entries > MOST_ENTRIES:
            what = f"{MOST_FOLDERS:,} folders" if self.seen > MOST_FOLDERS else f"{MOST_ENTRIES:,} entries"
            why, hint = f"the search, which follows links, leads to more than {what}", "Name a folder further down."
            raise DataError("cannot search the folder", where=self.where, why=why, hint=hint)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle: reading it says so
        return False
