"""Malformed manifests, data set descriptions and configurations: read faithfully or refused, never executed."""

from __future__ import annotations

import json
import random
import tomllib
from pathlib import Path

from dgmn2cli import resources
from dgmn2cli.config import Config, config_to_toml, load_config
from dgmn2cli.config.load import published_names
from dgmn2cli.data import folder as description
from dgmn2cli.zoo import Zoo
from dgmn2cli.zoo.manifest import load_zoo
from faults import canary
from faults.verdicts import Faults, Kind, Violation, judged

WORDS = (
    b"nan", b"-1", b"[", b"]", b"(", b"{", b"'", b'"', b"=", b",", b"\n", b"\0", b"None", b"true", b"1e999", b"[]",
    b"__import__('faults.canary').canary.fire()", b"import faults.canary\nfaults.canary.fire()\n",
    b"_base_ = 'mine.py'\n", b"base = 'mine.toml'\n", b"{split.nope}", b"{split:>9999999999}", b"{0}",
    b"x = " + b"[" * 3000 + b"]" * 3000 + b"\n", b"a" + b".a" * 20000 + b" = 1\n", b"0x" + b"f" * 5000, b"x" * 20000,
    b"\\u001b[31m", b"train_dataloader = dict()\n", b"**", b"dict(", b"9" * 400, b"\xff", "\u202e".encode(),
    b"[" * 3000, b"a.b" * 300,
)  # fmt: skip


def damaged(data: bytes, chance: random.Random) -> bytes:
    """`data` after one to four accidents."""
    for _ in range(chance.randint(1, 4)):
        start = chance.randrange(len(data) + 1)
        end = min(len(data), start + chance.choice((1, 1, 2, 5, 20, 200)))
        data = chance.choice((
            data[:start] + bytes([chance.randrange(256)]) + data[start + 1 :], data[:start] + data[end:],
            data[:end] + data[start:], data[:start] + chance.choice(WORDS) + data[start:], data[: max(start, 1)],
        ))  # fmt: skip
    return data


def manifests(rng: random.Random, folder: Path, count: int) -> Faults:
    """Damaged manifests: exit code 2, or exactly what the JSON says."""
    text, target = resources.zoo_path().read_bytes(), folder / "zoo.json"

    def faithful(zoo: Zoo) -> bool:
        document = json.loads(target.read_text(encoding="utf-8"))
        said = [(item["key"], item["sha256"], item["params"], item["miou"]) for item in document["segmentors"]]
        return said == [(entry.key, entry.sha256, entry.params, entry.miou) for entry in zoo.segmentors]

    for index in range(count):
        content = damaged(text, rng)

        def judge(content: bytes = content) -> str:
            target.write_bytes(content)
            return judged(lambda: load_zoo(target), {2}, faithful)

        yield f"{index}", judge


DESCRIPTION = b"""classes = ["road", "sky", "tree"]
images = "images/{split}"
labels = "labels/{split}/ids"
image_suffix = ".jpg"
label_suffix = "_ids.png"
palette = [[128, 64, 128], [70, 130, 180], [107, 142, 35]]
ignore = [254, 65535]
unlisted = "ignore"
categories = ["flat", "sky", "nature"]
[id_map]
7 = "road"
300 = "sky"
21 = "tree"
0 = "ignore"
"""


def descriptions(rng: random.Random, folder: Path, count: int) -> Faults:
    """Damaged data set descriptions: exit code 2, or exactly what the TOML says."""
    target = folder / description.DESCRIPTION

    def faithful(found: description.FolderDescription) -> bool:
        document = tomllib.loads(target.read_bytes().decode("utf-8-sig"))
        ignore = document.get("ignore", 255)
        said = (
            document["classes"], document.get("images", "images/{split}"), document.get("labels", "labels/{split}"),
            {int(stored): name for stored, name in document.get("id_map", {}).items()},
            ignore if isinstance(ignore, list) else [ignore],
        )  # fmt: skip
        folders = (found.images, found.labels)
        plain = all("{" not in name.replace(description.SPLIT, "") for name in folders)
        return plain and said == (list(found.classes), *folders, dict(found.id_map), list(found.ignore))

    for index in range(count):
        content = damaged(DESCRIPTION, rng)

        def judge(content: bytes = content) -> str:
            target.write_bytes(content)
            return judged(lambda: description.load_description(target), {2}, faithful)

        yield f"{index}", judge


def configurations(rng: random.Random, folder: Path, count: int) -> Faults:
    """Damaged configurations of both languages: exit code 2, or one that survives being written and read again."""
    names = published_names()
    native = [config_to_toml(load_config(name)).encode() for name in names]
    mmcv = [
        f"model = dict(backbone=dict(type='dgmn2_{size}'), decode_head=dict(num_classes=19))\n"
        f"lr_config = dict(policy='poly', power=0.9)\noptimizer = dict(type='AdamW', lr={1e-4}, weight_decay=0.0001)\n"
        "runner = dict(type='IterBasedRunner', max_iters=40000)\ncrop_size = (769, 769)\n".encode()
        for size in ("tiny", "small", "medium", "large")
    ]
    copy, trace = folder / "copy.toml", folder / "trace"

    def stable(config: Config) -> bool:
        copy.write_text(config_to_toml(config), encoding="utf-8")
        return load_config(copy) == config

    for index in range(count):
        suffix = rng.choice((".toml", ".py"))
        content = damaged(rng.choice(native if suffix == ".toml" else mmcv), rng)

        def judge(content: bytes = content, suffix: str = suffix) -> str:
            target = folder / f"mine{suffix}"
            target.write_bytes(content)
            canary.trace_to(trace)
            outcome = judged(lambda: load_config(target), {2}, stable)
            if trace.exists():
                trace.unlink()
                raise Violation("a configuration was executed")
            return outcome

        yield f"{index} {suffix}", judge


KINDS = (
    Kind("malformed manifest", manifests, 1500, 60, patience=10),
    Kind("malformed description", descriptions, 1000, 60, patience=10),
    Kind("malformed configuration", configurations, 2000, 80, patience=10),
)
