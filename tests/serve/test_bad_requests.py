"""Bad requests, byte by byte: a status between 400 and 499 and one line, within the limits; then a good one works."""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from serving import Answer, Gate, Running, around, ask, connect, png, post, read_answer, real, running

from dgmn2cli.serve import run
from dgmn2cli.serve.request import ServeRequest

TIMEOUT, HEAD = 1.0, 0.7  # seconds
MOST = 50_000  # bytes
TOKEN = "k" * 32
KEY = f"Authorization: Bearer {TOKEN}"
SEGMENT, EXPLAIN = "/v1/segment", "/v1/explain"
IMAGE = png()


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that promises many pixels, all of them zeros."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1 << 20), 9) if width * height > 1 << 20 else zlib.compress(bytes(40_000_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def animation() -> bytes:
    import io

    from PIL import Image

    file, frames = io.BytesIO(), [Image.fromarray(np.full((9, 9), i * 40, np.uint8)) for i in range(3)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    return file.getvalue()


def with_head(*lines: str, body: bytes = b"") -> bytes:
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


HOST = "Host: localhost"
CHUNKED = ("POST /v1/segment HTTP/1.1", HOST, KEY, "Transfer-Encoding: chunked")
FOR_STRANGERS = {
    "no token": (post(SEGMENT, IMAGE), 401),
    "a wrong token": (post(SEGMENT, IMAGE, f"{KEY}x"), 401),
    "another scheme": (post(SEGMENT, IMAGE, f"Authorization: Basic {TOKEN}"), 401),
    "no token for the metrics": (with_head("GET /metrics HTTP/1.1", HOST), 401),
    "another host's name": (post(SEGMENT, IMAGE, KEY, host="evil.example"), 421),
    "another site's page": (post(SEGMENT, IMAGE, KEY, "Sec-Fetch-Site: cross-site"), 403),
    "HTTP/1.0 without a host": (with_head("GET /healthz HTTP/1.0"), 421),
}
OF_HTTP = {
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 421),
    "HTTP/1.1 without a host": (with_head("GET /healthz HTTP/1.1"), 400),
    "huge headers": (with_head("GET / HTTP/1.1", HOST, f"X: {'x' * 200_000}"), 400),
    "very many headers": (with_head("GET / HTTP/1.1", HOST, *(f"X{i}: y" for i in range(20_000))), 400),
    "a huge path": (with_head(f"GET /{'x' * 100_000} HTTP/1.1", HOST, KEY), 404),
    "a negative length": (post(SEGMENT, IMAGE, KEY, length=-1), 400),
    "a length that is no number": (post(SEGMENT, IMAGE, KEY, length="many"), 400),
    "two lengths": (post(SEGMENT, IMAGE, KEY, "Content-Length: 3"), 400),
    "a chunk of no size": (with_head(*CHUNKED, body=b"zz\r\nabc\r\n"), 400),
    "a header with a NUL": (post(SEGMENT, IMAGE, KEY, "X: a\0b"), 400),
    "another coding": (with_head(*CHUNKED[:3], "Transfer-Encoding: gzip", body=IMAGE), 400),
}
OF_ROUTES = {
    "the wrong method": (with_head("GET /v1/segment HTTP/1.1", HOST, KEY), 405),
    "PUT": (post(SEGMENT, IMAGE, KEY).replace(b"POST", b"PUT", 1), 405),
    "POST of the page": (post("/", IMAGE, KEY), 405),
    "an unknown method": (post(SEGMENT, IMAGE, KEY).replace(b"POST", b"STEAL", 1), 405),
    "an unknown path": (post("/v2/segment", IMAGE, KEY), 404),
    "a path with a slash more": (post("/v1/segment/", IMAGE, KEY), 404),
    "a way up": (with_head("GET /../../../../etc/passwd HTTP/1.1", HOST, KEY), 404),
    "an escaped way up": (with_head("GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1", HOST, KEY), 404),
    "a way up behind a path": (post("/v1/segment/../../etc/passwd", IMAGE, KEY), 404),
    "a proxy's target": (with_head("GET http://evil.example/ HTTP/1.1", HOST, KEY), 404),
    "an unknown save": (post(f"{SEGMENT}?save=probs", IMAGE, KEY), 400),
    "an empty save": (post(f"{SEGMENT}?save=", IMAGE, KEY), 400),
    "save as a path": (post(f"{SEGMENT}?save=../../etc/passwd", IMAGE, KEY), 400),
    "save twice": (post(f"{SEGMENT}?save=ids&save=json", IMAGE, KEY), 400),
    "an unknown parameter": (post(f"{SEGMENT}?path=/etc/passwd", IMAGE, KEY), 400),
    "no position": (post(EXPLAIN, IMAGE, KEY), 400),
    "half a position": (post(f"{EXPLAIN}?x=3", IMAGE, KEY), 400),
    "a position of words": (post(f"{EXPLAIN}?x=left&y=3", IMAGE, KEY), 400),
    "a position that is not a number": (post(f"{EXPLAIN}?x=nan&y=3", IMAGE, KEY), 400),
    "a position at infinity": (post(f"{EXPLAIN}?x=1e999&y=3", IMAGE, KEY), 400),
    "a position outside": (post(f"{EXPLAIN}?x=70&y=3", IMAGE, KEY), 400),
    "a negative position": (post(f"{EXPLAIN}?x=-1&y=3", IMAGE, KEY), 400),
}
OF_BODIES = {
    "the wrong type": (post(SEGMENT, IMAGE, KEY, "Content-Type: text/plain"), 415),
    "a form": (post(SEGMENT, IMAGE, KEY, "Content-Type: multipart/form-data; boundary=x"), 415),
    "a compressed body": (post(SEGMENT, IMAGE, KEY, "Content-Encoding: gzip"), 415),
    "no body": (post(SEGMENT, b"", KEY), 400),
    "no body in chunks": (with_head(*CHUNKED, body=b"0\r\n\r\n"), 400),
    "text": (post(SEGMENT, b"hello, this is no image at all", KEY), 422),
    "a page": (post(SEGMENT, b"<svg xmlns='http://www.w3.org/2000/svg'/>", KEY, "Content-Type: image/svg+xml"), 422),
    "a cut image": (post(SEGMENT, IMAGE[:-30], KEY), 422),
    "a damaged image": (post(SEGMENT, IMAGE[:60] + b"\xff" + IMAGE[61:], KEY), 422),
    "an animation": (post(SEGMENT, animation(), KEY), 422),
    "a bomb": (post(SEGMENT, bomb(60_000, 60_000), KEY), 422),
    "a bomb behind a small header": (post(SEGMENT, bomb(10, 10), KEY), 422),
    "an image of too many pixels": (post(SEGMENT, bomb(1001, 1000), KEY), 422),
    "too many bytes by its length": (post(SEGMENT, b"", KEY, length=MOST + 1), 413),
    "a length beyond all numbers": (post(SEGMENT, b"", KEY, length="9" * 19), 413),
    "too many bytes in chunks": (with_head(*CHUNKED, body=b"10000\r\n" + bytes(65536)), 413),
    "a body that is sent all the same": (post(SEGMENT, bytes(2_000_000), KEY), 413),
}
ALL = FOR_STRANGERS | OF_HTTP | OF_ROUTES | OF_BODIES


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "HEAD_SECONDS", HEAD)
        with running(real(), request=ServeRequest(token=TOKEN, max_bytes=MOST, timeout=TIMEOUT * 20)) as found:
            yield found


@pytest.fixture(scope="module")
def hasty() -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "HEAD_SECONDS", HEAD)
        with running(real(), request=ServeRequest(token=TOKEN, max_bytes=MOST, timeout=TIMEOUT)) as found:
            yield found


def check(answer: Answer, status: int) -> None:
    text = answer.body.decode()
    assert answer.status == status, text
    assert len(text.splitlines()) == 1
    assert 10 < len(text) < 300
    assert "/secret" not in text
    assert answer.seconds < 10


@pytest.mark.parametrize("name", ALL)
def test_it_is_refused_in_one_line(server: Running, name: str) -> None:
    request, status = ALL[name]
    check(ask(server.port, request), status)


def test_there_are_many_and_good_requests_work_after_them(server: Running) -> None:
    assert len(ALL) > 50
    for request, _ in ALL.values():
        ask(server.port, request)
    answer = ask(server.port, post(SEGMENT, IMAGE, KEY))
    assert answer.status == 200
    assert answer.body.startswith(b"\x89PNG")


def test_cut_bodies(server: Running) -> None:
    check(ask(server.port, post(SEGMENT, IMAGE[:500], KEY, length=len(IMAGE)), half_close=True), 400)
    check(ask(server.port, with_head(*CHUNKED, body=b"5\r\nab"), half_close=True), 400)
    for _ in range(20):  # whoever sends half and goes away gets nothing, and takes no place for long
        with connect(server.port) as connection:
            connection.sendall(post(SEGMENT, IMAGE[:500], KEY, length=len(IMAGE)))
    deadline = time.monotonic() + 5
    while ask(server.port, post(SEGMENT, IMAGE, KEY)).status != 200:
        assert time.monotonic() < deadline


SLOW = {
    "a slow body": post(SEGMENT, b"", KEY, length=40_000),
    "chunks without end": with_head(*CHUNKED),
}


@pytest.mark.parametrize("name", SLOW)
def test_slow_bodies(hasty: Running, name: str) -> None:
    with connect(hasty.port) as connection:
        began = time.perf_counter()
        connection.sendall(SLOW[name])
        connection.settimeout(0.1)
        answer = None
        while answer is None:
            connection.sendall(b"1\r\nx\r\n")
            try:
                answer = read_answer(connection, began)
            except TimeoutError:
                assert time.perf_counter() - began < 10
    check(answer, 408)
    assert answer.seconds > TIMEOUT * 0.9
    assert ask(hasty.port, with_head("GET /healthz HTTP/1.1", HOST)).status == 200


@pytest.mark.parametrize("start", [b"POST /v1/segment HT", b"GET / HTTP/1.1\r\nHost: local"])
def test_slow_heads(server: Running, start: bytes) -> None:
    with connect(server.port) as connection:
        began = time.perf_counter()
        connection.sendall(start)
        check(read_answer(connection, began), 400)
    with connect(server.port) as connection:  # the second request of a connection
        connection.sendall(with_head("GET /healthz HTTP/1.1", HOST))
        assert read_answer(connection, began).status == 200
        began = time.perf_counter()
        connection.sendall(start)
        check(read_answer(connection, began), 400)


def test_silent_connections_are_closed(server: Running) -> None:
    with connect(server.port) as connection:
        assert connection.recv(1) == b""


def test_connections_without_end_do_not_shut_others_out(server: Running) -> None:
    many = [connect(server.port) for _ in range(run.CONNECTIONS + 20)]
    try:
        assert ask(server.port, with_head("GET /healthz HTTP/1.1", HOST)).status in (200, 503)
        time.sleep(HEAD + 0.5)
        assert ask(server.port, with_head("GET /healthz HTTP/1.1", HOST)).status == 200
    finally:
        for connection in many:
            connection.close()


def test_failures_of_the_machine_name_none_of_its_files() -> None:
    """The network breaks: the answer has the kind of fault, the log the rest."""

    class Broken(Gate):
        def forward(self, images: object) -> object:  # type: ignore[override]
            raise OSError(28, "No space left on device", "/secret/file")

    with running(around(Broken())) as server:
        answer = ask(server.port, post(SEGMENT, IMAGE))
        assert answer.status == 500
        assert b"secret" not in answer.body
        assert len(answer.body.decode().splitlines()) == 1
        assert ask(server.port, with_head("GET /healthz HTTP/1.1", HOST)).status == 200
