"""Owns weights on first use: what the commands share to have a model's file at hand, with a notice and a bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgmn2cli.cli import render
from dgmn2cli.cli.options import Session
from dgmn2cli.zoo import AnyEntry, ZooEntry, locate

if TYPE_CHECKING:
    from torch import nn

    from dgmn2cli.zoo.fetch import FetchedFile
    from dgmn2cli.zoo.transfer import Progress


def ensure_weights(session: Session, entry: AnyEntry) -> Path:
    """The path of the entry's file in the cache, fetched with a notice if it is not there.

    The content is not hashed again here: whoever loads the file does that.

    Raises:
        NetworkError, IntegrityError, NonFiniteError, ResourceError: as for `fetch`.
    """
    cached = locate(entry, session.cache_dir())
    if cached is not None:
        return cached.path
    if not session.offline:
        render.notice(session, f"The weights of {entry.key} are not on disk; fetching them from {_sources(entry)}.")
    return fetch_shown(session, entry).path


def fetch_shown(session: Session, entry: AnyEntry, **settings: Any) -> FetchedFile:
    """`dgmn2cli.zoo.fetch.fetch` with the session's cache and network settings and a progress bar.

    Args:
        session: the global options.
        entry: a model or backbone.
        settings: `force`, `sources`, `limits` of `fetch`.
    """
    from dgmn2cli.zoo.fetch import fetch  # requests takes a tenth of a second to import

    with transfer_bar(session, entry.key) as progress:
        return fetch(
            entry,
            cache=session.cache_dir(),
            verify=structural_check(session)(entry),
            offline=session.offline,
            progress=progress,
            **settings,
        )


@contextmanager
def transfer_bar(session: Session, name: str) -> Iterator[Progress]:
    """A progress bar in bytes, as the function that `fetch` and `adopt` report to."""
    with render.progress(session, name, transfer=True) as advance:

        def report(done: int, total: int | None) -> None:
            advance(completed=done, total=total)

        yield report


def structural_check(session: Session) -> Callable[[AnyEntry], Callable[[Path], None]]:
    """Gives an entry's check: safe to read, every key, shape and type of its network, finite; torch loads only then."""

    def check_for(entry: AnyEntry) -> Callable[[Path], None]:
        def check(path: Path) -> None:
            from dgmn2cli.checkpoint.weights import verify_checkpoint
            from dgmn2cli.model.shapes import shapes_only

            with shapes_only():
                network = _network(entry, session)
            verify_checkpoint(path, network)

        return check

    return check_for


def _network(entry: AnyEntry, session: Session) -> nn.Module:
    """The entry's network, for its keys and shapes."""
    if isinstance(entry, ZooEntry):
        from dgmn2cli.inference.load import build, resolve

        return build(resolve(entry.config, zoo=session.zoo()))
    from dgmn2cli.model.backbone import Classifier

    return Classifier(entry.key.rsplit("_", 1)[-1])


def _sources(entry: AnyEntry) -> str:
    names = {"gdrive": "Google Drive", "file": "a file"}  # of the others, the host
    return ", else ".join(names.get(source.type) or source.location.split("/")[2] for source in entry.sources)
