"""Whole runs of `infer`: resumed, on several processes, from archives and into them; every image once, bytes equal."""

from __future__ import annotations

import io
import json
import os
import tarfile
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from streets import SMALL, Load, scene
from torch import Tensor, nn

from dgmn2cli.data.images import encode_png, write_png
from dgmn2cli.errors import ConfigError, DataError, Dgmn2Error, DistributedError, NonFiniteError, ResourceError
from dgmn2cli.inference import outputs, sources
from dgmn2cli.inference.outputs import check_targets
from dgmn2cli.inference.report import ImageResult
from dgmn2cli.inference.results import lines_of
from dgmn2cli.inference.run import InferRequest, run
from dgmn2cli.inference.segmenter import Segmenter
from dgmn2cli.inference.sources import ImageList, expand_braces, find_images
from dgmn2cli.observer import Silent

COUNT = 8


class Stopper(Silent):
    """Raises KeyboardInterrupt after so many images; remembers their paths and what is noted."""

    def __init__(self, after: int = 1000) -> None:
        self.after, self.paths, self.notes = after, list[str](), list[str]()

    def note(self, message: str) -> None:
        self.notes.append(message)

    def result(self, value: object) -> None:
        assert isinstance(value, ImageResult)
        self.paths.append(value.path.name)
        if len(self.paths) >= self.after:
            raise KeyboardInterrupt


def asked(tmp_path: Path, **settings: object) -> InferRequest:
    given = {"sources": (str(tmp_path / "in"),), "out": str(tmp_path / "out"), "settings": SMALL, "device": "cpu"}
    return InferRequest(**{**given, "kinds": ("ids", "overlay"), **settings})  # type: ignore[arg-type]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for index in range(COUNT):
        write_png(tmp_path / "in" / f"{index}.png", scene(index)[0])
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "results.jsonl"}


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def archive(path: Path, members: Sequence[tuple[str | tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]


@pytest.fixture
def shards(tree: Path) -> Path:
    """Three archives of the images 0, 3, 6; 1, 4, 7; 2, 5."""
    (tree / "shards").mkdir()
    for number in range(3):
        names = [f"{index}.png" for index in range(number, COUNT, 3)]
        archive(tree / "shards" / f"{number:04}.tar", [(name, (tree / "in" / name).read_bytes()) for name in names])
    return tree


# --- resuming


def test_an_interrupted_run_goes_on(tree: Path) -> None:
    whole = run(asked(tree, out=str(tree / "whole")), Load())
    assert (whole.done, whole.resumed, whole.results) == (COUNT, 0, tree / "whole" / "results.jsonl")
    with pytest.raises(KeyboardInterrupt):
        run(asked(tree), Load(), Stopper(after=3))
    with (tree / "out" / "results.jsonl").open("ab") as file:
        file.write(b'{"name": "7", "sha256": "cut by a ki')
    (tree / "out" / "0_ids.png").unlink()
    write_png(tree / "in" / "1.png", scene(1)[0])  # the same bytes: nothing changed
    write_png(tree / "in" / "2.png", scene(50)[0])
    with pytest.raises(ConfigError, match="output files exist already"):
        run(asked(tree), Load())
    watcher = Stopper()
    report = run(asked(tree, resume=True), Load(), watcher)
    assert report.done == COUNT
    assert 1 <= report.resumed <= 3
    assert not {"0.png", "2.png"} & {result.path.name for result in report.images if result.resumed}
    assert len(watcher.paths) == COUNT - report.resumed
    assert [result.path.name for result in report.images] == [f"{index}.png" for index in range(COUNT)]
    changed = {name: content for name, content in contents(tree / "whole").items() if not name.startswith("2_")}
    assert changed.items() <= contents(tree / "out").items()
    again = run(asked(tree, resume=True), Load(), watcher)
    assert (again.done, again.resumed) == (COUNT, COUNT)
    assert again.classes == report.classes
    assert again.by_doubt == report.by_doubt


class Fails(nn.Module):
    """Gives NaN for images that are bright."""

    def forward(self, images: Tensor) -> Tensor:
        bright = images.mean() > 0
        return torch.full((len(images), 19, *images.shape[2:]), torch.nan if bright else 0.0)


def test_the_image_is_named_whose_logits_are_not_finite(tmp_path: Path) -> None:
    for name, value in (("dark", 0), ("bright", 255)):
        write_png(tmp_path / "in" / f"{name}.png", np.full((20, 20, 3), value, np.uint8))

    def load(**options: object) -> Segmenter:
        made = Load()(**options)
        made.network = Fails()
        return made

    with pytest.raises(NonFiniteError) as caught:
        run(asked(tmp_path), load)
    assert caught.value.where == str(tmp_path / "in" / "bright.png")


DIFFERENT = {
    "stride": ({"settings": replace(SMALL, stride=8)}, {}, "protocol stride: it has 16, this run 8"),
    "weights": ({}, {"sha256": "cd" * 32}, f'checkpoint sha256: it has "{"ab" * 32}", this run "{"cd" * 32}"'),
    "kinds": ({"kinds": ("ids", "conf")}, {}, 'kinds: it has ["ids", "overlay"], this run ["conf", "ids"]'),
    "alpha": ({"alpha": 0.25}, {}, "alpha: it has 0.5, this run 0.25"),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_another_run_is_never_mixed_in(tree: Path, what: str) -> None:
    settings, load, fault = DIFFERENT[what]
    run(asked(tree), Load())
    before = contents(tree / "out")
    with pytest.raises(ConfigError) as caught:
        run(asked(tree, resume=True, **settings), Load(**load))
    assert fault in caught.value.faults
    assert contents(tree / "out") == before
    report = run(asked(tree, resume=True, overwrite=True, **settings), Load(**load))
    assert (report.done, report.resumed) == (COUNT, 0)
    assert run(asked(tree, resume=True, **settings), Load(**load)).resumed == COUNT


def test_each_line_names_what_it_depends_on(tree: Path) -> None:
    run(asked(tree), Load())
    first = lines(tree / "out")[0]
    assert (first["name"], first["width"], first["height"]) == ("0", 40, 24)
    assert len(first["sha256"]) == 64  # type: ignore[arg-type]
    assert first["outputs"] == {kind: str(tree / "out" / f"0_{kind}.png") for kind in ("ids", "overlay")}
    about = first["run"]
    assert isinstance(about, dict)
    wanted = {"model": "fake", "checkpoint sha256": "ab" * 32, "protocol stride": 16, "kinds": ["ids", "overlay"]}
    assert wanted.items() <= about.items()


# --- several processes


def test_processes_give_the_same_bytes_and_go_on_after_a_death(tree: Path) -> None:
    """One process begins, two die, two go on: every image once, with a bad one in between."""
    (tree / "in" / "3.png").write_bytes(b"no image")
    whole = run(asked(tree, out=str(tree / "whole")), Load())
    with pytest.raises(KeyboardInterrupt):
        run(asked(tree), Load(), Stopper(after=2))
    with pytest.raises(DistributedError, match=r"process [12] of 2 died: ended by SIGKILL"):
        run(asked(tree, resume=True, processes=2), Load("killed"), Silent())
    report = run(asked(tree, resume=True, processes=2), Load(), Silent())
    assert (report.done, report.failed, report.processes) == (COUNT - 1, 1, 2)
    assert report.resumed >= 2
    assert contents(tree / "out") == contents(tree / "whole")
    counts = Counter(line["name"] for line in lines(tree / "out"))
    assert counts == Counter({f"{index}": 1 for index in range(COUNT) if index != 3})
    assert report.classes == whole.classes
    assert [result.path for result in report.images] == [result.path for result in whole.images]


# --- archives


def test_images_in_archives_are_images(shards: Path) -> None:
    run(asked(shards, out=str(shards / "whole")), Load())
    report = run(asked(shards, sources=(f"{shards}/shards/{{0000..0002}}.tar",)), Load())
    assert report.done == COUNT
    found = {path.relative_to(shards / "out").as_posix(): path for path in (shards / "out").rglob("*.png")}
    wanted = contents(shards / "whole")
    assert {name.split("/")[1]: path.read_bytes() for name, path in found.items()} == wanted
    assert "0001/4_ids.png" in found
    assert report.images[0].path == shards / "shards/0000.tar/0.png"
    alone = run(asked(shards, sources=(f"{shards}/shards/0001.tar",), out=str(shards / "one")), Load())
    assert alone.done == 3
    assert (shards / "one" / "4_ids.png").read_bytes() == wanted["4_ids.png"]


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_hostile_members_are_left_out(tree: Path) -> None:
    image = encode_png(scene(1)[0])
    device = tarfile.TarInfo("device.png")
    device.type = tarfile.CHRTYPE
    hostile = archive(
        tree / "hostile.tar",
        [
            ("/absolute.png", image), ("../outside.png", image), ("a/../../b.png", image), ("good/a.png", image),
            (link("link.png", "/etc/passwd"), b""), (link("hard.png", "good/a.png", tarfile.LNKTYPE), b""),
            (device, b""), (".hidden.png", image), ("notes.txt", b"text"), ("damaged.png", image[:100]),
        ],
    )  # fmt: skip
    watcher = Stopper()
    report = run(asked(tree, sources=(str(hostile),), out=str(tree / "deep" / "out")), Load(), watcher)
    assert [result.path for result in report.images] == [hostile / "good/a.png"]
    assert [failure.path for failure in report.failures] == [hostile / "damaged.png"]
    written = {path.relative_to(tree).as_posix() for path in (tree / "deep").rglob("*") if path.is_file()}
    assert written == {f"deep/out/{name}" for name in ("good/a_ids.png", "good/a_overlay.png", "results.jsonl")}
    assert watcher.notes == [
        f"{hostile}: left out 3 (a link, device or sparse file)",
        f"{hostile}: left out 3 (a name that leads out of the archive)",
        f"{hostile}: left out 1 (hidden, or left by a desktop)",
        f"{hostile}: left out 1 (of another suffix)",
    ]


def test_damaged_archives_are_refused(shards: Path) -> None:
    whole = (shards / "shards" / "0000.tar").read_bytes()
    header = bytearray(archive(shards / "big.tar", [("x.png", b"")]).read_bytes())
    header[124:136] = b"77777777777\0"  # states 8 GiB
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:512]))
    long = bytes(header[:156]) + b"x" + bytes(header[157:])  # an extended header of that size
    checked = long[:148] + b"%06o\0 " % (sum(long[:148]) + 8 * 32 + sum(long[156:512])) + long[156:]
    damaged, second = bytearray(whole), whole.index(b"3.png")
    damaged[second + 150] ^= 0xFF
    for content in (
        whole[:700],
        whole[:second],
        b"",
        b"text" * 200,
        bytes(header),
        checked,
        damaged,
    ):
        (shards / "bad.tar").write_bytes(content)
        with pytest.raises(DataError) as caught:
            find_images([str(shards / "bad.tar")])
        assert caught.value.where == str(shards / "bad.tar")


def test_an_archive_of_outputs_is_whole_or_absent(shards: Path) -> None:
    run(asked(shards, out=str(shards / "whole")), Load())
    into = asked(shards, out=str(shards / "out.tar"))
    with pytest.raises(KeyboardInterrupt):
        run(into, Load(), Stopper(after=3))
    assert not (shards / "out.tar").exists()
    assert list(shards.glob(".*")) == []
    run(into, Load())
    found = members(shards / "out.tar")
    told = [json.loads(line) for line in found.pop("results.jsonl").splitlines()]
    assert found == contents(shards / "whole")
    assert [line["name"] for line in told] == [f"{index}" for index in range(COUNT)]
    before = (shards / "out.tar").read_bytes()
    with pytest.raises(ConfigError, match="output files exist already"):
        run(into, Load())
    report = run(replace(into, resume=True), Load(), Stopper())
    assert (report.done, report.resumed) == (COUNT, COUNT)
    assert (shards / "out.tar").read_bytes() == before
    with pytest.raises(ConfigError) as caught:
        run(replace(into, resume=True, settings=replace(SMALL, stride=8)), Load())
    assert "protocol stride: it has 16, this run 8" in caught.value.faults
    write_png(shards / "in" / "2.png", scene(50)[0])
    assert run(replace(into, resume=True), Load(), Stopper()).resumed == 0


def test_one_archive_of_outputs_for_each_that_is_read(shards: Path) -> None:
    """Two processes, of which one has two; the second run finds the archive that was removed missing."""
    run(asked(shards, out=str(shards / "whole")), Load())
    sources = (f"{shards}/shards/000{{0..2}}.tar",)
    into = asked(shards, sources=sources, out=f"{shards}/out-{{a,b,c}}.tar")
    assert run(replace(into, processes=2), Load()).done == COUNT
    found = {}
    for name in "abc":
        found |= members(shards / f"out-{name}.tar")
    wanted = contents(shards / "whole")
    assert {Path(name).name: content for name, content in found.items() if name != "results.jsonl"} == wanted
    before = members(shards / "out-b.tar")
    (shards / "out-b.tar").unlink()
    report = run(replace(into, resume=True), Load())
    assert (report.done, report.resumed) == (COUNT, 5)
    after = members(shards / "out-b.tar")
    assert after.keys() == before.keys()
    assert all(after[name] == before[name] for name in after if name != "results.jsonl")


# --- what is refused


REFUSED: dict[str, tuple[dict[str, object], type[Dgmn2Error], str]] = {
    "too few archives": ({"sources": ("shards/{0000..0002}.tar",), "out": "{a,b}.tar"}, ConfigError, "do not fit"),
    "loose images": ({"sources": ("in", "shards/0000.tar"), "out": "{a,b}.tar"}, ConfigError, "do not fit"),
    "several folders": ({"out": "{a,b}"}, ConfigError, "several folders"),
    "folder and archive": ({"out": "{a,b.tar}"}, ConfigError, "several folders"),
    "its own input": ({"sources": ("shards/0000.tar",), "out": "shards/0000.tar"}, ConfigError, "overwrite its input"),
    "processes on one": ({"out": "out.tar", "processes": 2}, ConfigError, "cannot write one archive"),
    "no such archive": ({"sources": ("shards/0009.tar",)}, DataError, "no such file"),
    "a gap": ({"sources": ("shards/{0000..0009}.tar",)}, DataError, "0003"),
    "too many": ({"sources": ("{0..9999999}.png",)}, ConfigError, "too many names"),
    "too many together": ({"sources": ("{0..9999}{0..9999}.png",)}, ConfigError, "too many names"),
    "a device": ({"out": "/dev/null/out.tar"}, ResourceError, "no folder"),
    "compressed": ({"sources": ("packed.tar",)}, DataError, "uncompressed"),
    "no images": ({"sources": ("texts.tar",)}, DataError, "no image in the archive"),
    "a link for results": ({"out": "linked"}, ResourceError, "a link is there"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused_before_anything_is_written(shards: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shards)
    with tarfile.open("packed.tar", "w:gz") as tar:
        tar.add("in")
    archive(shards / "texts.tar", [("a.txt", b"text")])
    Path("linked").mkdir()
    Path("linked/results.jsonl").symlink_to(shards / "elsewhere")
    settings, kind, words = REFUSED[what]
    before = sorted(shards.rglob("*"))
    with pytest.raises(kind) as caught:
        run(asked(shards, **settings), Load())
    assert words in f"{caught.value} {caught.value.faults}"
    assert sorted(shards.rglob("*")) == before


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a{1..3}.png", ["a1.png", "a2.png", "a3.png"]),
        ("a{08..10}", ["a08", "a09", "a10"]),
        ("{b,c}/{2..1}", ["b/2", "b/1", "c/2", "c/1"]),
        ("a{b}c", ["a{b}c"]),
        ("a{}b{", ["a{}b{"]),
        ("a{x,}", ["ax", "a"]),
    ],
)
def test_braces(text: str, names: list[str]) -> None:
    assert expand_braces(text) == names


def test_a_file_may_be_called_like_braces(tmp_path: Path) -> None:
    path = write_png(tmp_path / "{1..3}.png", scene(0)[0])
    assert [image.path for image in find_images([str(path)])] == [path]


def test_long_lists_are_read_line_by_line(tmp_path: Path) -> None:
    names = [f"folder{index % 7}/{index:06}.jpg" for index in range(20_000)]
    write_png(tmp_path / "folder0" / "000000.jpg", scene(0)[0])
    (tmp_path / "list.txt").write_text("\n".join([*names, *names[:100]]))
    found = find_images([f"@{tmp_path}/list.txt"])
    assert len(found) == 20_000
    assert found[19_999].path == tmp_path / names[-1]
    assert found.names[:2] == ["000000", "000001"]
    (tmp_path / "list.txt").write_bytes(b"x" * 70_000)
    with pytest.raises(DataError, match="line 1 is longer"):
        find_images([f"@{tmp_path}/list.txt"])


def test_lines_that_no_run_wrote_count_as_none(tmp_path: Path) -> None:
    write_png(tmp_path / "in" / "a.png", scene(0)[0])
    request = InferRequest((str(tmp_path / "in"),), str(tmp_path / "out"), settings=SMALL, device="cpu", resume=True)
    run(request, Load())
    path = tmp_path / "out" / "results.jsonl"
    good = json.loads(path.read_text())
    share = good["classes"][0]
    used = ("name", "run", "sha256", "classes", "width", "height", "windows", "seconds", "doubt")
    odd = [{**good, key: value} for key in used for value in (None, [1])]
    odd += [{name: value for name, value in good.items() if name != key} for key in used]
    shares = (1, {}, {**share, "pixels": "1"}, {**share, "name": []})
    odd += [{**good, "classes": [value]} for value in shares]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in odd))
    with path.open("rb") as file:
        assert list(lines_of(file)) == []
    assert run(request, Load()).resumed == 0
    assert run(request, Load()).resumed == 1


def test_a_long_list_is_no_list_of_objects(tmp_path: Path) -> None:
    count = 20_000
    names = [f"folder{index % 50}/street_{index:09}.png" for index in range(count)]
    write_png(tmp_path / names[0], scene(0)[0])
    (tmp_path / "list.txt").write_text("\n".join(names))
    text = sum(len(str(tmp_path / name)) + len(Path(name).stem) for name in names)
    find_images([f"@{tmp_path}/list.txt"])  # what is imported and remembered once
    tracemalloc.start()
    try:
        images = find_images([f"@{tmp_path}/list.txt"])
        check_targets(images, tmp_path / "out", ("ids", "overlay"), overwrite=False)
        kept, highest = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(images) == count
    assert kept < 1.2 * text + 20 * count  # the letters, and where each name ends; an object takes 50 more
    block = 4096 * (text / count + 50)  # names that are strings at a time, however many there are
    assert highest < 1.2 * text + 80 * count + block  # while hashes are compared


def test_only_folders_that_are_there_are_asked_for_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = ImageList([f"{i}/x.png" for i in range(9)], [f"{i}/x" for i in range(9)])
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "x_ids.png").touch()
    asked: list[str] = []
    real = outputs._file_number
    monkeypatch.setattr(outputs, "_file_number", lambda path: asked.append(str(path)) or real(path))
    with pytest.raises(ConfigError) as caught:
        check_targets(images, tmp_path, ("ids",), overwrite=False)
    assert caught.value.faults == (str(tmp_path / "7" / "x_ids.png"),)
    assert asked == [str(tmp_path / "7" / "x_ids.png"), *(f"{i}/x.png" for i in range(9))]


def test_names_that_are_no_utf8_are_known_again(tmp_path: Path) -> None:
    names = [os.fsdecode(b"\xff.png"), "stra\u00dfe.png", "\\udcff.jpg.png"]
    for index, name in enumerate(names):
        write_png(tmp_path / "in" / name, scene(index)[0])
    assert run(asked(tmp_path), Load()).resumed == 0
    told = [line["name"] for line in lines(tmp_path / "out")]
    assert sorted(told) == ["\\udcff", "\\udcff.jpg", "stra\u00dfe"]  # as any JSON parser reads them
    assert run(asked(tmp_path, resume=True), Load()).resumed == len(names)


def test_names_whose_hashes_meet_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / name).touch()
    monkeypatch.setattr(sources, "hash", lambda value: 7, raising=False)
    named = [str(tmp_path / name) for name in ("b.png", "a.png", "b.png", "./a.png")]
    found = find_images([*named, str(tmp_path)])
    assert sorted(image.path.name for image in found) == ["a.png", "b.png", "c.png"]
