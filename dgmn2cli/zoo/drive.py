"""Google Drive: from a file id to the response with its bytes, past the pages that stand between.

Reading Google's confirmation page, which changes now and then, is left to gdown. What leads nowhere (quota used up,
not public, no such file) is a `NetworkError` that says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import requests

from dgmn2cli.errors import NetworkError
from dgmn2cli.zoo.http import Client, follow, place_of
from dgmn2cli.zoo.manifest import shown

FILE_ADDRESS = "https://drive.google.com/uc?export=download&id={id}"
AGENT = "Mozilla/5.0"  # to other programs Google Drive answers with other pages
MAX_PAGES = 3
PAGE_LIMIT = 1 << 16  # bytes of a page that are looked at


@contextmanager
def opened_drive_file(client: Client, file_id: str, headers: dict[str, str]) -> Iterator[tuple[requests.Response, str]]:
    """The response that carries the file's bytes, and its address; `headers` go with the request for the bytes only."""
    url = FILE_ADDRESS.format(id=file_id)
    for _ in range(MAX_PAGES):
        with client.opened(url) as (response, final):
            page = _is_page(response)
            if not page and not headers:
                yield response, final
                return
            text = b""
            while page and len(text) < PAGE_LIMIT and (block := client.read(response, final)):
                text += block
        if not page:
            with client.opened(final, headers) as (rest, address):
                yield rest, address
            return
        url = follow(final, _confirmed(text.decode("utf-8", "replace"), final))
    raise _refusal(url, "one page leads to another")


def _is_page(response: requests.Response) -> bool:
    kind = response.headers.get("Content-Type", "").lower()
    return kind.startswith("text/html") and "Content-Disposition" not in response.headers


def _confirmed(page: str, url: str) -> str:
    """The address behind a confirmation page."""
    from gdown.download import get_url_from_gdrive_confirmation  # 0.2 s, and most commands never get here
    from gdown.exceptions import FileURLRetrievalError

    text = page.lower()
    if "accounts.google" in (urlsplit(url).hostname or "") or "servicelogin" in text:
        raise _refusal(url, "it wants a Google account: the file is not public")
    if "quota exceeded" in text or "too many users" in text or "download quota" in text:
        raise _refusal(url, "its download quota is used up for now; that passes within a day or so")
    try:
        return str(get_url_from_gdrive_confirmation(page))
    except FileURLRetrievalError as error:
        said = " ".join(str(error).split())
        lost = not said or said.startswith("Cannot retrieve")
        raise _refusal(url, "its page shows no way to the file" if lost else f"it says: {shown(said)}") from error
    except (AssertionError, KeyError, ValueError, TypeError, AttributeError) as error:  # a form of another make
        raise _refusal(url, "its page cannot be read") from error


def _refusal(url: str, why: str) -> NetworkError:
    return NetworkError("Google Drive does not give the file", where=place_of(url), why=why)
