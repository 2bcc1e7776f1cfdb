"""Owns downloads gone wrong: each misbehaviour of the pretend host, fresh and with an old part; kills at any moment."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from pretend_hosts import BAD, GOOD, Host

from dgmn2cli import zoo
from dgmn2cli.errors import IntegrityError
from dgmn2cli.zoo import fetch as fetching
from dgmn2cli.zoo.http import Limits
from dgmn2cli.zoo.manifest import Source
from faults.verdicts import Faults, Kind, Violation, in_child, judged

CONTENT = random.Random(7).randbytes(200_000)
HASTY = Limits(connect=0.4, read=0.3, total=1.0, retries=1, backoff=0.01)
PATIENT = Limits(connect=10, read=10, total=30, retries=2, backoff=0.01)
OLD_PARTS = ("none", "right beginning", "another content", "complete", "flipped")


def verify(path: Path) -> None:
    """Stands for the structural check."""
    if path.read_bytes() != CONTENT:
        raise IntegrityError("this is not a checkpoint", where=path, why="another content")


def entry_at(url: str) -> zoo.ZooEntry:
    """The default entry, with this source and a small file."""
    return dataclasses.replace(zoo.find("setr_pup-tiny"), params=10_000, sources=(Source("https", url),))


def only_good_files(cache: Path) -> None:
    """What every moment must show: whatever is published is whole and right."""
    files = list((cache / "files").glob("*")) if (cache / "files").exists() else []
    if any(path.read_bytes() != CONTENT for path in files):
        raise Violation("wrong bytes were published")


def misbehaviours(rng: random.Random, folder: Path, count: int) -> Faults:
    """Every manner of the host with every old part: the right file, or exit code 3 or 4 and nothing published."""
    fetching.OVERHEAD = 1_000_000  # the file is small, so an endless one is noticed early
    host = Host(CONTENT)
    combinations = [(manner, part) for manner in (*GOOD, *BAD) for part in OLD_PARTS]
    rng.shuffle(combinations)
    for index in range(count):
        manner, part = combinations[index % len(combinations)]

        def judge(index: int = index, manner: str = manner, part: str = part) -> str:
            cache, entry = folder / f"cache{index}", entry_at(host.url(manner))
            host.asked.clear()
            leave_part(cache, entry, part)
            limits = PATIENT if manner in GOOD else HASTY
            try:
                return judged(
                    lambda: fetching.fetch(entry, cache=cache, verify=verify, limits=limits), {3, 4},
                    lambda file: file.path.read_bytes() == CONTENT,
                )  # fmt: skip
            finally:
                only_good_files(cache)
                shutil.rmtree(cache, ignore_errors=True)

        yield f"{index} {manner}, old part: {part}", judge


def leave_part(cache: Path, entry: zoo.ZooEntry, kind: str) -> None:
    """What a killed download of `entry` left behind."""
    contents = {
        "right beginning": CONTENT[:70_000], "another content": bytes(70_000), "complete": CONTENT,
        "flipped": b"\0" + CONTENT[1:70_000],
    }  # fmt: skip
    if kind == "none":
        return
    source = entry.sources[0]
    part = cache / "parts" / f"{fetching._stem(entry, source)}.999999999.0badcafe.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(contents[kind])
    tag = '"other"' if kind == "another content" else '"right"'
    note = {"source": f"https:{source.location}", "etag": tag, "modified": "", "total": len(CONTENT)}
    part.with_name(f"{part.name}.json").write_text(json.dumps(note))


def kills(rng: random.Random, folder: Path, count: int) -> Faults:
    """kill -9 at a random moment of a download or its publication; the next run must bring the right file."""
    host = Host(CONTENT)
    for index in range(count):
        manner, moment = rng.choice(("good", "good", "lingering")), rng.uniform(0, 0.06)
        moment *= 15 if manner == "lingering" else 1

        def judge(index: int = index, manner: str = manner, moment: float = moment) -> str:
            cache = folder / f"cache{index}"
            entry = entry_at(host.url(manner))
            in_child(_fetching(entry, cache), kill_after=moment)
            only_good_files(cache)
            code, _, err = in_child(_fetching(dataclasses.replace(entry), cache))
            only_good_files(cache)
            left = [path.name for path in (cache / "parts").iterdir() if path.suffix != ".lock"]
            if code or left or len(list((cache / "files").iterdir())) != 1:
                raise Violation(f"after a kill: exit code {code}, left behind {left}: {err[-300:]}")
            shutil.rmtree(cache)
            return "right"

        yield f"{index} {manner} at {moment:.3f} s", judge


def _fetching(entry: zoo.ZooEntry, cache: Path) -> Callable[[], int]:
    def run() -> int:
        fetching.fetch(entry, cache=cache, verify=verify, limits=PATIENT)
        return 0

    return run


KINDS = (
    Kind("misbehaving server", misbehaviours, (len(GOOD) + len(BAD)) * len(OLD_PARTS), 60, patience=20),
    Kind("kill -9 during a download", kills, 200, 5, patience=40),
)
