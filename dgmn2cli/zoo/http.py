"""Asking a server: limits, one deadline for everything, safe redirects, Google Drive, and which failures may pass.

All raise `NetworkError`; `TemporaryError` where another attempt may not meet the failure. Only certificates that the
environment names and that are not there are a `ResourceError`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from http.client import HTTPException
from urllib.parse import urljoin, urlsplit

import requests
import urllib3

from dgmn2cli.errors import NetworkError, ResourceError
from dgmn2cli.files import absence
from dgmn2cli.version import __version__
from dgmn2cli.zoo.manifest import PLAIN_HTTP, shown, url_fault

BLOCK = 1 << 16  # bytes of a body read at a time
MAX_REDIRECTS, MAX_PAGES = 10, 3
DRIVE = "https://drive.google.com/uc?export=download&id={id}"
NO_FILE = "Google Drive does not give the file"
DRIVE_AGENT = {"User-Agent": "Mozilla/5.0"}  # to other programs Google Drive answers with other pages
CERTIFICATES = "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"  # as requests looks for them
TEMPORARY = {408, 425, 429, 500, 502, 503, 504}
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

    retry_after: float | None = None  # seconds, if the server says so


class Client(requests.Session):
    """Asks for bytes as they are; proxies and certificates as the environment says."""

    def __init__(self, limits: Limits) -> None:
        super().__init__()
        self.limits, self.max_redirects = limits, MAX_REDIRECTS
        self.headers.update({"User-Agent": f"dgmn2cli/{__version__}", "Accept-Encoding": "identity"})

    @contextmanager
    def opened(self, url: str, headers: dict[str, str]) -> Iterator[requests.Response]:
        """The response to GET `url`, redirects followed, its body not yet read.

        Nothing is asked again here: urllib3 would read an error page to its end before it tries again.
        """
        _check_certificates(url)
        self.close()  # a connection that was used may be closed by its server at any moment
        with _own_errors(url):
            response = self.get(url, headers=headers, timeout=(self.limits.connect, self.limits.read), stream=True)
        with response:
            _check_status(response)
            yield response

    def get_redirect_target(self, response: requests.Response) -> str | None:
        """Where `response` leads, which is asked for next."""
        if target := super().get_redirect_target(response):
            response.close()  # requests would read its body, which may have no end
            return follow(response.url, target)
        return None

    @contextmanager
    def opened_drive_file(self, file_id: str, headers: dict[str, str]) -> Iterator[requests.Response]:
        """The response with a Google Drive file's bytes, past the pages before it; `headers` go with it alone."""
        url = DRIVE.format(id=file_id)
        for _ in range(MAX_PAGES):
            with self.opened(url, DRIVE_AGENT) as response:
                said, url = response.headers, response.url
                if "Content-Disposition" in said or not said.get("Content-Type", "").startswith("text/html"):
                    rest = self.opened(url, {**DRIVE_AGENT, **headers}) if headers else nullcontext(response)
                    with rest as file:
                        yield file
                    return
                page = read_block(response).decode("utf-8", "replace")
            url = follow(url, _confirmed(page, url))
        raise NetworkError(NO_FILE, where=place_of(url), why="one page leads to another")


def read_block(response: requests.Response) -> bytes:
    """The next bytes of the body as they are on the wire, empty at its end."""
    with _own_errors(response.url):
        return bytes(response.raw.read(BLOCK, decode_content=False))


def follow(url: str, target: str) -> str:
    """The URL that `url` leads on to."""
    with suppress(ValueError):
        target = urljoin(url, target)
    fault = url_fault(target)
    if not fault and urlsplit(url).scheme == "https" != urlsplit(target).scheme:
        fault = PLAIN_HTTP
    if fault:
        what = "the server leads to an address that is not followed"
        raise NetworkError(what, where=place_of(url), why=f"'{place_of(target)}' {fault}")
    return target


def _confirmed(page: str, url: str) -> str:
    """The address behind a confirmation page of Google's, which changes now and then: reading it is left to gdown."""
    from gdown.download import get_url_from_gdrive_confirmation  # 0.2 s, and most commands never get here
    from gdown.exceptions import FileURLRetrievalError

    try:
        return str(get_url_from_gdrive_confirmation(page))
    except (FileURLRetrievalError, AssertionError, KeyError, ValueError, TypeError, AttributeError) as error:
        said = " ".join(str(error).split()) if isinstance(error, FileURLRetrievalError) else ""
        lost = not said or said.startswith("Cannot retrieve")
        why = "its page shows no way to the file, which may not be public" if lost else f"it says: {shown(said)}"
        raise NetworkError(NO_FILE, where=place_of(url), why=why) from error


def place_of(url: str) -> str:
    """A URL as a message shows it: without its query, which may hold a token, and without a password."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return shown(f"{url.partition('://')[0]}://...")
    bare = parts._replace(query="", fragment="", netloc=parts.netloc.rpartition("@")[2])
    return shown(bare.geturl()) if parts.netloc else shown(url)


@contextmanager
def _own_errors(url: str) -> Iterator[None]:
    """Turns what the libraries raise into our own errors."""
    try:
        yield
    except requests.TooManyRedirects as error:
        raise NetworkError("the server does not answer", where=place_of(url), why=_reason(error)) from error
    except requests.exceptions.SSLError as error:
        raise NetworkError("the server cannot be trusted", where=place_of(url), why=_reason(error)) from error
    except NETWORK_ERRORS as error:
        hint = "Check network and proxy, or run it again; `dgmn2 download --from FILE` adopts a file fetched elsewhere."
        raise TemporaryError("the connection failed", where=place_of(url), why=_reason(error), hint=hint) from error


def _check_certificates(url: str) -> None:
    """Raises ResourceError where the environment names certificates that are not there: no other attempt helps."""
    variable = next((name for name in CERTIFICATES if os.environ.get(name)), "")
    path = os.environ.get(variable, "")
    if path and url.startswith("https") and not os.path.exists(path):
        why, hint = f"{variable} names it, and {absence(path)}", f"Correct {variable}, or unset it."
        raise ResourceError("cannot tell which servers to trust", where=path, why=why, hint=hint)


def _check_status(response: requests.Response) -> None:
    if response.status_code in (200, 206, 416):
        return
    kind = TemporaryError if response.status_code in TEMPORARY else NetworkError
    why = f"status {response.status_code}: {shown(response.reason or '')}"
    error = kind("the server refuses", where=place_of(response.url), why=why)
    if isinstance(error, TemporaryError):
        with suppress(urllib3.exceptions.HTTPError, ValueError, OverflowError):
            error.retry_after = urllib3.Retry().get_retry_after(response.raw)
    raise error


def _reason(error: BaseException) -> str:
    """A network library's exception, which wraps others, in a few words."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return shown(str(getattr(error, "strerror", "") or error or "no answer in time").lower())
