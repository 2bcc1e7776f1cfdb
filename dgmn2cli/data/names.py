"""Many names at once: kept small, told apart, and made short."""

from __future__ import annotations

import os
import unicodedata
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import chain, compress
from pathlib import Path

import numpy as np

_END = b"\xff"  # of a name; no byte of UTF-8
_BLOCK = 4096  # names that are taken out at a time


class Names(Sequence[str]):
    """Names in their order, kept as bytes: a million of 40 letters take 50 MB, as Python's strings twice as much."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._bytes, self._ends = bytearray(), array("Q")
        self.extend(names)

    def append(self, name: str) -> None:
        """A name more."""
        self._bytes += name.encode("utf-8", "surrogatepass") + _END
        self._ends.append(len(self._bytes))

    def extend(self, names: Iterable[str]) -> None:
        """Several names more."""
        for name in names:
            self.append(name)

    def only(self, kept: np.ndarray) -> Names:
        """The names at which `kept`, (N,) bool, is true; these names themselves where it is true of all."""
        return self if kept.all() else Names(compress(self, kept))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # one name; a slice gives a list of them
        numbers = range(len(self))[index]
        if isinstance(index, slice):
            return [self[number] for number in numbers]
        return self._between(numbers, numbers + 1)[0]

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), _BLOCK):
            yield from self._between(first, min(first + _BLOCK, len(self)))

    def _between(self, first: int, stop: int) -> list[str]:
        found = self._bytes[self._ends[first - 1] if first else 0 : self._ends[stop - 1]]
        return [name.decode("utf-8", "surrogatepass") for name in found.split(_END)[:-1]]


def comparable(name: str | Path) -> str:
    """A name as it is compared with others: in Unicode's composed form (NFC), folders apart by `/`."""
    text = os.fspath(name).replace(os.sep, "/")
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def absolute(path: str | Path, here: str) -> str:
    """The path from the root, as text, without what leads nowhere (`//`, `/./`, `/x/..`); links are not followed.

    Args:
        here: the current folder, which a relative path begins at.
    """
    text = os.fspath(path)
    if text[:1] != "/":
        text = f"{here}/{text}"
    return "/" + os.path.normpath(text).lstrip("/") if "/." in text or "//" in text or text[-1] == "/" else text


def base(path: str | Path) -> str:
    """What follows the last `/` of a path."""
    text = os.fspath(path)
    return text[text.rfind("/") + 1 :]


def naming(files: Collection[str | Path]) -> Callable[[str | Path], str]:
    """What names each of `files`: by its file name, if no two are alike, else with the folders that tell them apart."""
    if not repeated(map(base, files)).any():
        return base
    here, common, prefix = str(Path.cwd()), "", ""
    for path in (absolute(file, here) for file in files):  # a million: `commonpath` would split them all
        if not prefix or not path.startswith(prefix):
            folder = os.path.dirname(path)
            common = os.path.commonpath([common or folder, folder])
            prefix = os.path.join(common, "")
    return lambda file: absolute(file, here)[len(prefix) :]


def alike(keys: np.ndarray) -> np.ndarray:
    """(N,) bool: whether another of the whole numbers `keys`, (N,), is equal to it."""
    ordered = np.sort(keys)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(twice):
        return np.zeros(len(keys), bool)
    return twice[np.minimum(np.searchsorted(twice, keys), len(twice) - 1)] == keys


def repeated(names: Iterable[str]) -> np.ndarray:
    """(N,) bool: whether another of `names` is like it, by `comparable`. Takes some 20 bytes for each."""
    return alike(np.fromiter((hash(comparable(name)) for name in names), np.int64))


def short_names(names: Sequence[str], stems: Sequence[str]) -> list[str]:
    """For each of `names` its stem, the name without its suffix, where no other name or stem is like it; else itself.

    `a.png`, `a.jpg` and `a.png.jpg` keep their suffixes.
    """
    same = repeated(chain(names, stems))[len(names) :]
    return [name if kept else stem for name, stem, kept in zip(names, stems, same, strict=True)]
