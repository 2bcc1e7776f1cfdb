"""Commands in bad surroundings: no home, a bare locale, closed and full streams, outputs that cannot be made."""

from __future__ import annotations

import itertools
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import cv2

from faults.bad_files import goods
from faults.commands import DATA, SMALL, Setup, fill, kind_of
from faults.sandbox import READER_GONE, Box, Call, Streams
from faults.verdicts import Kind

GOOD_COMMANDS: dict[str, tuple[str, ...]] = {
    "help": ("--help",), "version": ("--version",), "zoo list": ("zoo", "list"), "zoo show": ("zoo", "show"),
    "zoo list as JSON": ("zoo", "list", "--json"), "zoo verify": ("zoo", "verify"),
    "zoo pin": ("zoo", "pin", "-o", "out/pinned.json"), "download, cached": ("download", "--offline"),
    "download, dry": ("download", "--all", "--dry-run"), "info": ("info", "model.pth"),
    "convert": ("convert", "model.pth", "out/x.safetensors"), "data check": ("data", "check", "data"),
    "infer": ("infer", "photo-\u00e9.png", "-o", "out", *SMALL, "--offline"),
    "eval": ("eval", *DATA, *SMALL, "--offline", "--limit", "1"),
    "submit": ("submit", *DATA, *SMALL, "--offline", "-o", "out/sub"),
    "a refusal": ("zoo", "show", "fpn-tny"), "a refused file": ("info", "photo-\u00e9.png"),
}  # fmt: skip
ENDS_OTHERWISE = {"a refusal": {2}, "a refused file": {3}}


@dataclass(frozen=True)
class Surroundings:
    """What is bad about where a command runs.

    Attributes:
        codes: exit codes that fit beside, or instead of, the usual one.
        usual: whether the usual exit code fits.
        environment, streams, prepare: as for `Call`.
    """

    codes: frozenset[int] = frozenset()
    usual: bool = True
    environment: dict[str, str | None] = field(default_factory=dict)
    streams: Streams = field(default_factory=Streams)
    prepare: Callable[[], object] = lambda: None


def _gone() -> None:
    """The folder the command runs in is removed under it."""
    shutil.rmtree(os.getcwd())


VARIABLES = {
    "HOME not set": Surroundings(environment={"HOME": None}),
    "HOME empty, no cache named": Surroundings(frozenset({4, 5}), environment={"HOME": "", "DGMN2_CACHE": None}),
    "HOME is nowhere": Surroundings(environment={"HOME": "/nowhere/at/all"}),
    "HOME is a device": Surroundings(frozenset({4, 5}), environment={"HOME": "/dev/null", "DGMN2_CACHE": None}),
    "no variable at all": Surroundings(
        environment=dict.fromkeys(("PATH", "HOME", "LANG", "TMPDIR", "OMP_NUM_THREADS", "OMP_WAIT_POLICY"))
    ),
    "LANG=C": Surroundings(environment={"LANG": "C", "LC_ALL": "C"}, streams=Streams(encoding="ascii")),
    "Latin-1": Surroundings(environment={"LANG": "de_DE.ISO-8859-1"}, streams=Streams(encoding="latin-1")),
    "no temporary folder": Surroundings(frozenset({5}), environment={"TMPDIR": "/nowhere"}),
    "the cache is a file": Surroundings(frozenset({4, 5}), environment={"DGMN2_CACHE": "photo-\u00e9.png"}),
    "the cache is a device": Surroundings(frozenset({4, 5}), environment={"DGMN2_CACHE": "/dev/full"}),
    "DGMN2_OFFLINE is no word": Surroundings(frozenset({2}), environment={"DGMN2_OFFLINE": "perhaps\x1b"}),
    "the folder is gone": Surroundings(frozenset({2, 3, 4, 5, 6}), prepare=_gone),
}
STREAMS = {
    "stdout closed": Surroundings(streams=Streams(out="closed")),
    "stderr closed": Surroundings(streams=Streams(err="closed")),
    "both closed": Surroundings(streams=Streams(out="closed", err="closed")),
    "stdout full": Surroundings(frozenset({5}), usual=False, streams=Streams(out="full")),
    "stderr full": Surroundings(streams=Streams(err="full")),
    "both full": Surroundings(frozenset({5}), usual=False, streams=Streams(out="full", err="full")),
    "| head -1": Surroundings(frozenset({READER_GONE}), streams=Streams(out="head")),
    "odd terminal": Surroundings(environment={"TERM": "dumb", "COLUMNS": "1", "LINES": "x", "FORCE_COLOR": "1"}),
    "COLUMNS=0": Surroundings(environment={"COLUMNS": "0"}),
    "COLUMNS is no number": Surroundings(environment={"COLUMNS": "wide"}),
}


def stream_setups(rng: random.Random) -> Iterator[Setup]:
    """Every good command with bad standard streams and terminals."""
    return _all_in(STREAMS)


def variable_setups(rng: random.Random) -> Iterator[Setup]:
    """Every good command in a bad environment."""
    return _all_in(VARIABLES)


def _all_in(surroundings: dict[str, Surroundings]) -> Iterator[Setup]:
    for (name, arguments), (about, place) in itertools.product(GOOD_COMMANDS.items(), surroundings.items()):
        yield f"{name}, {about}", _surrounded(name, arguments, place)


def _surrounded(name: str, arguments: tuple[str, ...], place: Surroundings) -> Callable[[Box], Call]:
    refusal = ENDS_OTHERWISE.get(name)
    codes = {*place.codes, *((refusal or {0}) if place.usual or refusal else ())}
    if name in ("help", "version") and place.streams == Streams():
        codes.add(0)
    if name == "zoo pin" or "cache" in " ".join(place.environment).lower():
        codes |= {1, 2}  # nothing is recorded there

    def prepare(box: Box) -> Call:
        fill(box, data="data" in arguments, cached=True)
        shutil.copy(goods().photo, box.work / "photo-\u00e9.png")
        os.link(goods().model, box.work / "model.pth")
        may_write = ("cache", "a/b/desk/out") if place.prepare is not _gone else ("cache", "a/b")
        return Call(arguments, codes, place.environment, place.streams, may_write, prepare=place.prepare)

    return prepare


def output_setups(rng: random.Random) -> Iterator[Setup]:
    """Outputs that cannot be made, or would destroy something: refused, and nothing else is touched."""
    writers: dict[str, tuple[str, ...]] = {
        "infer": ("infer", "photo.png", *SMALL, "--offline", "-o", "?"),
        "convert": ("convert", "model.pth", "?/x.safetensors"), "convert to": ("convert", "model.pth", "?"),
        "download --dest": ("download", "--offline", "--dest", "?"),
        "bundle": ("download", "--offline", "--bundle", "?"),
        "zoo pin": ("zoo", "pin", "-o", "?"), "eval --report": ("eval", *DATA, *SMALL, "--offline", "--report", "?"),
        "submit": ("submit", *DATA, *SMALL, "--offline", "-o", "?"),
        "train": ("train", *DATA, "--dry-run", "--out", "?"),
        "data synth": ("data", "synth", "?", "--images", "2", "--size", "64x64"),
    }  # fmt: skip
    targets: dict[str, tuple[str, Callable[[Box], object]]] = {
        "a file": ("mine.txt", lambda box: (box.work / "mine.txt").write_text("mine")),
        "below a file": ("mine.txt/out", lambda box: (box.work / "mine.txt").write_text("mine")),
        "a link to a file": ("link", lambda box: (_mine(box), (box.work / "link").symlink_to("mine.txt"))),
        "a link to nothing": ("link", lambda box: (box.work / "link").symlink_to("../../elsewhere/x")),
        "a link to itself": ("link", lambda box: (box.work / "link").symlink_to("link")),
        "a pipe": ("pipe", lambda box: os.mkfifo(box.work / "pipe")),
        "too long a name": ("n" * 300, lambda box: None),
        "too long a path": ("/".join(["n" * 200] * 30), lambda box: None),
        "the input": ("photo.png", lambda box: None),
        "the model": ("model.pth", lambda box: None),
        "/proc": ("/proc/nothing", lambda box: None),
    }
    for (name, arguments), (about, (target, make)) in itertools.product(writers.items(), targets.items()):
        replaced = target == "link" and about != "a link to a file" and name in ("bundle", "zoo pin", "eval --report")
        yield f"{name}, output: {about}", _onto(arguments, target, make, replaced)


def _mine(box: Box) -> None:
    (box.work / "mine.txt").write_text("mine")


def _onto(
    arguments: tuple[str, ...], target: str, make: Callable[[Box], object], replaced: bool
) -> Callable[[Box], Call]:  # fmt: skip
    """`replaced`: what is there is a link that leads nowhere, and a file may take its place."""

    def prepare(box: Box) -> Call:
        fill(box, data="data" in arguments or "synth" in arguments, cached=True)
        os.link(goods().model, box.work / "model.pth")
        make(box)
        command = tuple(part.replace("?", target) for part in arguments)
        if replaced:
            return Call(command, {0}, may_write=("cache", "a/b/desk/link"))
        return Call(command, {2, 3, 5, 6}, may_write=("cache",))

    return prepare


def picture_names(rng: random.Random) -> Iterator[Setup]:
    """Whole pictures under strange names: segmented, the names shown escaped; twice: refused the second time."""
    for name in (
        "a\x1b[31mb",
        "x\ny",
        "\u202egnp",
        "-o",
        "--help",
        " ",
        "a%s{0}",
        "\udcff",
        "n" * 245,
        "[bold]x",
        "@x",
    ):
        for json in ((), ("--json",)):

            def prepare(box: Box, name: str = name, json: tuple[str, ...] = json) -> Call:
                fill(box, cached=True)
                folder = box.work / "in"
                folder.mkdir()
                cv2.imwrite(str(box.top / "tmp" / "x.png"), cv2.imread(str(goods().photo)))
                os.replace(box.top / "tmp" / "x.png", folder / f"{name}.png")
                arguments = ("infer", "in", "-o", "out", *SMALL, "--offline", *json)
                return Call(arguments, {2} if name.startswith("n") else {0}, right=_printable)

            yield f"infer, a picture's name: {name[:20]!r} {' '.join(json)}", prepare


def _printable(out: str) -> bool:
    return all(line.isprintable() for line in out.split("\n"))


KINDS = (
    Kind("command line, streams", kind_of(stream_setups), 170, 3, patience=90, forks=True),
    Kind("command line, environment", kind_of(variable_setups), 204, 3, patience=90, forks=True),
    Kind("command line, output", kind_of(output_setups), 110, 2, patience=90, forks=True),
    Kind("command line, image's name", kind_of(picture_names), 22, 1, patience=90, forks=True),
)
