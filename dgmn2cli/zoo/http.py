"""Asking a server: limits, one deadline for everything, safe redirects, and which failures may pass.

All raise `NetworkError`; `TemporaryError` where another attempt may not meet the failure.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException, IncompleteRead, RemoteDisconnected
from urllib.parse import urljoin, urlsplit

import requests
import urllib3

from dgmn2cli.errors import NetworkError
from dgmn2cli.version import __version__
from dgmn2cli.zoo.manifest import shown, url_fault

AGENT = f"dgmn2cli/{__version__}"
BLOCK = 1 << 16  # bytes of a body read at a time
MAX_REDIRECTS = 10
TEMPORARY = {408, 425, 429, 500, 502, 503, 504}
GO_ON = "Run it again; it goes on where it stopped if the server allows."
# what requests, urllib3 and http.client raise on a server that misbehaves
NETWORK_ERRORS = (requests.RequestException, urllib3.exceptions.HTTPError, HTTPException, OSError, ValueError)


@dataclass(frozen=True)
class Limits:
    """How patient to be: seconds, and attempts per source after the first."""

    connect: float = 10.0
    read: float = 30.0  # without a byte
    total: float = 3600.0  # for everything, all sources and attempts together
    retries: int = 3
    backoff: float = 1.0  # before an attempt, doubled each time


class TemporaryError(NetworkError):
    """A failure of the network that another attempt may not meet."""

    retry_after = ""  # the server's header


class Client:
    """A session that asks for bytes as they are, by a deadline; proxies and certificates as the environment says.

    The deadline is on the clock of `time.monotonic`.
    """

    def __init__(self, limits: Limits, deadline: float, agent: str = AGENT) -> None:
        self.limits, self.deadline = limits, deadline
        self._session = requests.Session()
        self._session.headers.update({"User-Agent": agent, "Accept": "*/*", "Accept-Encoding": "identity"})

    def close(self) -> None:
        """Ends the connections."""
        self._session.close()

    @property
    def left(self) -> float:
        """Seconds left, 0 when the deadline has passed."""
        return max(0.0, self.deadline - time.monotonic())

    def check(self, place: str) -> None:
        """Raises NetworkError once the deadline has passed."""
        if not self.left:
            hint = "Run it again to go on where it stopped, or allow more with --timeout."
            why = f"more than {self.limits.total:g} s in all"
            raise NetworkError("the download took too long", where=place, why=why, hint=hint)

    @contextmanager
    def opened(self, url: str, headers: dict[str, str] | None = None) -> Iterator[tuple[requests.Response, str]]:
        """The response to GET `url`, body not yet read, and the URL that gave it, redirects followed.

        While the block lasts the connection is shut down when the deadline passes, so that no read outlasts it.
        """
        for _ in range(MAX_REDIRECTS + 1):
            response = self._get(url, headers)
            timer = threading.Timer(self.left, _cut, [response])
            timer.daemon = True
            timer.start()
            try:
                if not response.is_redirect:
                    _check_status(response, url)
                    yield response, url
                    return
                url = follow(url, response.headers.get("Location", ""))
            finally:
                timer.cancel()
                response.close()
        why = f"more than {MAX_REDIRECTS} redirects"
        raise NetworkError("the server does not answer", where=place_of(url), why=why)

    def read(self, response: requests.Response, url: str) -> bytes:
        """The next bytes of the body as they are on the wire, empty at its end."""
        try:
            block = response.raw.read(BLOCK, decode_content=False)
        except NETWORK_ERRORS as error:
            self.check(place_of(url))
            why = _reason(error)
            raise TemporaryError("the download was cut off", where=place_of(url), why=why, hint=GO_ON) from error
        self.check(place_of(url))
        return bytes(block)

    def _get(self, url: str, headers: dict[str, str] | None) -> requests.Response:
        """GET `url` up to the end of the headers, in a thread: a server that sends them byte by byte cannot hold us.

        Nothing is asked again here: urllib3 would read an error page to its end before it tries again.
        """
        place = place_of(url)
        self.check(place)
        timeout = (min(self.limits.connect, self.left + 0.01), min(self.limits.read, self.left + 0.01))
        answers: queue.SimpleQueue[requests.Response | BaseException] = queue.SimpleQueue()
        given_up = threading.Event()

        def ask() -> None:
            try:
                response = self._session.get(url, headers=headers, timeout=timeout, stream=True, allow_redirects=False)
            except BaseException as error:  # noqa: BLE001  # raised again below, in the thread that waits
                answers.put(error)
                return
            answers.put(response)
            if given_up.is_set():
                response.close()

        threading.Thread(target=ask, daemon=True).start()
        try:
            answer = answers.get(timeout=self.left)
        except queue.Empty:
            given_up.set()
            answer = TimeoutError()
        if isinstance(answer, requests.Response):
            return answer
        if not isinstance(answer, NETWORK_ERRORS):
            raise answer
        self.check(place)
        raise _failure(answer, place) from answer


def follow(url: str, target: str) -> str:
    """The URL that `url` leads on to."""
    try:
        onward = urljoin(url, target)
        name, fault = place_of(onward), url_fault(onward)
    except ValueError:
        onward, name, fault = "", shown(target), "is no URL"
    if not fault and urlsplit(url).scheme == "https" and urlsplit(onward).scheme != "https":
        fault = "is plain http, which anyone on the way can change; wanted https"
    if fault:
        what = "the server leads to an address that is not followed"
        raise NetworkError(what, where=place_of(url), why=f"'{name}' {fault}")
    return onward


def place_of(url: str) -> str:
    """A URL as a message shows it: without its query, which may hold a token, and without a password."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return shown(f"{url.partition('://')[0]}://...")
    bare = parts._replace(query="", fragment="", netloc=parts.netloc.rpartition("@")[2])
    return shown(bare.geturl()) if parts.netloc else shown(url)


def _cut(response: requests.Response) -> None:
    with (
        suppress(OSError, ValueError, urllib3.exceptions.HTTPError),
        socket.socket(fileno=os.dup(response.raw.fileno())) as connection,
    ):
        connection.shutdown(socket.SHUT_RDWR)


def _check_status(response: requests.Response, url: str) -> None:
    status = response.status_code
    if status in (200, 206, 416):
        return
    phrase = HTTPStatus(status).phrase.lower() if status in list(HTTPStatus) else "no known status"
    why = f"status {status}: {phrase}"
    if status in TEMPORARY:
        error = TemporaryError("the server refuses", where=place_of(url), why=why, hint="Try again later.")
        error.retry_after = response.headers.get("Retry-After", "")
        raise error
    raise NetworkError("the server refuses", where=place_of(url), why=why)


def _failure(error: Exception, place: str) -> NetworkError:
    if isinstance(error, requests.exceptions.SSLError):
        why = "its certificate is not valid for this connection"
        return NetworkError("the server cannot be trusted", where=place, why=why)
    root = _root(error)
    odd = isinstance(root, (HTTPException, ValueError)) and not isinstance(root, ConnectionError)
    what = "the server's answer makes no sense" if odd else "the server cannot be reached"
    hint = "Check the network connection and the proxy settings."
    return TemporaryError(what, where=place, why=_reason(error), hint=hint)


def _reason(error: BaseException) -> str:
    """A network library's exception in a few words."""
    root = _root(error)
    if isinstance(root, socket.gaierror):
        return "its name cannot be resolved"
    if isinstance(root, (TimeoutError, urllib3.exceptions.TimeoutError)):
        return "no answer in time"
    if isinstance(root, RemoteDisconnected):
        return "it hangs up without an answer"
    if isinstance(root, (IncompleteRead, urllib3.exceptions.IncompleteRead)):
        return "the connection ended early"
    number = root.errno if isinstance(root, OSError) else None
    return os.strerror(number).lower() if number else shown(str(root) or type(root).__name__)


def _root(error: BaseException) -> BaseException:
    """What the libraries wrapped, several times, into `error`."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return error
