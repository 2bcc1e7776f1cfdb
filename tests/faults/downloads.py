"""Downloads gone wrong: each misbehaviour of the pretend host, fresh and with an old part; kills at any moment."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from pretend_hosts import BAD, GOOD, Host

from dgmn2cli import zoo
from dgmn2cli.errors import IntegrityError
from dgmn2cli.files import hash_file
from dgmn2cli.zoo import bundle, manifest
from dgmn2cli.zoo import fetch as fetching
from dgmn2cli.zoo.http import Limits
from dgmn2cli.zoo.manifest import Source
from faults.verdicts import Faults, Kind, Violation, end_child, flipped, in_child, judged, spliced, start_child

CONTENT = random.Random(7).randbytes(200_000)
FOREIGN = random.Random(8).randbytes(200_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
HASTY = Limits(connect=0.4, read=0.3, total=1.0, retries=1, backoff=0.01)
PATIENT = Limits(connect=10, read=10, total=30, retries=2, backoff=0.01)
OLD_PARTS = ("none", "right beginning", "another content", "complete", "flipped")


def verify(path: Path) -> str:
    """Stands for the structural check."""
    if path.read_bytes() != CONTENT:
        raise IntegrityError("this is not a checkpoint", where=path, why="another content")
    return SHA256


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
    manifest.OVERHEAD = 1_000_000  # the file is small, so an endless one is noticed early
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


def leave_part(cache: Path, entry: zoo.ZooEntry, kind: str, length: int = 70_000) -> None:
    """What a killed download of `entry` left behind."""
    contents = {
        "right beginning": CONTENT[:length], "another content": bytes(length), "complete": CONTENT,
        "flipped": b"\0" + CONTENT[1:length],
    }  # fmt: skip
    if kind == "none":
        return
    source = entry.sources[0]
    version = '"other"' if kind == "another content" else '"right"'
    names = [hashlib.sha256(name.encode()).hexdigest()[:12] for name in (f"https:{source.location}", version)]
    part = cache / "parts" / f"{entry.key}@{names[0]}.{names[1]}.999999999.0badcafe.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(contents[kind])


RESUMED = (
    "good", "only-modified", "no-validator", "weak-etag", "ignores-range", "no-rest", "changed", "changed-unheeded",
    "chunked", "no-length", "redirect-relative", *(name for name in GOOD if name.startswith("range-")),
)  # fmt: skip


def resumptions(rng: random.Random, folder: Path, count: int) -> Faults:
    """Old parts of every length, all manners of answering a Range: right by the client's care alone, nothing checks."""
    host = Host(CONTENT)
    for index in range(count):
        manner = rng.choice(RESUMED)
        part = rng.choice(("right beginning", "right beginning", "another content", "complete"))
        length = rng.choice((1, 2, rng.randrange(3, len(CONTENT)), len(CONTENT) - 1))

        def judge(index: int = index, manner: str = manner, part: str = part, length: int = length) -> str:
            cache, entry = folder / f"cache{index}", entry_at(host.url(manner))
            host.asked.clear()
            leave_part(cache, entry, part, length)
            try:
                return judged(
                    lambda: fetching.fetch(entry, cache=cache, verify=hash_file, limits=PATIENT), set(),
                    lambda file: file.path.read_bytes() == CONTENT,
                )  # fmt: skip
            finally:
                only_good_files(cache)
                shutil.rmtree(cache, ignore_errors=True)

        yield f"{index} {manner}, old part: {part}, {length} bytes", judge


def crowds(rng: random.Random, folder: Path, count: int) -> Faults:
    """Eight processes fetch one file into one cache at once, some are killed, with locks and without: one good file."""
    host = Host(CONTENT)
    for index in range(count):
        manners = [rng.choice(("good", "good", "no-length", "short-once", "lingering")) for _ in range(8)]
        pauses = [rng.choice((0.0, rng.uniform(0, 0.05))) for _ in manners]
        killed = set(rng.sample(range(8), rng.choice((0, 0, 1, 3))))
        locks = rng.random() < 0.7

        def judge(
            index: int = index, manners: list[str] = manners, pauses: list[float] = pauses, killed: set[int] = killed,
            locks: bool = locks,
        ) -> str:  # fmt: skip
            cache = folder / f"cache{index}"
            host.asked.clear()
            actions = [_fetching(entry_at(host.url(manner)), cache, locks) for manner in manners]
            children = []
            for action, pause in zip(actions, pauses, strict=True):
                children.append(start_child(action))
                time.sleep(pause)
            for number in killed:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(children[number][0], signal.SIGKILL)
            ends = [end_child(child, 30) for child in children]
            wrong = [end for number, end in enumerate(ends) if end[0] and number not in killed]
            only_good_files(cache)
            in_child(_fetching(entry_at(host.url(manners[0])), cache, locks))
            left = [path.name for path in (cache / "parts").iterdir() if path.suffix != ".lock"]
            if wrong or len(list((cache / "files").iterdir())) != 1:
                raise Violation(f"{len(wrong)} of 8 failed: {wrong[:1]}")
            if left and locks and not killed:
                raise Violation(f"left behind {left}")
            shutil.rmtree(cache)
            return "right"

        yield f"{index} {len(killed)} killed, {'with' if locks else 'without'} locks", judge


def _no_locks(*arguments: object) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


def kills(rng: random.Random, folder: Path, count: int) -> Faults:
    """kill -9 at a random moment of a download or its publication; the next run must bring the right file.

    On a busy machine a download takes many times as long: every other moment counts from the publication's beginning.
    """
    host = Host(CONTENT)
    for index in range(count):
        manner, moment, late = rng.choice(("good", "good", "lingering")), rng.uniform(0, 0.06), index % 2 == 1
        moment *= 15 if manner == "lingering" and not late else 1

        def judge(index: int = index, manner: str = manner, moment: float = moment, late: bool = late) -> str:
            cache = folder / f"cache{index}"
            entry = entry_at(host.url(manner))
            in_child(_fetching(entry, cache), kill_after=moment, once=cache / "files" if late else None)
            only_good_files(cache)
            code, _, err = in_child(_fetching(dataclasses.replace(entry), cache))
            only_good_files(cache)
            left = [path.name for path in (cache / "parts").iterdir() if path.suffix != ".lock"]
            if code or left or len(list((cache / "files").iterdir())) != 1:
                raise Violation(f"after a kill: exit code {code}, left behind {left}: {err[-300:]}")
            shutil.rmtree(cache)
            return "right"

        yield f"{index} {manner} at {moment:.3f} s{' of its publication' if late else ''}", judge


def _fetching(entry: zoo.ZooEntry, cache: Path, locks: bool = True) -> Callable[[], int]:
    def run() -> int:
        if not locks:
            fcntl.flock = _no_locks
        fetching.fetch(entry, cache=cache, verify=verify, limits=PATIENT)
        return 0

    return run


def several_manifests(rng: random.Random, folder: Path, count: int) -> Faults:
    """Another manifest takes another file under the same key, in any way: the published entry has nothing from it."""
    (folder / "own").write_bytes(CONTENT)
    (folder / "foreign").write_bytes(FOREIGN)
    own, foreign = Source("file", str(folder / "own")), Source("file", str(folder / "foreign"))
    entry = dataclasses.replace(zoo.find("setr_pup-tiny"), params=10_000, sources=(own,))
    for index in range(count):
        stated = rng.choice((None, hashlib.sha256(FOREIGN).hexdigest()))
        lists = [(own, foreign), (foreign, own), (foreign,), *([(own,)] if stated else [])]
        other = dataclasses.replace(entry, sources=rng.choice(lists), sha256=stated)
        how, before = rng.choice(("source", "--source", "file", "folder", "bundle")), rng.random() < 0.3

        def judge(
            index: int = index, other: zoo.ZooEntry = other, how: str = how, before: bool = before
        ) -> str:  # fmt: skip
            cache = folder / f"cache{index}"
            if before:
                fetching.fetch(entry, cache=cache, verify=hash_file)
            try:
                _take(other, how, folder, cache)
            except IntegrityError:
                if not (before and own in other.sources and other.sha256 is None):
                    raise
                return "refused 3"  # the source that both list gave another file before
            found = zoo.locate(entry, cache)
            if (found is not None) != before or (found and found.path.read_bytes() != CONTENT):
                raise Violation("another manifest's file counts as the published one")
            outcome = judged(
                lambda: fetching.fetch(entry, cache=cache, verify=hash_file), set(),
                lambda file: file.path.read_bytes() == CONTENT,
            )  # fmt: skip
            theirs = zoo.locate(other, cache)
            if theirs is None or theirs.path.read_bytes() != FOREIGN:
                raise Violation("the other manifest lost its file")
            shutil.rmtree(cache)
            return outcome

        yield f"{index} {how}, hash {'stated' if other.sha256 else 'not stated'}, {len(other.sources)} sources", judge


def _take(other: zoo.ZooEntry, how: str, folder: Path, cache: Path) -> None:
    """The foreign file comes into the cache as `other`."""
    source = Source("file", str(folder / "foreign"))
    if how in ("source", "--source"):
        sources = (source,) if how == "source" else (Source("file", str(folder / "foreign" / ".." / "foreign")),)
        fetching.fetch(other, cache=cache, verify=hash_file, sources=(source, *sources), force=True)
        return
    offered = folder / "offered"
    shutil.rmtree(offered, ignore_errors=True)
    offered.mkdir()
    shutil.copy(folder / "foreign", offered / "model.pth")
    path = {"file": offered / "model.pth", "folder": offered, "bundle": offered / "bundle.tar"}[how]
    if how == "bundle":
        (file,) = bundle.adopt_offered(
            offered, [other], all_wanted=True, cache=offered / "cache", verify_for=lambda _: hash_file
        )
        bundle.write_bundle([file], path)
    bundle.adopt_offered(path, [other], all_wanted=True, cache=cache, verify_for=lambda _: hash_file)


def bundles(rng: random.Random, folder: Path, count: int) -> Faults:
    """Bundles with damaged or exchanged members and lists with other hashes: what is taken has the known hash."""
    contents = {"setr_pup-tiny": CONTENT, "fpn-tiny": FOREIGN}
    hashes = {key: hashlib.sha256(content).hexdigest() for key, content in contents.items()}
    whole = _bundle_of(contents, folder)
    for index in range(count):
        how = rng.choice(("flip", "flips", "cut", "splice", "members", "index", "nothing"))
        stated = rng.choice(("no hash", "hashes", "other hashes")) if how != "index" else "hashes"
        exchanged = dict(zip(("members", "index"), ((CONTENT, FOREIGN), tuple(hashes.values())), strict=True)).get(how)
        if exchanged:
            damaged = _exchanged(whole, *(part if isinstance(part, bytes) else part.encode() for part in exchanged))
        else:
            damaged = {
                "flip": lambda: flipped(whole, rng), "flips": lambda: flipped(whole, rng, 8),
                "cut": lambda: whole[: rng.randrange(1, len(whole))], "splice": lambda: spliced(whole, rng),
                "nothing": lambda: whole,
            }[how]()  # fmt: skip
        known = {"no hash": {}, "hashes": hashes, "other hashes": dict.fromkeys(hashes, "ab" * 32)}[stated]
        entries = [dataclasses.replace(zoo.find(key), params=10_000, sha256=known.get(key)) for key in contents]

        def judge(
            damaged: bytes = damaged, entries: list[zoo.ZooEntry] = entries, may: bool = stated != "other hashes"
        ) -> str:
            cache, path = folder / "taken", folder / "damaged.tar"
            path.write_bytes(damaged)
            try:
                return judged(
                    lambda: bundle.adopt_offered(
                        path, entries, all_wanted=True, cache=cache, verify_for=lambda _: _of_the_size
                    ),
                    {3},
                    lambda files: may and all(file.path.read_bytes() == contents[file.key] for file in files),
                )
            finally:
                for entry in entries:
                    found = zoo.locate(entry, cache)
                    if found and (not may or found.path.read_bytes() != contents[entry.key]):
                        raise Violation(f"another file counts as the verified {entry.key}")
                shutil.rmtree(cache, ignore_errors=True)

        yield f"{index} {how}, the list states {stated}", judge


def _bundle_of(contents: dict[str, bytes], folder: Path) -> bytes:
    files = []
    for key, content in contents.items():
        path = folder / f"{key}.pth"
        path.write_bytes(content)
        entry = dataclasses.replace(zoo.find(key), params=10_000)
        files += bundle.adopt_offered(
            path, [entry], all_wanted=True, cache=folder / "giver", verify_for=lambda _: hash_file
        )
    return bundle.write_bundle(files, folder / "whole.tar").read_bytes()


def _exchanged(data: bytes, one: bytes, other: bytes) -> bytes:
    """`data` with the first of each of the two pieces in the other's place."""
    return data.replace(one, b"\0" * len(one), 1).replace(other, one, 1).replace(b"\0" * len(one), other, 1)


def _of_the_size(path: Path) -> str:
    """A structural check that sees no damage."""
    if path.stat().st_size != len(CONTENT):
        raise IntegrityError("this is not a checkpoint", where=path, why="another size")
    return hash_file(path)


KINDS = (
    Kind("misbehaving server", misbehaviours, (len(GOOD) + len(BAD)) * len(OLD_PARTS), 60, patience=20),
    Kind("resumed download, nothing checked behind it", resumptions, 800, 30, patience=20),
    Kind("kill -9 during a download", kills, 240, 5, patience=40),
    Kind("cache of several manifests", several_manifests, 200, 20, patience=20),
    Kind("damaged bundle", bundles, 600, 30, patience=20),
    Kind("eight processes at once", crowds, 60, 2, patience=60),
)
