"""Pretend hosts on the loopback device: a plain one with many ways to misbehave, and one that plays Google Drive."""

from __future__ import annotations

import gzip
import itertools
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BOMB = gzip.compress(b"\0" * 20_000_000)
MODIFIED = formatdate(1_663_000_000, usegmt=True)


class Host(ThreadingHTTPServer):
    """Serves `content` at `/NAME` in the manner called NAME; counts requests.

    Attributes:
        content: the right bytes.
        asked: number of requests by path.
        ranges: the Range headers received.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.asked: Counter[str] = Counter()
        self.ranges: list[str] = []
        self.stopping = threading.Event()
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def url(self, manner: str) -> str:
        return f"{self.base}/{manner}"

    def stop(self) -> None:
        self.stopping.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is what many tests are about."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Host

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.split("?")[0].strip("/")
        self.server.asked[path] += 1
        self.count = self.server.asked[path]
        if "Range" in self.headers:
            self.server.ranges.append(self.headers["Range"])
        self.close_connection = True
        with suppress(OSError):
            if path in DRIVE:
                DRIVE[path](self)
            else:
                MANNERS[path](self)

    @property
    def content(self) -> bytes:
        return self.server.content

    def head(self, status: int = 200, **headers: object) -> None:
        """Status line and headers; underscores in names stand for hyphens."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def send(self, body: bytes, status: int = 200, **headers: object) -> None:
        self.head(status, Content_Length=len(body), **headers)
        self.wfile.write(body)

    def offset(self) -> int:
        match = re.fullmatch(r"bytes=([0-9]+)-", self.headers.get("Range", ""))
        return int(match[1]) if match else 0

    def serve(
        self, content: bytes, etag: str = '"right"', modified: str = MODIFIED, heed_if_range: bool = True
    ) -> None:
        """What a correct server does, Range and If-Range included."""
        start, total = self.offset(), len(content)
        condition = self.headers.get("If-Range")
        if start and heed_if_range and condition not in (None, etag, modified):
            start = 0
        validators = {key: value for key, value in (("ETag", etag), ("Last_Modified", modified)) if value}
        if start >= total > 0:
            self.send(b"", 416, Content_Range=f"bytes */{total}")
        elif start:
            self.send(content[start:], 206, Content_Range=f"bytes {start}-{total - 1}/{total}", **validators)
        else:
            self.send(content, **validators)

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def reset(self) -> None:
        """Ends the connection with a TCP reset."""
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def drip(self, data: bytes, pause: float = 0.05) -> None:
        for i in range(len(data)):
            if self.server.stopping.wait(pause):
                return
            self.wfile.write(data[i : i + 1])


def _half(h: Handler) -> bytes:
    return h.content[: len(h.content) // 2]


def _flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def _chunked(h: Handler) -> None:
    h.head(Transfer_Encoding="chunked")
    for i in range(0, len(h.content), 5000):
        h.chunk(h.content[i : i + 5000])
    h.wfile.write(b"0\r\n\r\n")


def _no_length(h: Handler) -> None:
    h.head(Connection="close")
    h.wfile.write(h.content)


def _short(h: Handler) -> None:
    h.head(Content_Length=len(h.content))
    h.wfile.write(_half(h))


def _short_once(h: Handler) -> None:
    if h.count == 1:
        h.head(Content_Length=len(h.content), ETag='"right"')
        h.wfile.write(_half(h))
    else:
        h.serve(h.content)


def _cut(h: Handler) -> None:
    h.head(Connection="close")
    h.wfile.write(_half(h))


def _cut_chunked(h: Handler) -> None:
    h.head(Transfer_Encoding="chunked")
    h.chunk(_half(h))


def _bad_chunk(h: Handler) -> None:
    h.head(Transfer_Encoding="chunked")
    h.chunk(_half(h))
    h.wfile.write(b"zz\r\n")


def _endless(h: Handler) -> None:
    h.head(Connection="close")
    while not h.server.stopping.is_set():
        h.wfile.write(b"\0" * 65536)


def _endless_chunks(h: Handler) -> None:
    h.head(Transfer_Encoding="chunked")
    while not h.server.stopping.is_set():
        h.chunk(b"\0" * 65536)


def _slow_body(h: Handler) -> None:
    h.head(Content_Length=len(h.content), ETag='"right"')
    h.drip(h.content)


def _slow_headers(h: Handler) -> None:
    h.wfile.write(b"HTTP/1.1 200 OK\r\n")
    h.drip(b"X-Long: " + b"x" * 60_000)


def _stall(h: Handler) -> None:
    h.head(Content_Length=len(h.content), ETag='"right"')
    h.wfile.write(_half(h))
    h.server.stopping.wait(20)


def _reset(h: Handler) -> None:
    h.head(Content_Length=len(h.content))
    h.wfile.write(_half(h))
    h.reset()


def _busy_once(h: Handler) -> None:
    if h.count == 1:
        h.send(b"busy", 503, Retry_After="0")
    else:
        h.serve(h.content)


def _redirect(location: str | None, status: int = 302) -> Callable[[Handler], None]:
    def manner(h: Handler) -> None:
        headers = {} if location is None else {"Location": location.replace("PORT", str(h.server.server_port))}
        h.send(b"", status, **headers)

    return manner


def _partial(content_range: str, begin: str = "START") -> Callable[[Handler], None]:
    """Answers a Range request with 206 and this Content-Range (START, END, TOTAL are filled in); others correctly.

    The bytes sent begin at `begin`.
    """

    def manner(h: Handler) -> None:
        start, total = h.offset(), len(h.content)
        if not start:
            h.serve(h.content)
            return
        values = {"START": start, "BACK": start - 1, "ZERO": 0, "END": total - 1, "TOTAL": total, "MORE": total + 1}
        text = re.sub("[A-Z]+", lambda match: str(values[match[0]]), content_range)
        headers = {"Content_Range": text} if text else {}
        h.send(h.content[values[begin] :], 206, ETag='"right"', **headers)

    return manner


def _status(status: int, **headers: object) -> Callable[[Handler], None]:
    return lambda h: h.send(b"no", status, **headers)


def _raw(data: bytes) -> Callable[[Handler], None]:
    return lambda h: (h.wfile.write(data), None)[1]


def _page(kind: str) -> Callable[[Handler], None]:
    return lambda h: h.send(b"  <!DOCTYPE html><html><title>Sign in</title></html>", Content_Type=kind)


# every way the plain host can answer; the comment says what a client must make of it, fresh or with an old part
MANNERS: dict[str, Callable[[Handler], None]] = {
    # the right file in the end
    "good": lambda h: h.serve(h.content),
    "only-modified": lambda h: h.serve(h.content, etag=""),
    "no-validator": lambda h: h.serve(h.content, etag="", modified=""),
    "weak-etag": lambda h: h.serve(h.content, etag='W/"right"', modified=""),
    "no-length": _no_length,
    "chunked": _chunked,
    "ignores-range": lambda h: h.send(h.content),
    "short-once": _short_once,
    "busy-once": _busy_once,
    "no-rest": lambda h: h.send(b"", 416) if h.offset() else h.serve(h.content),
    "changed": lambda h: h.serve(h.content, etag=f'"{h.count}"'),
    "changed-unheeded": lambda h: h.serve(h.content, etag=f'"{h.count}"', modified="", heed_if_range=False),
    "range-wrong-start": _partial("bytes BACK-END/TOTAL"),
    "range-wrong-end": _partial("bytes START-BACK/TOTAL"),
    "range-wrong-total": _partial("bytes START-END/MORE"),
    "range-unknown-total": _partial("bytes START-END/*"),
    "range-missing": _partial(""),
    "range-other-unit": _partial("lines START-END/TOTAL"),
    "range-earlier": _partial("bytes BACK-END/TOTAL", "BACK"),
    "range-from-zero": _partial("bytes ZERO-END/TOTAL", "ZERO"),
    "hostile-name": lambda h: h.send(h.content, Content_Disposition='attachment; filename="../../../evil.pth"'),
    "redirect-relative": _redirect("/good"),
    "redirect-other-host": _redirect("http://localhost:PORT/good", 301),
    "redirect-307": _redirect("good", 307),
    "longer-than-said": lambda h: (h.head(Content_Length=len(h.content)), h.wfile.write(h.content + b"more"))[0],
    "html-type-wrong": lambda h: h.send(h.content, Content_Type="text/plain"),
    # never the right file
    "short": _short,
    "cut": _cut,
    "cut-chunked": _cut_chunked,
    "bad-chunk": _bad_chunk,
    "endless": _endless,
    "endless-chunks": _endless_chunks,
    "enormous": lambda h: h.head(Content_Length=10**14),
    "slow-body": _slow_body,
    "slow-headers": _slow_headers,
    "stall": _stall,
    "silent": lambda h: (h.server.stopping.wait(20), None)[1],
    "hang-up": lambda h: None,
    "reset": _reset,
    "garbage": _raw(b"\x00\xff\x00 hello\r\n\r\n"),
    "many-headers": _raw(b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: 1\r\n" % i for i in range(300)) + b"\r\n"),
    "long-header": _raw(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n"),
    "two-lengths": _raw(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef"),
    "negative-length": _raw(b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nabcdef"),
    "flipped": lambda h: h.send(_flipped(h.content)),
    "empty": lambda h: h.send(b""),
    "no-content": _status(204),
    "page": _page("text/html; charset=utf-8"),
    "page-as-bytes": _page("application/octet-stream"),
    "lfs-pointer": lambda h: h.send(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"),
    "gzip": lambda h: h.send(gzip.compress(h.content), Content_Encoding="gzip"),
    "gzip-bomb": lambda h: h.send(BOMB, Content_Encoding="gzip"),
    "unknown-encoding": lambda h: h.send(h.content, Content_Encoding="x-secret"),
    "partial-unasked": lambda h: h.send(_half(h), 206, Content_Range=f"bytes 0-{len(_half(h)) - 1}/{len(h.content)}"),
    "401": _status(401),
    "403": _status(403),
    "404": _status(404),
    "410": _status(410),
    "416": _status(416),
    "418": _status(418),
    "429": _status(429, Retry_After="0"),
    "500": _status(500),
    "503": _status(503, Retry_After="Fri, 31 Dec 1999 23:59:59 GMT"),
    "503-strange": _status(503, Retry_After="soon"),
    "redirect-loop": _redirect("/redirect-loop"),
    "redirect-nowhere": _redirect(None),
    "redirect-ftp": _redirect("ftp://127.0.0.1/good"),
    "redirect-file": _redirect("file:///etc/passwd"),
    "redirect-data": _redirect("data:text/plain,hello"),
    "redirect-plain-host": _redirect("http://192.0.2.1/good"),
    "redirect-password": _redirect("http://user:secret@127.0.0.1:PORT/good"),
    "redirect-strange": _redirect("http://[::1/\x01"),
    # for tests that need time while a download runs
    "lingering": lambda h: _linger(h),
    # leads to the file, by an answer that does not end
    "redirect-endless": lambda h: (h.head(302, Location="/good"), _flood(h))[1],
}

GOOD = tuple(itertools.takewhile(lambda name: name != "short", MANNERS))
BAD = tuple(name for name in MANNERS if name not in (*GOOD, "lingering", "redirect-endless"))


def _linger(h: Handler) -> None:
    """The right file, in 40 pieces with a pause after each."""
    content, start = h.content, h.offset()
    status, headers = (
        (206, {"Content_Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}) if start else (200, {})
    )
    h.head(status, Content_Length=len(content) - start, ETag='"right"', **headers)
    step = max(1, len(content) // 40)
    for i in range(start, len(content), step):
        h.wfile.write(content[i : i + step])
        h.wfile.flush()
        time.sleep(0.025)


# Google Drive: `/uc?id=MANNER` and what it leads to


def _drive(h: Handler) -> None:
    query = dict(pair.split("=", 1) for pair in h.path.partition("?")[2].split("&") if "=" in pair)
    DRIVE_MANNERS[query["id"].strip("_")](h)


def _download(h: Handler) -> None:
    """`/download`, where the confirmation form leads."""
    if "confirm=t" in h.path and "uuid=12-34" in h.path:
        _attachment(h)
    else:
        h.send(b"<html>no</html>", 403, Content_Type="text/html")


def _attachment(h: Handler) -> None:
    start, total = h.offset(), len(h.content)
    headers = {
        "Content_Type": "application/octet-stream",
        "Content_Disposition": "attachment; filename=\"model.pth\"; filename*=UTF-8''model.pth",
        "Last_Modified": MODIFIED,
    }
    if start:
        headers["Content_Range"] = f"bytes {start}-{total - 1}/{total}"
    h.send(h.content[start:], 206 if start else 200, **headers)


def _html(text: str, status: int = 200) -> Callable[[Handler], None]:
    return lambda h: h.send(text.encode(), status, Content_Type="text/html; charset=utf-8")


def _form(h: Handler) -> None:
    page = f"""<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head><body>
<p class="uc-warning-caption">Google Drive can't scan this file for viruses.</p>
<form id="download-form" action="{h.server.base}/download" method="get"><input type="submit" value="Download anyway"/>
<input type="hidden" name="id" value="{h.path.partition("id=")[2]}"><input type="hidden" name="export" value="download">
<input type="hidden" name="confirm" value="t"><input type="hidden" name="uuid" value="12-34"></form></body></html>"""
    _html(page.replace("\n<input", "<input"))(h)


QUOTA = """<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head><body>
<p class="uc-error-caption">Sorry, you can't view or download this file at this time.</p>
<p class="uc-error-subcaption">Too many users have viewed or downloaded this file recently. Please try again later.</p>
</body></html>"""
LOGIN = """<html><head><title>Sign in - Google Accounts</title></head><body>
<form action="https://accounts.google.com/ServiceLogin"></form></body></html>"""
DRIVE_MANNERS: dict[str, Callable[[Handler], None]] = {
    "direct": _attachment,
    "form": _form,
    "form-other-action": lambda h: _html('<form id="download-form" action="ftp://x/y"></form>')(h),
    "form-elsewhere": lambda h: _html('<form id="download-form" action="http://192.0.2.1/y"></form>')(h),
    "form-broken": _html('<form id="download-form"></form>'),
    "form-again": lambda h: _html(f'<form id="download-form" action="{h.server.base}/uc?id=form-again"></form>')(h),
    "quota": _html(QUOTA),
    "login": _html(LOGIN),
    "folder": _html("<html><head><title>DGMN2 - Google Drive</title></head><body>a folder</body></html>"),
    "other-error": _html('<p class="uc-error-subcaption">This file is \x1b[31mtoo strange.</p>'),
    "missing": _html("<html><title>Error 404 (Not Found)!!1</title></html>", 404),
    "denied": _html("<html>no</html>", 403),
    "empty-page": _html(""),
    "endless-page": lambda h: (h.head(Content_Type="text/html", Connection="close"), _flood(h))[1],
}
DRIVE = {"uc": _drive, "download": _download}
DRIVE_GOOD = ("direct", "form")


def _flood(h: Handler) -> None:
    while not h.server.stopping.is_set():
        h.wfile.write(b"<p>x</p>\n" * 5000)
