"""Published weights on first use, shown on the terminal."""

from __future__ import annotations

from pathlib import Path

from dgmn2cli.cli.options import Session
from dgmn2cli.cli.progress import TerminalObserver
from dgmn2cli.zoo import AnyEntry


def ensure_weights(session: Session, entry: AnyEntry) -> Path:
    """The path of the entry's file in the cache, fetched if it is not there; errors as `inference.load.ensure_weights`.

    The content is not hashed again here: whoever loads the file does that.
    """
    from dgmn2cli.inference import load

    with TerminalObserver(session) as observer:
        return load.ensure_weights(entry, session.cache_dir(), offline=session.offline, observer=observer).path
