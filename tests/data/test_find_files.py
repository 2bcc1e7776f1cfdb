"""Finding files: links, hidden files, suffixes, Unicode forms; whatever is left out is named."""

from __future__ import annotations

import io
import os
import pickle
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dgmn2cli.data.decoding import decode_bgr
from dgmn2cli.data.files import SUFFIXES, ends_with, find_files, find_matches, is_litter
from dgmn2cli.data.names import Names, absolute, comparable, naming, short_names
from dgmn2cli.errors import DataError
from dgmn2cli.observer import Silent


def put(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def names(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in find_files(root).files]


def test_links_are_followed_and_circles_are_not(tmp_path: Path) -> None:
    put(tmp_path, "store/1.jpg", "store/deep/2.jpg", "set/own/0.jpg")
    root = tmp_path / "set"
    (root / "linked").symlink_to("../store")
    (root / "again").symlink_to(tmp_path / "store", target_is_directory=True)
    (root / "file.png").symlink_to("../store/1.jpg")
    (root / "own" / "up").symlink_to("..")
    (tmp_path / "store" / "back").symlink_to("../set")
    expected = ["again/1.jpg", "again/deep/2.jpg", "file.png", "linked/1.jpg", "linked/deep/2.jpg", "own/0.jpg"]
    assert names(root) == expected
    note = next(note for note in find_files(root).notes if "circle" in note)
    assert "left out 3" in note
    assert "own/up" in note


def test_links_that_multiply_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dgmn2cli.data.files.MOST_FOLDERS", 500)
    for name in "abcdefgh":
        (tmp_path / name).mkdir()
        for other in "abcdefgh":
            (tmp_path / name / other).symlink_to(f"../{other}")
    with pytest.raises(DataError, match="500 folders"):
        find_files(tmp_path)


def test_what_a_desktop_leaves_is_left_out_and_named(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", "._a.jpg", ".DS_Store", "Thumbs.db", ".ipynb_checkpoints/a-checkpoint.jpg")
    put(tmp_path, "__MACOSX/a.jpg", ".Trash-1000/files/b.jpg", "@eaDir/a.jpg", "readme.txt", "x.png/c.jpg")
    found = find_files(tmp_path)
    assert [path.name for path in found.files] == ["a.jpg", "c.jpg"]
    assert len(found.notes) == 3
    assert "left out 7 (hidden, or left by a desktop)" in "".join(found.notes)
    assert "readme.txt" in "".join(found.notes)
    assert "left out 1 (a folder named like a file): x.png" in "".join(found.notes)
    assert is_litter("._x.png")
    assert not is_litter("x._png")


def test_every_suffix_in_any_case(tmp_path: Path) -> None:
    put(tmp_path, "a.JPG", "b.jfif", "c.jpe", "d.TIF", "e.tiff", "f.WebP", "g.bmp", "h.Png", "i.txt", "j")
    assert len(names(tmp_path)) == 8
    assert [path.name for path in find_files(tmp_path, ("_IMG.png", ".jpe")).files] == ["c.jpe"]
    assert ends_with("x_img.PNG", ("_IMG.png",)) == "_IMG.png"


def test_names_are_compared_in_one_unicode_form(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "Zürich_größe.png")
    assert comparable(decomposed) == "Zürich_größe.png"
    put(tmp_path, decomposed)
    assert [path.name for path in find_files(tmp_path, ("größe.png",)).files] == [decomposed]


def test_names_that_are_no_text(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/\xff\xe9.jpg", "wb") as file:
        file.write(b"x")
    assert [os.fsencode(path.name) for path in find_files(tmp_path).files] == [b"\xff\xe9.jpg"]


def test_what_is_no_folder(tmp_path: Path) -> None:
    put(tmp_path, "file")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("file", "none", "loop", "a\0b"):
        with pytest.raises(DataError):
            find_files(tmp_path / name)
    assert find_files(tmp_path).notes == (f"{tmp_path}: left out 2 (of another suffix): file, loop",)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "closed/b.png")
    (tmp_path / "closed").chmod(0)
    assert names(tmp_path) == ["a.png"]
    assert "closed" in find_files(tmp_path).notes[0]
    (tmp_path / "closed").chmod(0o700)


@pytest.mark.skipif(not os.path.ismount("/proc"), reason="this system has no /proc")
def test_what_the_kernel_shows_is_left_out(tmp_path: Path) -> None:
    put(tmp_path, "a/x.png")
    (tmp_path / "a" / "processes").symlink_to("/proc")
    assert names(tmp_path) == ["a/x.png"]
    assert find_files(tmp_path).notes == (f"{tmp_path}: left out 1 (of the kernel): a/processes",)
    assert [path.name for path in find_matches(f"{tmp_path}/**/*.png").files] == ["x.png"]
    assert find_files(Path("/proc")).files == ()


def test_globs(tmp_path: Path) -> None:
    put(tmp_path, "a/x.png", "b/x.png", "b/Thumbs.db", "b/y.dat", "b/.h.png")
    (tmp_path / "b" / "folder.png").mkdir()
    found = find_matches(f"{tmp_path}/*/*")
    assert [path.name for path in found.files] == ["x.png", "x.png", "y.dat"]
    assert len(found.notes) == 2
    assert len(find_matches(f"{tmp_path}/**/*.png").files) == 2
    for pattern in (f"{tmp_path}/*.jpg", f"{tmp_path}/*\0"):
        with pytest.raises(DataError, match="no file matches"):
            find_matches(pattern)


def test_equal_names_keep_what_tells_them_apart() -> None:
    files = [Path("x/drive1/data/0.jpg"), Path("x/drive2/data/0.jpg"), Path("x/drive2/data/1.jpg")]
    names = [f"drive{path}.jpg" for path in ("1/data/0", "2/data/0", "2/data/1")]
    for given, wanted in (
        (files[1:], ["0.jpg", "1.jpg"]),
        (files, names),
        ([Path("/a/0.jpg"), Path("/b/0.jpg")], ["a/0.jpg", "b/0.jpg"]),
        ([], []),
    ):
        assert list(map(naming(given), given)) == wanted


def test_every_suffix_is_of_a_format_that_is_decoded() -> None:
    kinds = {"jpe": "JPEG", "jfif": "JPEG", "jif": "JPEG", "dib": "DIB", "tif": "TIFF", "pnm": "PPM", "jpg": "JPEG"}
    for suffix in SUFFIXES:
        buffer = io.BytesIO()
        kind = kinds.get(suffix[1:], "PPM" if suffix in (".pgm", ".pbm") else suffix[1:].upper())
        Image.new("RGB", (5, 3), (9, 9, 9)).save(buffer, "BMP" if kind == "DIB" else kind)
        assert decode_bgr(buffer.getvalue(), 100)[0].shape == (3, 5, 3)


def test_short_names_are_told_apart() -> None:
    def short(*files: str) -> list[str]:
        return short_names(files, [os.path.splitext(name)[0] for name in files])

    assert short("a.png", "b/a.png", "c") == ["a", "b/a", "c"]
    assert short("a.png", "a.jpg", "a.png.jpg", "b.jpg") == ["a.png", "a.jpg", "a.png.jpg", "b"]
    both = [unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD")]
    assert short(*both) == both


def test_a_search_says_how_far_it_is_and_where_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, *(f"{folder}/{name}.png" for folder in "abc" for name in range(5)))
    told: list[str] = []

    class Watcher(Silent):
        def begin(self, task: str, total: float | None = None, *, done: float = 0, unit: str = "") -> None:
            told.append(task)

        def advance(
            self, parts: float = 1, *, done: float | None = None, total: float | None = None, detail: str = ""
        ) -> None:
            told.append(detail)

    wanted = [f"searching {tmp_path}", *(f"{n + 1} folders, {5 * n + 3} entries" for n in range(4))]
    assert len(find_files(tmp_path, observer=Watcher()).files) == 15
    assert told == wanted
    told.clear()
    assert len(find_matches(f"{tmp_path}/**/*.png", Watcher()).files) == 15
    assert told[1:] == wanted[1:]
    for name, bound, said in (("MOST_FOLDERS", 3, "3 folders"), ("MOST_ENTRIES", 17, "17 entries")):
        monkeypatch.setattr(f"dgmn2cli.data.files.{name}", bound)
        for search in (lambda: find_files(tmp_path), lambda: find_matches(f"{tmp_path}/**/*.png")):
            with pytest.raises(DataError, match=said) as caught:
                search()
            assert str(tmp_path) in str(caught.value)
        monkeypatch.undo()


def test_globs_end_where_links_go_round(tmp_path: Path) -> None:
    """Python's own `**` goes 40 links deep, in every order of these: 3^40 folders."""
    put(tmp_path, "0.png", "a/1.png", "a/b/2.png", "a/b/c/3.png", "a/x/b/c/4.png", ".hidden/5.png")
    for link in "uvw":
        (tmp_path / "a" / link).symlink_to("..")
    for pattern, found in (
        ("**", ["0", "1", "2", "3", "4"]), ("**/*.png", ["0", "1", "2", "3", "4"]), ("**/b/*", ["2"]),
        ("**/b/**/*.png", ["2", "3", "4"]), ("*/b/**", ["2", "3"]), ("**/**/3.png", ["3"]), ("a/**/c/*", ["3", "4"]),
        ("*/*.png", ["1"]),
    ):  # fmt: skip
        files = find_matches(f"{tmp_path}/{pattern}").files
        assert [path.stem for path in sorted(files, key=lambda path: path.name)] == found, pattern
        assert len(files) == len(found)


def test_names_are_kept_as_they_are() -> None:
    kept = ["", "a.png", "ä/한국.jpg", "\udcff\udce9", "a\0b", "x" * 70_000, *(f"{i}" for i in range(5000))]
    names = Names(kept)
    assert list(names) == kept
    assert [names[index] for index in (0, 3, -1)] == ["", "\udcff\udce9", "4999"]
    assert (names[2:5], names[5000:9000:2], names[3:3]) == (kept[2:5], kept[5000:9000:2], [])
    assert list(names.only(np.arange(len(kept)) < 3)) == kept[:3]
    assert list(pickle.loads(pickle.dumps(names))) == kept
    with pytest.raises(IndexError):
        names[len(kept)]


@pytest.mark.parametrize("path", ["a", "./a//b/", "../../..", "/", "//x/./y", "/a/..", ".h/.x", "a/../b", ".", ""])
def test_absolute_paths_are_as_the_library_makes_them(path: str) -> None:
    for here in ("/", "/one/two"):
        wanted = os.path.normpath(os.path.join(here, path))
        assert absolute(path, here) == "/" + wanted.lstrip("/")
