"""Which images are meant: files, folders, globs, lists and tar archives, and the name that each one's outputs get."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path

import numpy as np

from dgmn2cli.data.archives import find_members
from dgmn2cli.data.files import (
    MOST_ENTRIES,
    SUFFIXES,
    distinct_names,
    find_files,
    find_matches,
    repeated,
)  # fmt: skip
from dgmn2cli.data.images import MAX_PIXELS, read_bytes
from dgmn2cli.errors import ConfigError, DataError
from dgmn2cli.files import absence, open_regular
from dgmn2cli.observer import Observer, Silent

HINT = "Give files, folders, globs, tar archives or @list.txt."
LONGEST_LINE = 1 << 16  # bytes of a line of a list
MOST_BRACES = 1_000_000  # names that braces stand for
_BRACES = re.compile(r"\{([^{}]+)\}")
_RANGE = re.compile(r"([0-9]{1,9})\.\.([0-9]{1,9})")
_WHOLE = (-1, 0, 0)  # the place of an image that is a file of its own


@dataclass(frozen=True)
class ImageFile:
    """One image to segment.

    Attributes:
        path: its file; in an archive, the archive's with the member's name behind it.
        name: what its outputs are called, relative to the output folder or in the output archive.
        archive: the archive it is in, and where its bytes are there: first and how many.
    """

    path: Path
    name: str
    archive: tuple[Path, int, int] | None = None

    def read(self, max_pixels: int = MAX_PIXELS) -> bytes:
        """Its bytes, not yet decoded; errors as `read_bytes`."""
        if self.archive is None:
            return read_bytes(self.path, max_pixels)
        path, first, count = self.archive
        return read_bytes(path, max_pixels, first, count, where=self.path)


class ImageList(Sequence[ImageFile]):
    """Images in their order; a million of them take some 200 MB.

    Attributes:
        paths, names: of each image, as in `ImageFile`.
        archives: that images are in.
        places: (N, 3) int64: number of the archive, first byte, bytes; None where there are no archives.
    """

    def __init__(
        self, paths: list[str], names: list[str], archives: Sequence[str] = (), places: np.ndarray | None = None
    ) -> None:
        self.paths, self.names, self.archives, self.places = paths, names, tuple(archives), places

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # one image; a slice gives a list of them
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        archive = None
        if self.places is not None:
            number, first, count = map(int, self.places[index])
            archive = (Path(self.archives[number]), first, count) if number >= 0 else None
        return ImageFile(Path(self.paths[index]), self.names[index], archive)

    def of_archive(self, number: int) -> np.ndarray:
        """The indices of the images in an archive."""
        assert self.places is not None
        return np.flatnonzero(self.places[:, 0] == number)


def find_images(sources: Sequence[str], observer: Observer | None = None) -> ImageList:
    """The images that `sources` name: files, folders (searched through), globs, tar archives, `@LIST` files of paths.

    Braces stand for several names: `{a,b}`, `{0000..0099}`. Outputs of images from a folder or an archive keep their
    subfolder, behind the archive's name where there are several; so do files of one name in different folders. Images
    whose names differ in the suffix only keep it.

    Args:
        sources: what the user named.
        observer: gets a note for each kind of file that was left out.

    Raises:
        ConfigError: nothing is named, or braces stand for too much.
        DataError: a source does not exist or is damaged, or a folder, list or archive holds no image.
    """
    observer = observer or Silent()
    loose, inside, relative = list[str](), list[str](), list[str]()
    archives, places = list[str](), list[tuple[int, int, int]]()
    named = list(chain.from_iterable(map(expand_braces, sources)))
    several = sum(map(is_archive, named)) > 1
    for source in named:
        if is_archive(source):
            top = f"{Path(source).stem}/" if several else ""
            for member in find_members(Path(source), SUFFIXES, observer):
                inside.append(f"{source}/{member.name}")
                relative.append(top + member.name)
                places.append((len(archives), member.first, member.size))
            archives.append(source)
            continue
        files, folder = _expand(source, observer)
        if folder is None:
            loose += map(str, files)
        else:
            found = [str(file) for file in files]
            inside += found
            relative += [os.path.relpath(file, folder) for file in found]
            places += [_WHOLE] * len(found)
    kept, alone = _first_of_each(inside), _first_of_each(loose, inside)
    inside, relative = [inside[index] for index in kept], [relative[index] for index in kept]
    paths = [loose[index] for index in alone] + inside
    names = distinct_names(paths[: len(alone)]) + relative
    where = None
    if archives:
        within = np.array(places, np.int64).reshape(-1, 3)[kept]
        where = np.concatenate([np.full((len(alone), 3), _WHOLE, np.int64), within])
    else:
        _require_any(paths)
    if repeated(names).any():  # folders with files of one name
        names = distinct_names(paths)
    del loose
    alike = repeated(chain(names, (os.path.splitext(name)[0] for name in names)))[len(names) :]
    for index in np.flatnonzero(~alike):  # as `short_names`, without a second list of a million names
        names[index] = os.path.splitext(names[index])[0]
    return ImageList(paths, names, archives, where)


def is_archive(name: str) -> bool:
    """Whether a source or target is a tar archive, by its name."""
    return name.lower().endswith(".tar") and not os.path.isdir(name)


def expand_braces(text: str) -> list[str]:
    """What `a{b,c}{08..10}` stands for; the text itself where it has no braces, or a file is called so.

    Raises:
        ConfigError: it stands for more than a million names.
    """
    parts = _BRACES.split(text)
    if len(parts) == 1 or os.path.lexists(text):
        return [text]
    choices: list[Sequence[str]] = [[part] if index % 2 == 0 else _choices(part) for index, part in enumerate(parts)]
    if np.prod([float(len(choice)) for choice in choices]) > MOST_BRACES:
        raise ConfigError("braces stand for too many names", where=text, why=f"wanted at most {MOST_BRACES:,}")
    return ["".join(found) for found in product(*choices)]


def _choices(inner: str) -> Sequence[str]:
    if found := _RANGE.fullmatch(inner):
        first, last = int(found[1]), int(found[2])
        if abs(last - first) >= MOST_BRACES:
            raise ConfigError("braces stand for too many names", where=inner, why=f"wanted at most {MOST_BRACES:,}")
        step, width = (
            (1 if first <= last else -1),
            max(map(len, found.groups())) if "0" in (found[1][0], found[2][0]) else 0,
        )
        return [f"{number:0{width}}" for number in range(first, last + step, step)]
    return inner.split(",") if "," in inner else [f"{{{inner}}}"]


def _first_of_each(paths: Sequence[str], besides: Sequence[str] = ()) -> np.ndarray:
    """The indices of `paths` without those that name the same file again, or one of `besides`."""
    here = Path.cwd()

    def whole(path: str) -> str:
        return os.path.normpath(os.path.join(here, path))

    # a million names are compared by their hashes, those of equal hashes by themselves
    keys = np.fromiter((hash(whole(path)) for path in chain(besides, paths)), np.int64)
    found, counts = np.unique(keys, return_counts=True)
    alike = np.isin(keys, found[counts > 1])
    others, own = alike[: len(besides)], alike[len(besides) :]
    seen, kept = {whole(besides[int(index)]) for index in np.flatnonzero(others)}, np.full(len(paths), True)
    for index in np.flatnonzero(own):
        name = whole(paths[int(index)])
        kept[index] = name not in seen
        seen.add(name)
    return np.flatnonzero(kept)


def _require_any(paths: Sequence[str]) -> None:
    """Raises an error where no image is named, or none of them exists."""
    if not paths:
        raise ConfigError("no image is named", hint=HINT)
    if not any(map(os.path.exists, paths)):
        if len(paths) == 1:
            raise DataError("cannot find the image", where=paths[0], why=absence(paths[0]), hint=HINT)
        why = f"{len(paths):,} are named"
        raise DataError("none of these files exist", why=why, faults=paths[:1000], hint=HINT)


def _expand(source: str, observer: Observer) -> tuple[Iterable[str | Path], Path | None]:
    """The files that one source names, and the folder that was searched for them."""
    if source in ("", "@"):
        raise ConfigError("the name of an image, or of a list of them, is empty", hint=HINT)
    if source.startswith("@") and not os.path.exists(source):
        return _read_list(Path(source[1:])), None
    path = Path(source)
    if os.path.isdir(path):
        found = find_files(path, observer=observer)
        if not found.files:
            why = "; ".join([f"wanted {', '.join(SUFFIXES)}", *found.notes])
            raise DataError("no image in the folder", where=path, why=why)
    elif not os.path.lexists(path) and glob.has_magic(source):
        found = find_matches(source, observer)
    else:
        return [path], None
    for note in found.notes:
        observer.note(note)
    return found.files, path if os.path.isdir(path) else None


def _read_list(path: Path) -> Iterator[str]:
    """One path a line, relative to the list's folder; blank lines and lines starting with # are skipped."""
    what, hint, count = "cannot read the list of images", "Give a text file that names one image a line.", 0
    folder = "" if path.parent == Path() else str(path.parent)
    with open_regular(path, what, kind=DataError, unreadable=DataError, hint=hint) as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), 1):
            if b"\0" in line or len(line) > LONGEST_LINE:
                odd = "has a NUL byte; it is no text" if b"\0" in line else f"is longer than {LONGEST_LINE:,} bytes"
                raise DataError(what, where=path, why=f"line {number} {odd}", hint=hint)
            name = os.fsdecode(line.removeprefix(b"\xef\xbb\xbf" if number == 1 else b"")).strip()  # need not be UTF-8
            if not name or name.startswith("#"):
                continue
            count += 1
            if count > MOST_ENTRIES:
                raise DataError(what, where=path, why=f"it names more than {MOST_ENTRIES:,} images", hint=hint)
            yield os.path.join(folder, name)
    if not count:
        raise DataError("the list names no image", where=path, hint=hint)
