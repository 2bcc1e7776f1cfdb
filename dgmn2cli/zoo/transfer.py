"""Owns one transfer into a part file: what is accepted, how much, and whether a rest fits its beginning."""

from __future__ import annotations

import os
import re
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import requests
import urllib3

from dgmn2cli.errors import NetworkError, ResourceError
from dgmn2cli.zoo.http import NETWORK_ERRORS, Deadline, TemporaryError, place_of, reason_of
from dgmn2cli.zoo.manifest import shown
from dgmn2cli.zoo.parts import Origin, Part

BLOCK = 1 << 16  # bytes read at a time
GO_ON = "Run it again; it goes on where it stopped if the server allows."
PAGE_LIMIT = 1 << 16  # bytes of a web page that are looked at
Progress = Callable[[int, int | None], object]  # bytes so far, bytes in all if known


def receive(
    response: requests.Response,
    url: str,
    part: Part,
    source: str,
    *,
    known_hash: bool,
    limit: int,
    deadline: Deadline,
    progress: Progress | None,
) -> None:
    """Writes the body of `response` into `part`, behind what is there if the response continues it.

    Args:
        response: the answer, body not yet read.
        url: where it came from, for messages.
        part: its content is forgotten unless the response is its continuation.
        source: the source's name, noted with the part.
        known_hash: the whole is checked against a known hash, so that a wrong continuation would be noticed.
        limit: bytes the file may have.
        deadline: when to give up.
        progress: told the bytes so far after each block.

    Raises:
        NetworkError: compressed, too large, a web page, an unusable continuation (the part is empty then).
        TemporaryError: the body ended early or stalled (the part keeps what came).
        ResourceError: it cannot be written.
    """
    place = place_of(url)
    if response.status_code == 416:
        part.restart()
        raise TemporaryError("the download cannot be continued", where=place, why="the server has no such rest")
    origin = _origin(response, source)
    _refuse_compressed(response, place)
    if response.status_code == 206:
        _check_continuation(response, part, origin, known_hash, place)
    else:
        part.restart()
        part.describe(origin)
    total = part.origin.total if part.origin else None
    if total is not None and total > limit:
        part.restart()
        why = f"{total:,} bytes announced, at most {limit:,} expected"
        raise NetworkError("the file is too large", where=place, why=why)
    _check_space(part, total)
    page = response.headers.get("Content-Type", "").lower().startswith("text/html")
    with _cut_at(deadline, response):
        _copy_body(response, part, total, limit, page, place, deadline, progress)
    if total is not None and part.size != total:
        why = f"{part.size:,} of {total:,} bytes came"
        raise TemporaryError("the download is incomplete", where=place, why=why, hint=GO_ON)


def read_page(response: requests.Response, url: str, deadline: Deadline) -> str:
    """The beginning of a web page as text.

    Raises:
        TemporaryError: it could not be read.
    """
    data = b""
    with _cut_at(deadline, response):
        while len(data) < PAGE_LIMIT and (block := _read(response, place_of(url), deadline)):
            data += block
    return data.decode("utf-8", "replace")


def looks_like_page(head: bytes) -> bool:
    """Whether a file that begins with `head` is a web page."""
    return head.lstrip()[:100].lower().startswith((b"<!doctype", b"<html", b"<head", b"<?xml"))


def web_page(place: str) -> NetworkError:
    """The error for a web page in place of a file."""
    return NetworkError(
        "the server sent a web page instead of the file",
        where=place,
        why="a login, quota or error page, most likely",
    )


def _refuse_compressed(response: requests.Response, place: str) -> None:
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        why = f"it is compressed ({shown(encoding)}), which was not asked for"
        raise NetworkError("the answer cannot be used", where=place, why=why)


def _origin(response: requests.Response, source: str) -> Origin:
    """What the headers say about the whole content."""
    headers = response.headers
    total = _number(headers.get("Content-Length", ""))
    if response.status_code == 206:
        total = _content_range(response)[2]
    elif headers.get("Transfer-Encoding", "").lower() not in ("", "identity"):
        total = None
    return Origin(source, headers.get("ETag", "")[:300], headers.get("Last-Modified", "")[:100], total)


def _content_range(response: requests.Response) -> tuple[int, int, int | None]:
    """First byte, last byte and total of a 206 response; (-1, -1, None) if it does not say."""
    match = re.fullmatch(
        r"bytes +([0-9]{1,15})-([0-9]{1,15})/([0-9]{1,15}|\*)", response.headers.get("Content-Range", "")
    )
    return (int(match[1]), int(match[2]), _number(match[3])) if match else (-1, -1, None)


def _check_continuation(response: requests.Response, part: Part, origin: Origin, known_hash: bool, place: str) -> None:
    """A 206 answer must start where the part ends, reach the end, and belong to the same content."""
    first, last, total = _content_range(response)
    whole = total is not None and last == total - 1
    same = part.origin is not None and (part.origin.same_content(origin) or known_hash)
    if not (first == part.size > 0 and whole and same):
        part.restart()
        raise TemporaryError(
            "the download cannot be continued",
            where=place,
            why="the rest offered does not fit the beginning",
            hint="Run it again to start anew.",
        )
    part.describe(origin)
    part.continued = True


def _check_space(part: Part, total: int | None) -> None:
    """Refuses early what the disk cannot hold."""
    if total is None:
        return
    with suppress(OSError):
        free = shutil.disk_usage(part.path.parent).free
        if total - part.size > free:
            folder, why = part.path.parent, f"{(total - part.size) / 1e6:.1f} MB needed, {free / 1e6:.1f} MB free"
            part.discard()
            raise ResourceError("not enough disk space", where=folder, why=why, hint="Free some, or use --cache DIR.")


def _copy_body(
    response: requests.Response,
    part: Part,
    total: int | None,
    limit: int,
    page: bool,
    place: str,
    deadline: Deadline,
    progress: Progress | None,
) -> None:
    while block := _read(response, place, deadline):
        if part.size == 0 and (page or looks_like_page(block[:512])):
            part.restart()
            raise web_page(place)
        if part.size + len(block) > limit:
            part.restart()
            raise NetworkError("the file is too large", where=place, why=f"more than {limit:,} bytes came")
        part.append(block)
        if progress:
            progress(part.size, total)


def _read(response: requests.Response, place: str, deadline: Deadline) -> bytes:
    """The next bytes of the body as they are on the wire, empty at its end."""
    try:
        block = response.raw.read(BLOCK, decode_content=False)
    except NETWORK_ERRORS as error:
        deadline.check(place)
        raise TemporaryError("the download was cut off", where=place, why=reason_of(error), hint=GO_ON) from error
    deadline.check(place)
    return bytes(block)


@contextmanager
def _cut_at(deadline: Deadline, response: requests.Response) -> Iterator[None]:
    """Within the block the connection is shut down when the deadline passes, so that no read outlasts it."""

    def cut() -> None:
        with suppress(OSError, ValueError, urllib3.exceptions.HTTPError):
            connection = socket.socket(fileno=os.dup(response.raw.fileno()))
            with connection:
                connection.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(deadline.left, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[0-9]{1,15}", text.strip()) else None
