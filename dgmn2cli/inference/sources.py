"""Which images are meant: files, folders, globs, lists and tar archives, and the name that each one's outputs get."""

from __future__ import annotations

import glob
import os
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import bracex
import numpy as np

from dgmn2cli.data.archives import find_members
from dgmn2cli.data.files import MOST_ENTRIES, SUFFIXES, find_files, find_matches
from dgmn2cli.data.images import MAX_PIXELS, read_bytes
from dgmn2cli.data.names import Names, absolute, alike, naming, repeated
from dgmn2cli.errors import ConfigError, DataError
from dgmn2cli.files import absence, open_regular
from dgmn2cli.observer import Observer, Silent

HINT = "Give files, folders, globs, tar archives or @list.txt."
LONGEST_LINE = 1 << 16  # bytes of a line of a list
MOST_BRACES = 1_000_000  # names that braces stand for
_WHOLE = (-1, 0, 0)  # the place of an image that is a file of its own


@dataclass(frozen=True)
class ImageFile:
    """One image to segment."""

    path: Path  # its file; in an archive, the archive's with the member's name behind it
    name: str  # what its outputs are called, relative to the output folder or in the output archive
    archive: tuple[Path, int, int] | None = None  # the archive it is in, its first byte there, how many it has

    def read(self, max_pixels: int = MAX_PIXELS) -> bytes:
        """Its bytes, not yet decoded; errors as `read_bytes`."""
        if self.archive is None:
            return read_bytes(self.path, max_pixels)
        path, first, count = self.archive
        return read_bytes(path, max_pixels, first, count, where=self.path)


class ImageList(Sequence[ImageFile]):
    """Images in their order; of a list of a million, with paths of 40 letters, some 80 MB.

    Attributes:
        paths, names: of each image, as in `ImageFile`.
        archives: that images are in.
        places: (N, 3) int64: number of the archive, first byte, bytes; None where there are no archives.
    """

    def __init__(
        self, paths: Sequence[str], names: Sequence[str], archives: Sequence[str] = (), places: np.ndarray | None = None
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


def find_images(sources: Sequence[str], observer: Observer | None = None, outputs: Path | None = None) -> ImageList:
    """The images that `sources` name: files, folders (searched through), globs, tar archives, `@LIST` files of paths.

    Braces stand for several names: `{a,b}`, `{0000..0099}`. Outputs of images from a folder or an archive keep their
    subfolder, behind the archive's name where there are several; so do files of one name in different folders. Images
    whose names differ in the suffix only keep it.

    Args:
        observer: gets a note for each kind of file that was left out.
        outputs: a folder that is left out where the search of another leads to it: what is there was made before.

    Raises:
        ConfigError: nothing is named, or braces stand for too much.
        DataError: a source does not exist or is damaged, or a folder, list or archive holds no image.
    """
    observer = observer or Silent()
    loose, inside, relative = Names(), Names(), Names()
    archives, places = list[str](), array("q")
    named = list(chain.from_iterable(map(expand_braces, sources)))
    several = sum(map(is_archive, named)) > 1
    for source in named:
        if is_archive(source):
            top = f"{Path(source).stem}/" if several else ""
            for member in find_members(Path(source), SUFFIXES, observer):
                inside.append(f"{source}/{member.name}")
                relative.append(top + member.name)
                places.extend((len(archives), member.first, member.size))
            archives.append(source)
            continue
        files, folder = _expand(source, observer, outputs)
        if folder is None:
            loose.extend(map(str, files))
            continue
        for file in files:
            inside.append(str(file))
            relative.append(os.path.relpath(file, folder))
            places.extend(_WHOLE)
    kept, alone = _first_of_each(inside), _first_of_each(loose, inside)
    loose, inside, relative = loose.only(alone), inside.only(kept), relative.only(kept)
    where = None
    if archives:
        within = np.frombuffer(places, np.int64).reshape(-1, 3)[kept]
        where = np.concatenate([np.full((len(loose), 3), _WHOLE, np.int64), within])
    paths, names = _names(loose, inside, relative)
    if not archives:
        _require_any(paths)
    return ImageList(paths, names, archives, where)


def _names(loose: Names, inside: Names, relative: Names) -> tuple[Names, Names]:
    """The paths of all images, and what their outputs are called; a million pass by, only the results are kept.

    Args:
        loose: paths that were named one by one.
        inside, relative: paths found in folders and archives, and relative to these.
    """
    paths, own = Names(chain(loose, inside)) if inside else loose, naming(loose)
    whole: Callable[[str | Path], str] | None = None

    def long() -> Iterable[str]:
        return map(whole, paths) if whole else chain(map(own, loose), relative)

    if relative and repeated(long()).any():  # folders with files of one name
        whole = naming(paths)
    both = repeated(chain.from_iterable((name, _stem(name)) for name in long()))
    return paths, Names(name if kept else _stem(name) for name, kept in zip(long(), both[1::2], strict=True))


def _stem(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")
    plain = dot and "/" not in suffix and stem[-1:] not in ("", ".", "/")  # else `.x` and `..x` have no suffix
    return stem if plain else os.path.splitext(name)[0]


def is_archive(name: str) -> bool:
    """Whether a source or target is a tar archive, by its name."""
    return name.lower().endswith(".tar") and not os.path.isdir(name)


def expand_braces(text: str) -> list[str]:
    """What `a{b,c}{08..10}` stands for, as a shell has it; the text itself where a file is called so.

    Raises:
        ConfigError: it stands for more than a million names.
    """
    if "{" not in text or os.path.lexists(text):
        return [text]
    try:
        return bracex.expand(text, keep_escapes=True, limit=MOST_BRACES)
    except bracex.ExpansionLimitException as error:
        why = f"wanted at most {MOST_BRACES:,}"
        raise ConfigError("braces stand for too many names", where=text, why=why) from error


def _first_of_each(paths: Sequence[str], besides: Sequence[str] = ()) -> np.ndarray:
    """(N,) bool: which of `paths` name no file again that stands before them, or in `besides`."""
    here = str(Path.cwd())
    # a million names are compared by their hashes, those of equal hashes by themselves
    keys = np.fromiter((hash(absolute(path, here)) for path in chain(besides, paths)), np.int64)
    same, kept = alike(keys), np.full(len(paths), True)
    others, own = same[: len(besides)], same[len(besides) :]
    seen = {absolute(besides[int(index)], here) for index in np.flatnonzero(others)}
    for index in np.flatnonzero(own):
        name = absolute(paths[int(index)], here)
        kept[index] = name not in seen
        seen.add(name)
    return kept


def _require_any(paths: Sequence[str]) -> None:
    """Raises an error where no image is named, or none of them exists."""
    if not paths:
        raise ConfigError("no image is named", hint=HINT)
    if not any(map(os.path.exists, paths)):
        if len(paths) == 1:
            raise DataError("cannot find the image", where=paths[0], why=absence(paths[0]), hint=HINT)
        why = f"{len(paths):,} are named"
        raise DataError("none of these files exist", why=why, faults=paths[:1000], hint=HINT)


def _expand(source: str, observer: Observer, outputs: Path | None) -> tuple[Iterable[str | Path], Path | None]:
    """The files that one source names, and the folder that was searched for them."""
    if source in ("", "@"):
        raise ConfigError("the name of an image, or of a list of them, is empty", hint=HINT)
    if source.startswith("@") and not os.path.exists(source):
        return _read_list(Path(source[1:])), None
    path = Path(source)
    if "://" in source and not os.path.lexists(path):
        raise ConfigError("images are not downloaded", where=source, why="wanted a file", hint="Fetch it first.")
    if os.path.isdir(path):
        found = find_files(path, outputs=outputs, observer=observer)
        if not found.files:
            why = "; ".join([f"wanted {', '.join(SUFFIXES)}", *found.notes])
            raise DataError("no image in the folder", where=path, why=why)
    elif not os.path.lexists(path) and glob.has_magic(source):
        found = find_matches(source, observer, outputs)
    else:
        return [path], None
    for note in found.notes:
        observer.note(note)
    return found.files, path if os.path.isdir(path) else None


def _read_list(path: Path) -> Iterator[str]:
    """One path a line, relative to the list's folder; blank lines and lines starting with # are skipped."""
    what, hint, count = "cannot read the list of images", "Give a text file that names one image a line.", 0
    folder, code = "" if path.parent == Path() else os.path.join(path.parent, ""), sys.getfilesystemencoding()
    with open_regular(path, what, kind=DataError, unreadable=DataError, hint=hint) as file:
        for number, line in enumerate(iter(partial(file.readline, LONGEST_LINE + 1), b""), 1):
            if b"\0" in line or len(line) > LONGEST_LINE:
                odd = "has a NUL byte; it is no text" if b"\0" in line else f"is longer than {LONGEST_LINE:,} bytes"
                raise DataError(what, where=path, why=f"line {number} {odd}", hint=hint)
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            name = line.decode(code, "surrogateescape").strip()  # need not be UTF-8
            if not name or name.startswith("#"):
                continue
            count += 1
            if count > MOST_ENTRIES:
                raise DataError(what, where=path, why=f"it names more than {MOST_ENTRIES:,} images", hint=hint)
            yield name if name[0] == "/" else folder + name
    if not count:
        raise DataError("the list names no image", where=path, hint=hint)
