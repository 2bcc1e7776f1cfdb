"""`dgmn2 download` against hosts that misbehave, a plain one and one that plays Google Drive."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from pretend_hosts import BAD, DRIVE_GOOD, DRIVE_MANNERS, GOOD, Host

from dgmn2cli import resources
from dgmn2cli.zoo import http
from faults.bad_files import goods, make_goods
from faults.commands import Setup, fill, shuffled
from faults.sandbox import Box, Call
from faults.verdicts import Faults, Kind

HASTY = ("--retries", "1", "--timeout", "0.5,0.5,1.5")
PATIENT = ("--retries", "3", "--timeout", "30")


def host_setups(host: Host) -> Iterator[Setup]:
    """Every manner of either host, with nothing in the cache: the right file, or exit code 3 or 4."""
    for manner in (*GOOD, *BAD):
        address = host.url(manner)
        yield f"download, host: {manner}", _asking(host, manner in GOOD, [{"type": "https", "url": address}])
    for manner in DRIVE_MANNERS:
        source = [{"type": "gdrive", "id": manner.ljust(20, "_")}]
        yield f"download, Google Drive: {manner}", _asking(host, manner in DRIVE_GOOD, source)
    dead = [{"type": "https", "url": "https://nowhere.invalid/x"}, {"type": "https", "url": "http://127.0.0.1:9/x"}]
    yield "download, hosts that are not there", _asking(host, False, dead)
    bad = [{"type": "https", "url": host.url(manner)} for manner in ("404", "page", "flipped", "good")]
    yield "download, the fourth source is good", _asking(host, True, bad)
    file = [{"type": "file", "path": "/nowhere/model.pth"}, {"type": "file", "path": "photo.png"}]
    yield "download, files that are not there", _asking(host, False, file)


def _asking(host: Host, good: bool, sources: list[dict[str, str]]) -> Callable[[Box], Call]:
    def prepare(box: Box) -> Call:
        fill(box)
        host.asked.clear()
        document = json.loads(resources.zoo_path().read_text())
        for item in document["segmentors"]:
            if item["key"] == "setr_pup-tiny":
                item["sources"] = sources
        (box.work / "mine.json").write_text(json.dumps(document))

        def pretend() -> None:
            http.DRIVE = f"{host.base}/uc?id={{id}}"

        arguments = ("download", "--zoo", "mine.json", *(PATIENT if good else HASTY))
        return Call(arguments, {0} if good else {3, 4}, may_write=("cache",), right=_is_good, prepare=pretend)

    return prepare


def _is_good(out: str) -> bool:
    """The last line is the path of the right file."""
    return Path(out.splitlines()[-1]).read_bytes() == goods().model.read_bytes()


def faults(rng: random.Random, folder: Path, count: int) -> Faults:
    """As the kind says."""
    make_goods(folder / "goods")
    host = Host(goods().model.read_bytes())
    try:
        yield from shuffled(list(host_setups(host)), rng, folder, count)
    finally:
        host.stop()
        shutil.rmtree(folder / "box", ignore_errors=True)


KINDS = (Kind("command line, misbehaving host", faults, 89, 2, patience=90, forks=True),)
