"""The negative controls: the program weakened on purpose, against which the same checks must find violations."""

from __future__ import annotations

import dataclasses
import sys
import time
import tomllib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import torch

from dgmn2cli import files as reports
from dgmn2cli.checkpoint import formats, unwrap, weights
from dgmn2cli.cli import boundary
from dgmn2cli.data import files as finding
from dgmn2cli.data import folder as description
from dgmn2cli.data import loaders
from dgmn2cli.distributed import launch as launching
from dgmn2cli.ops import operators
from dgmn2cli.zoo import cache as caching
from dgmn2cli.zoo import fetch as fetching


@dataclass(frozen=True)
class Control:
    """One weakening.

    Attributes:
        kind: the faults that must show it.
        count: how many of them.
        weaken: changes the running program.
    """

    kind: str
    count: int
    weaken: Callable[[], None]


def _replace(place: Any, name: str, value: Any) -> Callable[[], None]:
    assert hasattr(place, name), f"{name} has moved: this control would change nothing"
    return lambda: setattr(place, name, value)


def _without_hash() -> None:
    real = weights.read_checkpoint
    from faults import models

    def read(path: Any, *, sha256: str | None = None) -> Any:
        return real(path)

    models.read_checkpoint = read  # type: ignore[assignment]


def _executing() -> None:
    real = torch.load
    torch.load = lambda *args, **settings: real(*args, **{**settings, "weights_only": False})


def _lenient_images() -> None:
    from faults import images as faults

    faults.read_image = lambda path: cv2.imread(str(path))  # type: ignore[assignment]


def _plain_search() -> None:
    from dgmn2cli.data.files import SUFFIXES, Found
    from faults import images as faults

    faults.find_files = lambda root: Found(  # type: ignore[assignment]
        tuple(path for path in root.rglob("*") if path.suffix in SUFFIXES), ("a link in a circle",)
    )


def _averaged_first(real: Callable[[Any], str]) -> Callable[[Any], str]:
    return lambda content: next((name for name in unwrap.AVERAGES if name in content), "") or real(content)


def _trust_ranges() -> None:
    """Whatever a 206 answer says it is, it is taken for the rest."""

    def trust(response: Any, part: Any, tag: str) -> int:
        return part.size + int(response.headers.get("Content-Length", 0)) or 1

    fetching.whole_size = trust


def _take_whole_for_rest() -> None:
    """An answer with the whole file, from a server that ignored the Range, is taken for the rest of it."""
    real = fetching.Download._take
    _trust_ranges()

    def take(self: Any, response: Any, part: Any) -> None:
        if response.status_code == 200 and part.size:
            response.status_code = 206
        real(self, response, part)

    fetching.Download._take = take  # type: ignore[method-assign]


def _check_nothing() -> None:
    """What came is published whatever it is: no structural check, no hash that somebody states."""
    real = fetching.Download._finish

    def finish(self: Any, source: Any, part: Any, stated: str = "") -> Any:
        entry = dataclasses.replace(self.entry, sha256=None, size=None)
        return real(dataclasses.replace(self, entry=entry, verify=reports.hash_file), source, part)

    fetching.Download._finish = finish  # type: ignore[method-assign]


def _publish_in_place() -> None:
    """The final file is written where it will be, not renamed."""

    def publish(self: Any, target: Any) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        content = self.path.read_bytes()
        with open(target, "wb", buffering=0) as file:
            for start in range(0, len(content), 5000):
                file.write(content[start : start + 5000])
                time.sleep(0.001)

    fetching.Part.publish = publish  # type: ignore[method-assign]


def _without_boundary() -> None:
    """Errors leave the program as Python shows them."""

    def outcome(run: Callable[[], None], debug: bool, received: object) -> int:
        run()
        return 0

    boundary._outcome = outcome


def _write_in_place() -> None:
    """Results are written where they will be, over what is there and through links."""

    def write_plainly(path: Any, write: Any) -> Path:
        path = Path(path)
        with reports.local_write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "wb") as file:
                _ = write(file) if callable(write) else file.write(write.encode() if isinstance(write, str) else write)
        return path

    for module in [module for name, module in sys.modules.items() if name.startswith("dgmn2cli")]:
        if hasattr(module, "atomic_write"):
            module.atomic_write = write_plainly


def _deaf_launch() -> None:
    """The death of a process of a training ends the others, and counts as an end like any other."""

    def watch(self: Any, observer: Any, stop: Any) -> None:
        while self.alive() and not any(process.exitcode for process in self._processes):
            self._hear(observer)

    launching._Job.watch = watch  # type: ignore[method-assign]


RESUMED = "resumed download, nothing checked behind it"
CONTROLS = {
    "no hash compared at load": Control("model file, hash known", 200, _without_hash),
    "cached files not hashed again": Control(
        "cached file and its note", 100, _replace(caching, "hash_file", lambda path, advance=None: path.stem)
    ),
    "archive checksums not verified": Control(
        "model file, hash not known", 400, _replace(zipfile.ZipFile, "testzip", lambda self: None)
    ),
    "weights_only=False": Control("hostile pickle", 150, _executing),
    "contents not made plain": Control(
        "hostile pickle", 150, _replace(formats, "plain", lambda content, size: content)
    ),
    "no check for NaN": Control("wrong tensors", 100, _replace(weights, "check_finite", lambda *_: None)),
    "keys and shapes not matched": Control("wrong tensors", 100, _replace(weights, "_match", lambda *_: None)),
    "lenient image decoding": Control("damaged image", 200, _lenient_images),
    "files found by suffix alone": Control("folder as people keep it", 30, _plain_search),
    "averaged weights taken for the weights": Control(
        "form of a checkpoint", 200, _replace(unwrap, "_wrapper", _averaged_first(unwrap._wrapper))
    ),
    "operators' arguments not checked": Control(
        "raw call of an operator", 30, _replace(operators.Operator, "_require", lambda self, arguments: None)
    ),
    "a worker's death not expected": Control(
        "death of a data worker", 6, _replace(loaders, "BrokenProcessPool", ZeroDivisionError)
    ),
    "a process's end not looked at": Control("death of a process of a training", 3, _deaf_launch),
    "links to folders not followed": Control(
        "finding files", 100, _replace(finding, "_is_folder", lambda entry: entry.is_dir(follow_symlinks=False))
    ),
    "published without verification": Control(
        "misbehaving server",
        150,
        _check_nothing,
    ),
    "TOML parsed without limits": Control(
        "malformed description", 300, _replace(description, "parse_toml", tomllib.loads)
    ),
    "records told apart by their key only": Control(
        "cache of several manifests",
        50,
        _replace(caching.Record, "holds_for", lambda self, entry: self.key == entry.key),
    ),
    "a bundle's hashes not compared": Control("damaged bundle", 60, _check_nothing),
    "wrong Content-Range trusted": Control(RESUMED, 300, _trust_ranges),
    "ignored Range not noticed": Control(RESUMED, 300, _take_whole_for_rest),
    "published in place, not renamed": Control("kill -9 during a download", 100, _publish_in_place),
    "no error boundary": Control("command line, manifest and configuration", 30, _without_boundary),
    "results written in place": Control("command line, full disk", 30, _write_in_place),
    "results written through links": Control("command line, links laid", 30, _write_in_place),
}
