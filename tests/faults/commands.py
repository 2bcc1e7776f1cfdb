"""Faults through the command line: bad model files, pictures, data sets, manifests, configurations, names."""

from __future__ import annotations

import functools
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np

from dgmn2cli import resources, zoo
from dgmn2cli.data.catalog import find_splits
from dgmn2cli.data.images import read_label
from dgmn2cli.zoo import cache as caching
from faults import bad_files, canary
from faults.bad_files import MODELS, PICTURES, TRACE, goods, make_goods
from faults.sandbox import Box, Call, judge
from faults.texts import damaged
from faults.verdicts import Faults, Kind, Violation

SMALL = ("--scale", "64x32", "--window", "64", "--stride", "64")
DATA = ("--data-root", "data")
TRAIN = (*DATA, "--out", "out/run", "--max-iters", "1", "--crop", "32", "--batch-size", "1", "--workers", "0", *SMALL)
Setup = tuple[str, Callable[[Box], Call]]  # what it is, and what makes the call in a fresh box
IDS = "*_gtFine_labelIds.png"


def shuffled(setups: list[Setup], rng: random.Random, folder: Path, count: int) -> Faults:
    """`count` of the setups in random order, each in a box of its own, again from the start if they are fewer."""
    box = Box(folder / "box")
    make_goods(folder / "goods")
    try:
        for index in range(count):
            if index % len(setups) == 0:
                rng.shuffle(setups)
            label, prepare = setups[index % len(setups)]

            def run(prepare: Callable[[Box], Call] = prepare) -> str:
                trace = folder / TRACE
                canary.trace_to(trace)
                try:
                    outcome = judge(box, prepare(box.make()))
                    if trace.exists():
                        raise Violation("code in the file was executed")
                finally:
                    trace.unlink(missing_ok=True)
                return outcome

            yield f"{index} {label}", run
    finally:
        shutil.rmtree(box.top, ignore_errors=True)


def fill(box: Box, *, data: bool = False, cached: bool = False) -> Box:
    """Puts a photo, the data set, the model in the cache into the box."""
    shutil.copy(goods().photo, box.work / "photo.png")
    if data:
        shutil.copytree(goods().data, box.work / "data")
    if cached:
        entry = zoo.find("setr_pup-tiny")
        place = caching.file_path(box.cache, goods().sha256)
        place.parent.mkdir()
        os.link(goods().model, place)
        size = place.stat().st_size
        caching.record(entry, box.cache, sha256=goods().sha256, size=size, source="here")
    return box


RUNNERS: dict[str, tuple[str, ...]] = {
    "infer": ("infer", "photo.png", "-o", "out", "--checkpoint"), "eval": ("eval", *DATA, *SMALL, "--checkpoint"),
    "submit": ("submit", *DATA, *SMALL, "-o", "out/sub", "--checkpoint"), "train": ("train", *TRAIN, "--from"),
}  # fmt: skip
TAKERS: dict[str, tuple[str, ...]] = {
    "download": ("download", "setr_pup-tiny", "--from"), "info": ("info",), "convert": ("convert",)
}  # fmt: skip


def runner_setups(rng: random.Random) -> Iterator[Setup]:
    """Each bad model file, for each command that runs a model."""
    return _bad_models(RUNNERS, rng)


def taker_setups(rng: random.Random) -> Iterator[Setup]:
    """The same for the commands that take the file itself."""
    return _bad_models(TAKERS, rng)


def _bad_models(whole: dict[str, tuple[str, ...]], rng: random.Random) -> Iterator[Setup]:
    for name, (make, codes, loose) in MODELS.items():
        for command, arguments in whole.items():

            def prepare(
                box: Box, make: bad_files.Make = make, codes: set[int] = codes, loose: set[int] = loose,
                command: str = command, arguments: tuple[str, ...] = arguments,
            ) -> Call:  # fmt: skip
                fill(box, data="data" in arguments)
                make(box.work / "bad", rng)
                more = ("out/x.safetensors",) if command == "convert" else ()
                fitting = loose if command in ("info", "convert") else codes
                return Call((*arguments, "bad", *more), fitting)

            yield f"{command}, model file: {name}", prepare


def cached_setups(rng: random.Random) -> Iterator[Setup]:
    """Each bad model file in the place of the cached one, whose hash is known."""
    for name, (make, _, _) in MODELS.items():
        if name in ("missing", "a device", "a folder", "a pipe"):  # these count as not cached
            continue
        for command, codes in (("zoo verify", {0, 1}), ("infer", {3}), ("eval", {3}), ("submit", {3})):
            yield f"{command}, cached file: {name}", _cached(command, make, codes, rng)


def _cached(command: str, make: bad_files.Make, codes: set[int], rng: random.Random) -> Callable[[Box], Call]:
    """The bad file in the place of the cached one, whose hash is known."""
    arguments = {
        "zoo verify": ("zoo", "verify", "setr_pup-tiny"), "infer": ("infer", "photo.png", "-o", "out", "--offline"),
        "eval": ("eval", *DATA, *SMALL, "--offline"),
        "submit": ("submit", *DATA, *SMALL, "-o", "out/sub", "--offline"),
    }[command]  # fmt: skip

    def prepare(box: Box) -> Call:
        fill(box, data=True, cached=True)
        place = caching.file_path(box.cache, goods().sha256)
        place.unlink()
        make(place, rng)
        if place.is_symlink() and command != "zoo verify":
            return Call(arguments, {4, 5})  # to nothing: no cached file; to itself: not readable
        return Call(arguments, {1, 5} if command == "zoo verify" else codes)

    return prepare


READERS: dict[str, tuple[str, ...]] = {
    "infer": ("infer", "bad.png", "-o", "out", "--offline"), "eval": ("eval", *DATA, *SMALL, "--offline"),
    "submit": ("submit", *DATA, *SMALL, "-o", "out/sub", "--offline"), "train": ("train", *TRAIN, "--from", "scratch"),
    "data check": ("data", "check", "data"),
}  # fmt: skip


def picture_setups(rng: random.Random) -> Iterator[Setup]:
    """Each bad picture, for each command that reads pictures."""
    where = {"eval": "leftImg8bit/val", "submit": "leftImg8bit/test", "train": "leftImg8bit/train"}
    for name, make in PICTURES.items():
        for command, arguments in READERS.items():
            # a folder is no image: a data set is used without it, and that is said
            codes = {0} if name == "a folder" and "data" in arguments else {6}

            def prepare(
                box: Box, make: bad_files.Make = make, command: str = command, arguments: tuple[str, ...] = arguments,
                wanted: set[int] = codes,
            ) -> Call:  # fmt: skip
                fill(box, data="data" in arguments, cached=True)
                target = box.work / "bad.png"
                if command != "infer":
                    folder = box.work / "data" / where.get(command, "leftImg8bit/val")
                    target = sorted(folder.rglob("*.png"))[0]
                    target.unlink()
                make(target, rng)
                return Call(arguments, wanted)

            yield f"{command}, picture: {name}", prepare


def data_setups(rng: random.Random) -> Iterator[Setup]:
    """Bad label maps; data sets with something missing or wrong."""
    for name, make in PICTURES.items():
        for command in ("eval", "train", "data check"):
            yield f"{command}, label map: {name}", _bad_label(make, READERS[command], rng)
    for name, change in DATA_CHANGES.items():
        for command in ("eval", "train", "data check", "submit"):
            if command != "submit" or name in ("no pictures", "nothing"):
                yield f"{command}, data set: {name}", _changed_data(change, READERS[command])


def _bad_label(make: bad_files.Make, arguments: tuple[str, ...], rng: random.Random) -> Callable[[Box], Call]:
    def prepare(box: Box) -> Call:
        fill(box, data=True, cached=True)
        for split in ("train", "val"):
            folder = box.work / "data" / "gtFine" / split
            target = sorted(folder.rglob(IDS))[0]
            for path in target.parent.glob(target.name.replace("labelIds", "label*Ids")):
                path.unlink()
            make(target, rng)
        return Call(arguments, {6})

    return prepare


def _labels(data: Path) -> list[Path]:
    """All label maps in label ids; those in training ids are removed, so that these count."""
    for path in (data / "gtFine").rglob("*_labelTrainIds.png"):
        path.unlink()
    return sorted((data / "gtFine").rglob(IDS))


def _rewrite(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], object]:
    return lambda data: [cv2.imwrite(str(path), change(read_label(path))) for path in _labels(data)]


def _unpaired(data: Path) -> None:
    for label in _labels(data)[::2]:
        label.unlink()


DATA_CHANGES: dict[str, Callable[[Path], object]] = {
    "nothing": shutil.rmtree,
    "no pictures": lambda data: shutil.rmtree(data / "leftImg8bit"),
    "no labels": lambda data: shutil.rmtree(data / "gtFine"),
    "labels missing": _unpaired,
    "labels of another size": _rewrite(lambda label: label[:-1]),
    "labels turned": _rewrite(lambda label: label.T.copy()),
    "coloured labels": _rewrite(lambda label: np.dstack([label] * 3)),
    "ids of no class": _rewrite(lambda label: np.full_like(label, 77)),
    "deep labels": _rewrite(lambda label: label.astype(np.uint16) * 257),
    "a broken description": lambda data: (data / "dataset.toml").write_text("images = [\n"),
    "a description of nothing": lambda data: (data / "dataset.toml").write_text('images = "../../../*"\n'),
}


def _changed_data(change: Callable[[Path], object], arguments: tuple[str, ...]) -> Callable[[Box], Call]:
    def prepare(box: Box) -> Call:
        fill(box, data=True, cached=True)
        change(box.work / "data")
        return Call(arguments, {2, 6})

    return prepare


def text_setups(rng: random.Random) -> Iterator[Setup]:
    """Damaged manifests and configurations for each command."""
    for command in (
        ("zoo", "list"), ("zoo", "show"), ("zoo", "verify"), ("zoo", "pin", "-o", "out/z.json"),
        ("download", "--dry-run"), ("download", "--all", "--dry-run", "--json"), ("infer", "photo.png", "--offline"),
        ("eval", *DATA, "--offline"), ("train", *DATA, "--offline"), ("submit", *DATA, "--offline"), ("info", "bad"),
    ):  # fmt: skip
        for name, content in _manifests(rng).items():
            yield f"{' '.join(command[:2])}, manifest: {name}", _with_text(command, "--zoo", "bad.json", content, name)
    for command in (("eval", *DATA), ("train", *DATA), ("submit", *DATA), ("infer", "photo.png")):
        for suffix in (".toml", ".py"):
            for name, content in _configurations(rng, suffix).items():
                yield (
                    f"{command[0]}, configuration {suffix}: {name}",
                    _with_text((*command, "--offline"), "-m", f"bad{suffix}", content, name),
                )


@functools.cache
def _huge() -> bytes:
    """One for all: every process that is forked pays for what its parent holds."""
    return b"#" * 110_000_000


def _manifests(rng: random.Random) -> dict[str, bytes]:
    text = resources.zoo_path().read_bytes()
    fixed = {
        "empty": b"", "null": b"null", "a list": b"[]", "no models": b"{}", "cut": text[: len(text) // 2],
        "deep": b"[" * 100_000, "noise": rng.randbytes(1000), "huge": _huge(), "UTF-16": b"\xff\xfe{\0}\0",
        "NaN": text.replace(b'"params": ', b'"params": NaN, "x": ', 1),
        "twice": text.replace(b'"default"', b'"default": "fpn-tiny", "default"', 1),
        "a path": text.replace(b'"key": "fpn-tiny"', b'"key": "../../fpn-tiny"'),
    }  # fmt: skip
    return {**fixed, **{f"damaged {i}": damaged(text, rng) for i in range(6)}}


def _configurations(rng: random.Random, suffix: str) -> dict[str, bytes]:
    toml = b'base = "setr_pup_dgmn2_tiny_4x2_769x769_40k_cityscapes"\n[optim]\nlr = 1e-4\n'
    mmcv = b"model = dict(backbone=dict(type='dgmn2_tiny'), decode_head=dict(num_classes=19))\ncrop_size = (769, 769)\n"
    text = toml if suffix == ".toml" else mmcv
    fixed = {
        "unknown key": text + (b"[optim2]\nx = 1\n" if suffix == ".toml" else b"model2 = undefined_name\n"),
        "noise": rng.randbytes(1000), "huge": _huge(), "deep": b"a = " + b"[" * 50_000,
        "itself": b'base = "bad.toml"\n' if suffix == ".toml" else b"_base_ = 'bad.py'\n",
        "a call": b"import faults.canary\nfaults.canary.fire()\n" + text,
        "not UTF-8": b"\xff\xfe" + text,
        "NaN": text + (b"weight_decay = nan\n" if suffix == ".toml" else b"lr_config = 1\n"),
    }  # fmt: skip
    return {**fixed, **{f"damaged {i}": damaged(text, rng) for i in range(6)}}


def _with_text(command: tuple[str, ...], option: str, name: str, content: bytes, label: str) -> Callable[[Box], Call]:
    """Damage may leave a text that says something right; what follows is refused then: no data, no weights, no file."""

    def prepare(box: Box) -> Call:
        fill(box)
        (box.work / name).write_bytes(content)
        return Call((*command, option, name), {0, 2, 3, 4, 5, 6} if label.startswith("damaged") else {2})

    return prepare


NAMES = (
    "../../x", "../../../../../../tmp/x", "..", ".", "/", "/etc/passwd", "", " ", "a\x1b[31mb", "x\ny", "a\rb", "\x7f",
    "x" * 10_000, "\u00e9" * 5000, "\u202etxt.pth", "\udcff\udcfe", "%s%n{0}", "-", "~root/x", "$(touch x)",
    "`touch x`", "setr_pup-tiny/../x", "setr_pup-tiny ", "setr_pup-tiny.pth", "setr_pup", "x.toml", "x.py", "../x.toml",
    "/dev/zero", "/dev/stdin", "nul\u0000l", "con", "|ls", "@list.txt", "http://example.org/x",
)  # fmt: skip
MODEL_NAMED: tuple[tuple[str, ...], ...] = (
    ("download", "?"), ("download", "setr_pup-tiny", "?", "--dry-run"), ("download", "--backbone", "?"),
    ("zoo", "show", "?"), ("zoo", "verify", "?"), ("zoo", "pin", "-o", "x.json", "?"),
    ("infer", "photo.png", "-m", "?"),
    ("eval", "?", *DATA), ("eval", "-m", "?", *DATA), ("train", "?", *DATA), ("submit", "?", *DATA),
    ("benchmark", "?"),
)  # fmt: skip
OTHERS_NAMED: tuple[tuple[str, ...], ...] = (
    ("zoo", "show", "--zoo", "?"), ("train", *DATA, "--class-weights", "?"),
    ("eval", *DATA, "--split", "?"), ("train", *DATA, "--set", "?"), ("?",), ("zoo", "?"), ("infer", "?"),
    ("info", "?"), ("convert", "?", "y.pth"), ("data", "check", "?"), ("train", *DATA, "--resume", "?"),
)  # fmt: skip


def name_setups(rng: random.Random) -> Iterator[Setup]:
    """Each hostile name wherever a model is named: refused, and nothing created."""
    for name in NAMES:
        for command in MODEL_NAMED:
            yield f"{' '.join(command[:2])}, name: {name[:40]!r}", _named(command, name)
        yield f"infer, DGMN2_MODEL: {name[:40]!r}", _named(("infer", "photo.png"), name, by_environment=True)


def other_name_setups(rng: random.Random) -> Iterator[Setup]:
    """The same, where a split, a setting, a command or a file is named."""
    for name in NAMES:
        for command in OTHERS_NAMED:
            yield f"{' '.join(command[:2])}, name: {name[:40]!r}", _named(command, name)


def _named(command: tuple[str, ...], name: str, by_environment: bool = False) -> Callable[[Box], Call]:
    paths = {"info": {3, 5}, "convert": {2, 3, 5}, "data": {2, 5, 6}, "infer": {2, 4, 5, 6}}
    codes = {2} if "-m" in command or "?" not in command else {2} | paths.get(command[0], set())
    if "--split" in command or "--zoo" in command or "--class-weights" in command or "--resume" in command:
        codes = {2, 3, 5, 6}

    def prepare(box: Box) -> Call:
        fill(box, data=True, cached="--split" in command)
        said = name.replace("\0", "")
        environment = {"DGMN2_OFFLINE": "1", **({"DGMN2_MODEL": said} if by_environment and said else {})}
        arguments = tuple(said if part == "?" else part for part in command)
        if name == "/" and command[:2] == ("data", "check") and find_splits(Path("/")):
            return Call(arguments, {*codes, 0}, environment, may_write=())  # a data set lies in this machine's root
        harmless = (by_environment and not said) or (command == ("?",) and not said)
        return Call(arguments, {*codes, 0, 4} if harmless else codes, environment, may_write=())

    return prepare


def kind_of(setups: Callable[[random.Random], Iterator[Setup]]) -> Callable[[random.Random, Path, int], Faults]:
    """The faults of a kind made from setups."""
    return lambda rng, folder, count: shuffled(list(setups(rng)), rng, folder, count)


KINDS = (
    Kind("command line, model file to run", kind_of(runner_setups), 124, 3, patience=90, forks=True),
    Kind("command line, model file to take", kind_of(taker_setups), 93, 2, patience=90, forks=True),
    Kind("command line, cached file", kind_of(cached_setups), 108, 2, patience=90, forks=True),
    Kind("command line, image", kind_of(picture_setups), 120, 3, patience=90, forks=True),
    Kind("command line, label map and data set", kind_of(data_setups), 107, 3, patience=90, forks=True),
    Kind("command line, manifest and configuration", kind_of(text_setups), 338, 3, patience=90, forks=True),
    Kind("command line, name of a model", kind_of(name_setups), 455, 2, patience=90, forks=True),
    Kind("command line, other name", kind_of(other_name_setups), 385, 2, patience=90, forks=True),
)
