"""What a user types wrongly, in every command: refused before any work, by a message that says what to do next."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dgmn2cli.cli import main
from dgmn2cli.data.images import write_png
from dgmn2cli.errors import NetworkError

LONG = "x" * 300
Call = Callable[[str], tuple[int, str]]


def no_download(*arguments: object, **options: object) -> None:
    raise NetworkError("a download was begun")


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs a command line in a folder with a picture, a text file, a link to itself and a folder.

    A download is refused like one without network: what is at fault must be said before.
    """
    write_png(tmp_path / "photo.png", np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "a.txt").write_text("text\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x80")
    (tmp_path / "nul.txt").write_bytes(b"a\0b.png\nphoto.png\n")
    (tmp_path / "folder").mkdir()
    for name in ("loop", "loop.toml", "loop.pth"):
        (tmp_path / name).symlink_to(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dgmn2cli.zoo.fetch.fetch", no_download)
    monkeypatch.delenv("CITYSCAPES_DATASET", raising=False)

    def call(line: str) -> tuple[int, str]:
        before = sorted(os.listdir())
        code = main(shlex.split(line.replace("LONG", LONG)))
        assert sorted(os.listdir()) == before, "something was written"
        error = capsys.readouterr().err
        assert "Traceback" not in error
        assert "unforeseen" not in error
        return code, error.splitlines()[-1]

    return call


PATHS = [  # a command line with a ? where a path is wanted
    "infer photo.png -o ?", "infer photo.png --checkpoint ?", "--zoo ? zoo list", "--cache ? zoo list",
    "eval --data-root ?", "eval --report ?", "eval --save-preds ?", "eval --checkpoint ?", "train --data-root ?",
    "train --out ?", "download --from ?", "download --dest ?", "download --bundle ?", "convert ? x.pth",
    "convert a.pth ?", "info ?", "data check ?", "data synth ?", "submit -o ?", "submit --zip ?", "submit --from ?",
    "submit --validate ?", "benchmark --csv ?", "benchmark --plot ?", "demo -o ?", "demo --image ?", "zoo pin -o ?",
]  # fmt: skip


@pytest.mark.parametrize("line", PATHS)
def test_an_empty_path_is_not_the_current_folder_and_one_too_long_is_named(call: Call, line: str) -> None:
    code, error = call(line.replace("?", "''"))
    assert code == 2
    assert "the path is empty (the current folder is '.')" in error
    assert "--help`." in error
    code, error = call(line.replace("?", LONG))
    assert code == 2
    assert "is longer than a path, or a name in it, can be" in error


FOLDERS = ["infer photo.png -o ?", "submit -o ?", "download --dest ?", "data synth ?", "eval --save-preds ?"]
FILES = ["submit --zip ?", "download --bundle ?", "eval --report ?", "benchmark --csv ?", "benchmark --plot ?"]


@pytest.mark.parametrize("line", FOLDERS)
@pytest.mark.parametrize("target", ["a.txt", "a.txt/below", "loop", "loop/below"])
def test_an_output_folder_that_cannot_be_is_refused_first(call: Call, line: str, target: str) -> None:
    code, error = call(line.replace("?", target))
    assert code == 5
    assert error.startswith((f"Error: cannot write into the folder ({target}): ", "Error: cannot write the file ("))
    assert "is no folder. Choose another" in error or "lead in a circle; choose another." in error


@pytest.mark.parametrize("line", FILES)
def test_an_output_file_that_cannot_be_is_refused_first(call: Call, line: str) -> None:
    """Before a download, and before an hour of measuring."""
    code, error = call(line.replace("?", "a.txt/x.png"))
    assert code == 5
    assert error == "Error: cannot write into the folder (a.txt): a.txt is no folder. Choose another folder."


WRONG = [
    ("infer ''", 2, "the name of an image, or of a list of them, is empty. Give files, folders"),
    ("infer @", 2, "the name of an image, or of a list of them, is empty. Give files, folders"),
    ("infer loop", 6, "cannot find the image (loop): too many levels of symbolic links. Give files"),
    ("infer LONG", 6, "file name too long. Give files"),
    ("infer @LONG", 6, "file name too long. Give a text file"),
    ("infer @binary.txt", 6, "cannot find the image (\\udcff\\udcfe\\udc80): there is no such file."),
    ("infer photo.png --compile --device cpu", 2, "--compile is for NVIDIA GPUs"),
    ("benchmark fpn-tiny --compile --device cpu", 2, "--compile is for NVIDIA GPUs"),
    ("infer a.txt/b", 6, "cannot find the image (a.txt/b): not a directory. Give files"),
    ("infer @nul.txt", 6, "line 1 has a NUL byte"),
    ("infer photo.png LONG loop", 2, "Rename these images"),
    ("infer photo.png --save masks", 2, "no such output (masks): wanted some of ids"),
    ("infer photo.png --save ,", 2, "no output is named: wanted some of ids"),
    ("infer photo.png --alpha nan", 2, "nan is not in the range 0<=x<=1"),
    ("infer photo.png --checkpoint loop", 5, "too many levels of symbolic links. Check the path, or download"),
    ("infer photo.png -m a.txt", 2, "(a.txt): a configuration file ends with .toml or .py. `dgmn2 zoo list` shows"),
    ("infer photo.png --window 64 --stride 100", 2, "wanted 1 <= stride <= window and batch >= 1. Lower --stride, or"),
    ("explain photo.png --at 1,1 --stride 800", 2, "window 769, stride 800, batch 1"),
    ("serve --stride 800", 2, "window 769, stride 800, batch 1"),
    ("infer photo.png -m loop.toml", 2, "it is neither a published name nor a file here. `dgmn2 zoo list`"),
    ("infer photo.png -m LONG.toml", 2, "305 characters, 200 are allowed"),
    ("infer photo.png -m ./loop", 2, "no such model (./loop). `dgmn2 zoo list` shows all models."),
    ("infer photo.png -m ./loop.toml", 2, "symbolic links. Give the path of a .toml or .py file, or a name"),
    ("--cache a.txt zoo list", 5, "it is a file, wanted a folder. Name a folder with --cache or DGMN2_CACHE."),
    ("--cache loop/x zoo verify", 5, "too many levels of symbolic links. Name a folder with --cache"),
    ("eval --tolerance nan", 2, "nan is not in the range 0<=x<=100"),
    ("eval --limit x", 2, "'x' is not a whole number"),
    ("eval --split ''", 2, "invalid value for '--split': the name is empty"),
    ("eval --report folder", 2, "it is a folder, wanted a file. Name a file with --report."),
    ("eval --report new.json --html ./new.json", 2, "'--report': 'new.json' is also what '--html' names"),
    ("eval --html new --csv new", 2, "'--html': 'new' is also what '--csv' names"),
    ("eval --checkpoint a.txt --html folder/../a.txt", 2, "'folder/../a.txt' is also what '--checkpoint' names"),
    ("compare a.txt photo.png --html a.txt", 2, "'--html': 'a.txt' is also what 'A.json' names"),
    ("submit --checkpoint a.txt --zip a.txt", 2, "'--zip': 'a.txt' is also what '--checkpoint' names"),
    ("benchmark --csv new.png --plot new.png", 2, "'--csv': 'new.png' is also what '--plot' names"),
    ("benchmark --plot bars.txt", 2, "'--plot': 'bars.txt' does not end in .png or .svg"),
    ("download --from a.txt --bundle a.txt", 2, "'--bundle': 'a.txt' is also what '--from' names"),
    ("data browse photo.png -o photo.png", 2, "'--out': 'photo.png' is also what 'DIR' names"),
    ("data browse folder -o sheet.txt", 2, "'--out': 'sheet.txt' does not end in .png"),
    ("eval --data-root a.txt", 6, "(a.txt): it is a file, wanted a folder. Give the folder of a Cityscapes"),
    ("eval --data-root loop", 6, "(loop): too many levels of symbolic links. Give the folder of a Cityscapes"),
    ("data check a.txt", 6, "it is a file, wanted a folder. Give the folder of a Cityscapes tree"),
    ("data check folder --split ''", 2, "invalid value for '--split': the name is empty"),
    ("data synth new --images 0", 2, "Ask for 2 or more --images, and let --val be fewer of them."),
    ("train --resume ''", 2, "invalid value for '--resume': the name is empty"),
    ("train --class-weights ''", 2, "invalid value for '--class-weights': the name is empty"),
    ("train --set data.root=LONG --from scratch", 6, "file name too long. Give the folder of a Cityscapes tree"),
    ("train --from loop", 5, "(loop): too many levels of symbolic links. Give the path of a checkpoint, or"),
    ("train --from a.txt/b", 5, "(a.txt/b): not a directory. Give the path of a checkpoint, or"),
    (
        "train --out a.txt --from scratch",
        5,
        "cannot write into the folder (a.txt): a.txt is no folder. Choose another folder.",
    ),
    ("train setr_pup-tiny --set optim.lr=x", 2, "is wrong: --set: optim.lr: 'x', wanted a finite number above 0."),
    ("train ./no.toml", 2, "no such file. Give the path of a .toml or .py file, or a name"),
    ("convert a.txt loop.pth", 2, "Too many levels of symbolic links. Choose another name."),
    ("info a.txt", 3, "the file is damaged or of another kind. Give the whole file of a model"),
    ("submit --validate loop", 5, "too many levels of symbolic links. Check the path."),
    ("submit --validate folder", 5, "it is a folder, wanted a file. Check the path."),
    ("demo -o new --backend triton --device cpu", 5, "cannot run (cpu, float32)"),
    ("demo -o new --image a.txt", 6, "cannot read the image (a.txt)"),
    ("demo -o a.txt", 2, "this is no folder. Choose another with -o."),
]


@pytest.mark.parametrize(("line", "wanted", "words"), WRONG, ids=[line[:60] for line, _, _ in WRONG])
def test_the_message_says_what_is_wrong_and_what_to_do(call: Call, line: str, wanted: int, words: str) -> None:
    code, error = call(line)
    assert (code, words in error) == (wanted, True), error


def test_a_source_is_not_converted_onto_itself(call: Call) -> None:
    Path("x.pth").write_bytes(b"x")
    assert call("convert x.pth x.pth --overwrite")[1].endswith("its own source. Name another file to write.")


def test_kept_predictions_that_are_no_folder(call: Call) -> None:
    picture = np.zeros((8, 8, 3), np.uint8)
    write_png(Path("data/leftImg8bit/test/ulm/ulm_000000_000019_leftImg8bit.png"), picture)
    code, error = call("submit --data-root data --from a.txt")
    assert code == 6
    assert "(a.txt): it is a file, wanted a folder. Name a folder that has some." in error
