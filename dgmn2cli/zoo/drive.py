"""Google Drive: from a file id to the response with its bytes, past the pages that stand between.

Reading Google's confirmation page, which changes now and then, is left to gdown. What leads nowhere (quota used up,
not public, no such file) is a `NetworkError` that says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import requests

from dgmn2cli.errors import NetworkError
from dgmn2cli.zoo.http import Client, follow, place_of, read_block
from dgmn2cli.zoo.manifest import shown

FILE_ADDRESS = "https://drive.google.com/uc?export=download&id={id}"
AGENT = {"User-Agent": "Mozilla/5.0"}  # to other programs Google Drive answers with other pages
MAX_PAGES = 3


@contextmanager
def opened_drive_file(client: Client, file_id: str, headers: dict[str, str]) -> Iterator[requests.Response]:
    """The response that carries the file's bytes; `headers` go with the request for the bytes only."""
    url, why = FILE_ADDRESS.format(id=file_id), "one page leads to another"
    for _ in range(MAX_PAGES):
        with client.opened(url, AGENT) as response:
            said, url = response.headers, response.url
            page = said.get("Content-Type", "").startswith("text/html") and "Content-Disposition" not in said
            if not page and not headers:
                yield response
                return
            text = read_block(response).decode("utf-8", "replace") if page else ""
        if not page:
            with client.opened(url, {**AGENT, **headers}) as rest:
                yield rest
            return
        url = follow(url, _confirmed(text, url))
    raise NetworkError("Google Drive does not give the file", where=place_of(url), why=why)


def _confirmed(page: str, url: str) -> str:
    """The address behind a confirmation page."""
    from gdown.download import get_url_from_gdrive_confirmation  # 0.2 s, and most commands never get here
    from gdown.exceptions import FileURLRetrievalError

    try:
        return str(get_url_from_gdrive_confirmation(page))
    except (FileURLRetrievalError, AssertionError, KeyError, ValueError, TypeError, AttributeError) as error:
        said = " ".join(str(error).split()) if isinstance(error, FileURLRetrievalError) else ""
        lost = not said or said.startswith("Cannot retrieve")
        why = "its page shows no way to the file, which may not be public" if lost else f"it says: {shown(said)}"
        raise NetworkError("Google Drive does not give the file", where=place_of(url), why=why) from error
