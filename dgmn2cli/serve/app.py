"""The routes, what guards them, and how errors are answered."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dgmn2cli.errors import ConfigError, DataError, Dgmn2Error, ResourceError, printable, shown
from dgmn2cli.inference.plan import TooLargeError
from dgmn2cli.report.html import render_page
from dgmn2cli.serve.metrics import TYPE
from dgmn2cli.serve.service import KINDS, Service

LOGGER = logging.getLogger("dgmn2cli")
OPEN = ("/", "/healthz")  # without a token: the page asks for it
GONE = 499  # in the log and the metrics: the client went away
DRAIN = 2.0  # seconds that a client may go on sending after its answer
_STATUS = ((ConfigError, 400), (DataError, 422), (TooLargeError, 413), (ResourceError, 503))
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}


def make_app(service: Service, hosts: Sequence[str] = ()) -> ASGIApp:
    """The whole application.

    Args:
        hosts: names in `Host` headers that are answered; none: any.
    """
    page = render_page("serve.html", token=service.request.token is not None)

    async def show_page(request: Request) -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": _policy(page)})

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def metrics(request: Request) -> Response:
        return Response(service.metrics.text(), media_type=TYPE)

    async def models(request: Request) -> Response:
        return JSONResponse({"models": [service.describe()]})

    async def segment(request: Request) -> Response:
        _require_image(request)
        kind = _query(request, "save").get("save", "ids")
        if kind not in KINDS:
            raise HTTPException(400, f"save is '{shown(kind)}', wanted one of {', '.join(KINDS)}")
        content = await service.answer(request, partial(service.segment, kind))
        return Response(content, media_type="application/json" if kind == "json" else "image/png")

    async def explain(request: Request) -> Response:
        _require_image(request)
        query = _query(request, "x", "y")
        try:
            x, y = float(query["x"]), float(query["y"])
        except (KeyError, ValueError):
            raise HTTPException(400, "x and y are wanted, in pixels of the image: ?x=1024&y=512") from None
        content = await service.answer(request, partial(service.explain, x, y))
        return Response(content, media_type="application/json")

    routes = [
        Route("/", show_page),
        Route("/healthz", health),
        Route("/metrics", metrics),
        Route("/v1/models", models),
        Route("/v1/segment", segment, methods=["POST"]),
        Route("/v1/explain", explain, methods=["POST"]),
    ]
    app = Starlette(
        routes=routes,
        exception_handlers={
            HTTPException: _refused,
            Dgmn2Error: _failed,
            ClientDisconnect: lambda request, error: Response(status_code=GONE),
            Exception: _unforeseen,
        },
    )
    app.router.redirect_slashes = False
    return Guard(app, service, hosts, [route.path for route in routes])


@dataclass
class Guard:
    """Refuses strangers, adds headers to every answer, counts and logs it, and ends connections in good order."""

    app: ASGIApp
    service: Service
    hosts: Sequence[str]
    paths: Sequence[str]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        began, status = time.perf_counter(), 0
        request = Request(scope)
        length, coding = request.headers.get("content-length", "0"), request.headers.get("transfer-encoding")
        more = coding is not None or length != "0"  # of the body is to come
        drains = more and "expect" not in request.headers  # such clients wait for our word

        async def receiving() -> Message:
            nonlocal more
            message = await receive()
            more = more and bool(message.get("more_body"))
            return message

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                given = {name for name, _ in message["headers"]}
                headers = {**_HEADERS, "Connection": "close"} if more else _HEADERS
                pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
                message["headers"] = [*message["headers"], *(pair for pair in pairs if pair[0] not in given)]
            elif more and drains and not message.get("more_body"):
                await send({**message, "more_body": True})
                with suppress(TimeoutError):  # a connection closed while data come would take the answer with it
                    async with asyncio.timeout(DRAIN):
                        while more and not self.service.ending:
                            await receiving()
                message = {"type": "http.response.body", "body": b"", "more_body": False}
            await send(message)

        try:
            await (self._refusal(request) or self.app)(scope, receiving, sending)
        finally:
            seconds, path = time.perf_counter() - began, scope["path"]
            self.service.metrics.count(path if path in self.paths else "other", status or 500, seconds)
            LOGGER.info("%s %s: %d in %.3f s", scope["method"], printable(path)[:200], status, seconds)

    def _refusal(self, request: Request) -> Response | None:
        """An answer to who may not ask: another web site through its visitor's browser, or whoever has no token."""
        headers, token = request.headers, self.service.request.token
        host = re.sub(r":\d*$", "", headers.get("host", "")).lower()
        if self.hosts and host not in self.hosts:
            return _error(421, f"the Host header is '{shown(host)}', wanted one of {', '.join(self.hosts)}")
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and request.method != "GET":
            return _error(403, "requests from the pages of other sites are not answered")
        path = request.scope["path"]  # `request.url` is made from the Host header, too
        if token is not None and path not in OPEN:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            same = hmac.compare_digest(given.strip().encode("latin-1", "replace"), token.encode())
            if not same or scheme.lower() != "bearer":
                wanted = {"WWW-Authenticate": "Bearer"}
                return _error(401, "the header 'Authorization: Bearer TOKEN' is missing or wrong", wanted)
        return None


def _policy(page: str) -> str:
    """What the page may do: run its own script, load from its own address, nothing else."""

    def hashes(tag: str) -> str:
        texts = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; img-src blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _require_image(request: Request) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind and kind != "application/octet-stream" and not kind.startswith("image/"):
        raise HTTPException(415, f"the Content-Type is '{shown(kind)}', wanted image/* or application/octet-stream")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise HTTPException(415, "the body is compressed, wanted the image file as it is")


def _query(request: Request, *names: str) -> dict[str, str]:
    """The query's parameters: each known, each once."""
    pairs = request.query_params.multi_items()
    for name, _ in pairs:
        if name not in names:
            raise HTTPException(400, f"there is no parameter '{shown(name)}', wanted {', '.join(names)}")
    if len(dict(pairs)) < len(pairs):
        raise HTTPException(400, "a parameter is given twice")
    return dict(pairs)


def _error(status: int, why: str, headers: dict[str, str] | None = None) -> Response:
    return Response(json.dumps({"error": why}) + "\n", status, headers, "application/json")


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    known = {404: "there is nothing at this path", 405: f"{request.method} is not possible here"}
    why = known.get(error.status_code, error.detail)
    return _error(error.status_code, why, dict(error.headers or {}))


async def _failed(request: Request, error: Exception) -> Response:
    """Says what is wrong and why; files and options of this machine are nobody's business."""
    assert isinstance(error, Dgmn2Error)
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    if status >= 500:
        LOGGER.error("%s", error)
    return _error(status, str(Dgmn2Error(error.what, why=error.why)), {"Retry-After": "5"} if status == 503 else None)


async def _unforeseen(request: Request, error: Exception) -> Response:
    LOGGER.error("an unforeseen failure: %s", error, exc_info=error)
    return _error(500, f"an unforeseen failure ({type(error).__name__}); the server's log says more")
