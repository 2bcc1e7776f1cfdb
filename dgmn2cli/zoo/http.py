"""Owns asking a server: sessions, deadlines, safe redirects, and which failures another attempt may not meet."""

from __future__ import annotations

import email.utils
import os
import queue
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPException, IncompleteRead, RemoteDisconnected
from urllib.parse import urljoin, urlsplit

import requests
import urllib3

from dgmn2cli.errors import NetworkError
from dgmn2cli.version import __version__
from dgmn2cli.zoo.manifest import shown
from dgmn2cli.zoo.parse import url_fault

MAX_REDIRECTS = 10
MAX_RETRY_AFTER = 60.0  # seconds a server may ask us to wait
TEMPORARY = {408, 425, 429, 500, 502, 503, 504}
MEANING = {
    204: "there is no content",
    401: "it wants a password",
    403: "access is refused",
    404: "there is no such file",
    410: "the file is gone",
    429: "too many requests",
    **dict.fromkeys((301, 302, 303, 307, 308), "it leads on, but not where to"),
}
# what requests, urllib3 and http.client raise on a server that misbehaves
NETWORK_ERRORS = (requests.RequestException, urllib3.exceptions.HTTPError, HTTPException, OSError, ValueError)


@dataclass(frozen=True)
class Limits:
    """How patient to be.

    Attributes:
        connect: seconds for a connection.
        read: seconds without a byte.
        total: seconds for everything, all sources and retries together.
        retries: further attempts per source after a failure that may pass.
        backoff: seconds before the first of them, doubled each time.
    """

    connect: float = 10.0
    read: float = 30.0
    total: float = 3600.0
    retries: int = 3
    backoff: float = 1.0


class Deadline:
    """A moment by which everything must be done."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds left, 0 when it has passed."""
        return max(0.0, self._end - time.monotonic())

    def check(self, where: str) -> None:
        """Raises NetworkError once the deadline has passed."""
        if not self.left:
            raise self.expired(where)

    def expired(self, where: str) -> NetworkError:
        """The error to raise then."""
        return NetworkError(
            "the download took too long",
            where=where,
            why=f"more than {self.seconds:g} s in all",
            hint="Run it again to go on where it stopped, or allow more with --timeout.",
        )


class TemporaryError(NetworkError):
    """A failure of the network that another attempt may not meet.

    Attributes:
        retry_after: seconds the server asked to wait, None if it did not say.
    """

    retry_after: float | None = None


def new_session(agent: str = f"dgmn2cli/{__version__}") -> requests.Session:
    """A session that asks for bytes as they are; proxies and certificates as the environment says."""
    session = requests.Session()
    session.headers.update({"User-Agent": agent, "Accept": "*/*", "Accept-Encoding": "identity"})
    return session


@contextmanager
def opened(
    session: requests.Session, url: str, limits: Limits, deadline: Deadline, headers: dict[str, str] | None = None
) -> Iterator[tuple[requests.Response, str]]:
    """The response to GET `url`, body not yet read, and the URL that gave it, redirects followed.

    Raises:
        NetworkError: a redirect from https to anything else, to another scheme, too many redirects, a status that
            will not change.
        TemporaryError: no connection, no answer, a status that may pass.
    """
    for _ in range(MAX_REDIRECTS + 1):
        response = _get(session, url, limits, deadline, headers)
        try:
            if not response.is_redirect:
                _check_status(response, url)
                yield response, url
                return
            url = follow(url, response.headers.get("Location", ""))
        finally:
            response.close()
    raise NetworkError("the server does not answer", where=place_of(url), why=f"more than {MAX_REDIRECTS} redirects")


def follow(url: str, target: str) -> str:
    """The URL that `url` leads on to.

    Raises:
        NetworkError: https is left, or the target is no address that may be asked.
    """
    try:
        onward = urljoin(url, target)
        fault = url_fault(onward)
    except ValueError:
        raise _not_followed(url, shown(target), "is no URL") from None
    if not fault and urlsplit(url).scheme == "https" and urlsplit(onward).scheme != "https":
        fault = "is plain http, which anyone on the way can change; wanted https"
    if fault:
        raise _not_followed(url, place_of(onward), fault)
    return onward


def _not_followed(url: str, onward: str, fault: str) -> NetworkError:
    what = "the server leads to an address that is not followed"
    return NetworkError(what, where=place_of(url), why=f"'{onward}' {fault}")


def _get(
    session: requests.Session, url: str, limits: Limits, deadline: Deadline, headers: dict[str, str] | None
) -> requests.Response:
    """GET `url` up to the end of the headers, in a thread: a server that sends them byte by byte cannot hold us."""
    place = place_of(url)
    deadline.check(place)
    answers: queue.SimpleQueue[requests.Response | BaseException] = queue.SimpleQueue()
    given_up = threading.Event()

    def ask() -> None:
        try:
            timeout = (min(limits.connect, deadline.left + 0.01), min(limits.read, deadline.left + 0.01))
            response = session.get(url, headers=headers, timeout=timeout, stream=True, allow_redirects=False)
        except BaseException as error:  # noqa: BLE001  # raised again below, in the thread that waits
            answers.put(error)
            return
        answers.put(response)
        if given_up.is_set():
            response.close()

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=deadline.left)
    except queue.Empty:
        given_up.set()
        raise deadline.expired(place) from None
    if isinstance(answer, requests.Response):
        return answer
    if not isinstance(answer, NETWORK_ERRORS):
        raise answer
    deadline.check(place)
    raise _failure(answer, place) from answer


def _failure(error: Exception, place: str) -> NetworkError:
    """What a request that got no response means."""
    if isinstance(error, requests.exceptions.SSLError):
        why = "its certificate is not valid for this connection"
        return NetworkError("the server cannot be trusted", where=place, why=why)
    hint = "Check the network connection and the proxy settings."
    causes = _causes(error)
    if any(isinstance(c, (HTTPException, ValueError)) and not isinstance(c, ConnectionError) for c in causes):
        return TemporaryError("the server's answer makes no sense", where=place, why=reason_of(error), hint=hint)
    return TemporaryError("the server cannot be reached", where=place, why=reason_of(error), hint=hint)


def _check_status(response: requests.Response, url: str) -> None:
    status = response.status_code
    if status in (200, 206, 416):
        return
    why = f"status {status}" + (f": {MEANING[status]}" if status in MEANING else "")
    if status in TEMPORARY:
        error = TemporaryError("the server refuses", where=place_of(url), why=why, hint="Try again later.")
        error.retry_after = _retry_after(response.headers.get("Retry-After", ""))
        raise error
    raise NetworkError("the server refuses", where=place_of(url), why=why)


def _retry_after(text: str) -> float | None:
    """Seconds a Retry-After header asks for, at most `MAX_RETRY_AFTER`; None if it says nothing usable."""
    if text.strip().isdigit():
        return min(float(text.strip()[:9]), MAX_RETRY_AFTER)
    try:
        moment = email.utils.parsedate_to_datetime(text)
        seconds = (moment - datetime.now(moment.tzinfo or UTC)).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)


def reason_of(error: BaseException) -> str:
    """A network library's exception in a few words."""
    causes = _causes(error)
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return "its name cannot be resolved"
    numbers = [cause.errno for cause in causes if isinstance(cause, OSError) and cause.errno]
    if numbers:
        return os.strerror(numbers[0]).lower()
    timeouts = (TimeoutError, requests.Timeout, urllib3.exceptions.TimeoutError)
    if any(isinstance(cause, timeouts) for cause in causes):
        return "no answer in time"
    if any(isinstance(cause, RemoteDisconnected) for cause in causes):
        return "it hangs up without an answer"
    if any(isinstance(cause, (IncompleteRead, urllib3.exceptions.IncompleteRead)) for cause in causes):
        return "the connection ended early"
    return shown(str(causes[-1]) or type(error).__name__)


def _causes(error: BaseException) -> list[BaseException]:
    """The exception and what it wraps; the libraries wrap the cause several times, each in its own way."""
    causes = [error]
    for cause in causes:  # grows on the way
        wrapped = [getattr(cause, "reason", None), cause.__cause__, cause.__context__, *cause.args]
        causes += [item for item in wrapped if isinstance(item, BaseException) and item not in causes]
        if len(causes) > 20:
            break
    return causes


def place_of(url: str) -> str:
    """A URL as a message shows it: without its query, which may hold a token, and without a password."""
    parts = urlsplit(url)
    bare = parts._replace(query="", fragment="", netloc=parts.netloc.rpartition("@")[2])
    return shown(bare.geturl()) if parts.netloc else shown(url)
