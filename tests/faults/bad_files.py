"""Files that are not what a command wants: model files, pictures; and the whole ones they are made from."""

from __future__ import annotations

import os
import random
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.torch import save_file

from dgmn2cli.checkpoint.weights import read_checkpoint, write_checkpoint
from dgmn2cli.demo.streets.dataset import make_dataset
from dgmn2cli.model.filled import filled_state
from dgmn2cli.model.segmentor import Segmentor
from dgmn2cli.model.shapes import shapes_only
from faults import hostile_pickles as pickles
from faults.verdicts import flipped

TRACE = "executed-by-a-file"
LONG = "n" * 300


@dataclass(frozen=True)
class Goods:
    """Whole files, in a folder that no command writes in: the default model, a data set of five small pictures."""

    model: Path
    sha256: str
    data: Path

    @property
    def photo(self) -> Path:
        """A picture."""
        return next((self.data / "leftImg8bit" / "val").rglob("*.png"))


_GOODS: list[Goods] = []


def goods() -> Goods:
    """What `make_goods` made."""
    return _GOODS[-1]


def make_goods(folder: Path) -> None:
    """Makes them in `folder`, unless an earlier process did."""
    model, data = folder / "good.pth", folder / "data"
    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        write_checkpoint(model, filled_state(Segmentor("tiny", "setr_pup")), {})
        make_dataset(data, train=2, val=2, size=(128, 64), workers=1)
        test = data / "leftImg8bit" / "test" / "berlin"
        test.mkdir(parents=True)
        for number, path in enumerate(sorted((data / "leftImg8bit" / "val").rglob("*.png"))):
            shutil.copy(path, test / f"berlin_{number:06}_000019_leftImg8bit.png")
        (folder / "done").touch()
    with shapes_only():
        Segmentor("tiny", "setr_pup")  # torch imports much when this is first done; the forked processes need not
    _GOODS[:] = [Goods(model, read_checkpoint(model).sha256, data)]


Make = Callable[[Path, random.Random], object]


def _pickle(program: str, container: str = "archive", place: str = "meta") -> Make:
    def make(path: Path, rng: random.Random) -> None:
        path.write_bytes(pickles.file_of(container, pickles.PLACES[place](pickles.PROGRAMS[program])))

    return make


def _bytes(content: bytes) -> Make:
    return lambda path, rng: path.write_bytes(content)


def _cut(path: Path, rng: random.Random) -> None:
    data = goods().model.read_bytes()
    path.write_bytes(data[: rng.randrange(1, len(data))])


def _flip(path: Path, rng: random.Random) -> None:
    """A bit of a tensor's bytes."""
    data = goods().model.read_bytes()
    middle = rng.randrange(len(data) // 4, len(data) // 2)
    path.write_bytes(data[:middle] + flipped(data[middle : middle + 4], rng) + data[middle + 4 :])


def _state(change: Callable[[dict[str, torch.Tensor]], object], suffix: str = "pth") -> Make:
    def make(path: Path, rng: random.Random) -> None:
        state = dict(read_checkpoint(goods().model).state)
        change(state)
        if suffix == "safetensors":
            save_file(state, path)
        else:
            torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=suffix == "pth")

    return make


def _poison(value: float) -> Callable[[dict[str, torch.Tensor]], object]:
    def change(state: dict[str, torch.Tensor]) -> None:
        state["decode_head.conv_seg.bias"] = state["decode_head.conv_seg.bias"].clone().fill_(value)

    return change


# name -> how it is made, the exit codes that fit where a whole model is wanted, and those of `info` and `convert`
MODELS: dict[str, tuple[Make, set[int], set[int]]] = {
    "empty": (_bytes(b""), {3}, {3}),
    "one byte": (_bytes(b"P"), {3}, {3}),
    "a web page": (_bytes(b"<!DOCTYPE html><html><title>Sign in</title>"), {3}, {3}),
    "a pointer": (_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"), {3}, {3}),
    "a text": (_bytes(b"weights\n" * 1000), {3}, {3}),
    "a picture": (lambda path, rng: shutil.copy(goods().photo, path), {3}, {3}),
    "noise": (lambda path, rng: path.write_bytes(rng.randbytes(100_000)), {3}, {3}),
    "zeros": (_bytes(bytes(1_000_000)), {3}, {3}),
    "gzip": (_bytes(b"\x1f\x8b\x08\x00" + bytes(60)), {3}, {3}),
    "a folder": (lambda path, rng: path.mkdir(), {3}, {3}),
    "a pipe": (lambda path, rng: os.mkfifo(path), {3}, {3}),
    "a device": (lambda path, rng: path.symlink_to("/dev/zero"), {3}, {3}),
    "missing": (lambda path, rng: None, {5}, {5}),
    "a link to nothing": (lambda path, rng: path.symlink_to("nowhere"), {5}, {5}),
    "a link to itself": (lambda path, rng: path.symlink_to(path), {5}, {5}),
    "cut": (_cut, {3}, {3}),
    "a flipped bit": (_flip, {3}, {3}),
    "a call": (_pickle("call faults.canary.fire"), {3}, {3}),
    "a call to the shell": (_pickle("call os.system", "legacy"), {3}, {3}),
    "a call in a weight": (_pickle("call builtins.eval", "bare", "a weight"), {3}, {3}),
    "a class": (_pickle("NEWOBJ", "archive", "optimizer"), {3}, {0}),  # beside the weights: left out, never imported
    "a storage with a path": (_pickle("a storage with a path"), {3}, {0, 3}),
    "safetensors with a huge header": (_bytes(struct.pack("<Q", 1 << 60) + b"{}"), {3}, {3}),
    "safetensors of nothing": (_bytes(struct.pack("<Q", 2) + b"{}"), {3}, {3}),
    "an archive of nothing": (_bytes(b"PK\x05\x06" + bytes(18)), {3}, {3}),
    "one weight missing": (_state(lambda state: state.pop("decode_head.conv_seg.bias")), {3}, {0}),
    "one weight too many": (_state(lambda state: state.update({"\x1b[31mextra": torch.ones(3)})), {3}, {0}),
    "one weight turned": (
        _state(lambda state: state.update({"decode_head.conv_seg.weight": torch.zeros(256, 19, 1, 1)})), {3}, {0},
    ),
    "not a number": (_state(_poison(float("nan"))), {7}, {7}),
    "infinite": (_state(_poison(float("inf")), "safetensors"), {7}, {7}),
    "infinite, old format": (_state(_poison(float("-inf")), "old"), {7}, {7}),
}  # fmt: skip


def _png(width: int, height: int, depth: int = 8, colour: int = 2, data: bytes = b"") -> bytes:
    """A PNG whose header says this, whatever is in it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def _encoded(suffix: str) -> bytes:
    picture = np.random.default_rng(5).integers(0, 256, (32, 64, 3), dtype=np.uint8)
    return bytes(cv2.imencode(suffix, picture)[1].tobytes())


def _half(suffix: str) -> Make:
    def make(path: Path, rng: random.Random) -> None:
        data = _encoded(suffix)
        path.write_bytes(data[: rng.randrange(20, len(data) - 20)])

    return make


def _flipped_png(path: Path, rng: random.Random) -> None:
    data = _encoded(".png")
    path.write_bytes(data[:60] + flipped(data[60:-20], rng) + data[-20:])


PICTURES: dict[str, Make] = {
    "empty": _bytes(b""),
    "one byte": _bytes(b"\x89"),
    "a text": _bytes(b"not a picture\n"),
    "a web page": _bytes(b"<!DOCTYPE html>"),
    "noise": lambda path, rng: path.write_bytes(rng.randbytes(5000)),
    "a folder": lambda path, rng: path.mkdir(),
    "a pipe": lambda path, rng: os.mkfifo(path),
    "a device": lambda path, rng: path.symlink_to("/dev/zero"),
    "a link to nothing": lambda path, rng: path.symlink_to("nowhere"),
    "a link to itself": lambda path, rng: path.symlink_to(path),
    "PNG, cut": _half(".png"),
    "JPEG, cut": _half(".jpg"),
    "WebP, cut": _half(".webp"),
    "BMP, cut": _half(".bmp"),
    "PNG, a flipped bit": _flipped_png,
    "PNG of no size": _bytes(_png(0, 0)),
    "PNG of a huge size": _bytes(_png(60_000, 60_000, data=bytes(1000))),
    "PNG of a negative size": _bytes(_png(0xFFFFFFFF, 0xFFFFFFFF)),
    "PNG with too little in it": _bytes(_png(64, 32, data=bytes(100))),
    "PNG with too much in it": _bytes(_png(1, 1, data=bytes(50_000_000))),
    "PNG of an unknown depth": _bytes(_png(64, 32, depth=7, data=bytes(10_000))),
    "GIF": _bytes(b"GIF89a\x01\x00\x01\x00\x00\x00\x00;"),
    "SVG": _bytes(b"<svg xmlns='http://www.w3.org/2000/svg'><script>x</script></svg>"),
    "a model": lambda path, rng: os.link(goods().model, path),
}
