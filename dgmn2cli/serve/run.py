"""Serving until a signal comes: the connections' limits of time, and the end in good order."""

from __future__ import annotations

import asyncio
import json
import math
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from dgmn2cli.inference.plan import Settings
from dgmn2cli.inference.segmenter import Segmenter
from dgmn2cli.serve.app import DRAIN, make_app
from dgmn2cli.serve.request import ServeRequest, is_loopback
from dgmn2cli.serve.service import Service

HEAD_SECONDS = 10.0  # that the head of a request may take
STUCK_SECONDS = 30.0  # that a client may leave its answer unread
CONNECTIONS = 256
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True)
class Listening:
    """The server answers."""

    url: str
    model: str
    token: bool


class Connection(H11Protocol):
    """A connection whose client has to go on: uvicorn itself limits only the time between two requests."""

    _head: asyncio.TimerHandle | None = None
    _stuck: asyncio.TimerHandle | None = None
    _refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The head of a request is waited for."""
        super().connection_made(transport)
        self._head = self.loop.call_later(HEAD_SECONDS, self._end)

    def data_received(self, data: bytes) -> None:
        """More of a request; what comes after a refusal is ignored."""
        if self._refused:
            return
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_clocks()
        elif self._head is None and self.conn.trailing_data[0]:
            self._head = self.loop.call_later(HEAD_SECONDS, self._end)

    def eof_received(self) -> None:
        """A body that is cut gets an answer from h11, which knows that it is."""
        waits = self.cycle is not None and self.cycle.more_body and not self.cycle.response_started
        if waits and not self._refused:
            self.conn.receive_data(b"")
            self.handle_events()

    def send_400_response(self, msg: str) -> None:
        """One line; then the client may go on for a moment, since closing while data come would take it back."""
        self._stop_clocks()
        self._refused = True
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps({"error": msg}).encode() + b"\n"
            length = str(len(body)).encode()
            headers = [(b"content-type", b"application/json"), (b"content-length", length), (b"connection", b"close")]
            head = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
            for event in (head, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
            self.transport.write_eof()
        self.flow.resume_reading()
        self._stuck = self.loop.call_later(DRAIN, self.transport.abort)

    def pause_writing(self) -> None:
        """The client does not read."""
        super().pause_writing()
        self._stuck = self.loop.call_later(STUCK_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has read."""
        super().resume_writing()
        self._stop_clocks()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._stop_clocks()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """The server ends, and does not wait for a client that is stuck."""
        if self._stuck is not None:
            self.transport.abort()
        else:
            super().shutdown()

    def _stop_clocks(self) -> None:
        for clock in (self._head, self._stuck):
            if clock is not None:
                clock.cancel()
        self._head = self._stuck = None

    def _end(self) -> None:
        if self.conn.trailing_data[0] and self.conn.our_state is h11.IDLE:
            self.send_400_response("The head of the request did not arrive in time.")
        else:
            self.transport.abort()


class Server(uvicorn.Server):
    """Tells when it answers, and lets the network stop before it waits for answers under way."""

    def __init__(self, config: uvicorn.Config, service: Service, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._service, self._ready = service, ready
        self._ignores = signal.getsignal(signal.SIGINT) is signal.SIG_IGN

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A SIGINT that the caller ignores stays ignored, as in every command."""
        if sig != signal.SIGINT or not self._ignores:
            super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """The server answers from here on."""
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """No more connections; those under way get their answers."""
        self._service.end()
        await super().shutdown(sockets)


def serve(
    segmenter: Segmenter,
    settings: Settings,
    request: ServeRequest,
    bound: socket.socket,
    ready: Callable[[Listening], None],
    made: Callable[[Server], None] = lambda server: None,
) -> None:
    """Answers requests until SIGINT or SIGTERM comes, which is then raised again.

    Args:
        bound: what `bind` gave.
        ready: called when the server answers.
        made: gets the server, whose `should_exit` ends it from another thread.

    Raises:
        ConfigError: impossible settings.
    """
    service = Service(segmenter, settings, request)
    address, port = bound.getsockname()[:2]
    hosts = (*LOOPBACK, request.host.lower()) if is_loopback(address) else ()
    config = uvicorn.Config(
        make_app(service, tuple(dict.fromkeys(hosts))),
        http=Connection,
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=math.ceil(request.timeout),
    )
    host = f"[{request.host}]" if ":" in request.host else request.host
    listening = Listening(f"http://{host}:{port}/", segmenter.info.model, request.token is not None)
    server = Server(config, service, lambda: ready(listening))
    made(server)
    try:
        server.run([bound])
    finally:
        service.close()
