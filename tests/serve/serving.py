"""Servers for tests: on a thread of the test's process, with a real or a stand-in network; and clients."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from networks import segmentor
from PIL import Image
from torch import Tensor, nn

from dgmn2cli.config import InferenceConfig
from dgmn2cli.inference.plan import Settings
from dgmn2cli.inference.prediction import CITYSCAPES
from dgmn2cli.inference.segmenter import RunInfo, Segmenter
from dgmn2cli.model.fused.network import InferenceForm
from dgmn2cli.serve.request import ServeRequest, bind
from dgmn2cli.serve.run import Listening, Server, serve

SMALL = Settings(protocol="native", window=64, stride=48, max_pixels=1_000_000)
INFO = RunInfo("setr_naive-tiny", "/secret/f.pth", "ab" * 32, "cpu", "a machine", "float32", "native", "fused")


class Gate(nn.Module):
    """A network that waits to be let through, window by window; what is red is class 1."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.open = threading.Semaphore(0), threading.Semaphore(0)
        self.windows = 0

    def forward(self, images: Tensor) -> Tensor:
        self.windows += 1
        self.reached.release()
        assert self.open.acquire(timeout=30)
        scores = torch.zeros(len(images), 19, *images.shape[2:])
        scores[:, 1] = images[:, 0]
        return scores

    def let_through(self, windows: int) -> None:
        for _ in range(windows):
            self.open.release()


@lru_cache
def real() -> Segmenter:
    """A tiny network with stand-in weights."""
    return around(InferenceForm(segmentor("tiny", "setr_naive")))


def around(network: nn.Module) -> Segmenter:
    return Segmenter(network, CITYSCAPES, INFO, InferenceConfig())


@dataclass
class Running:
    """A server that answers."""

    url: str
    port: int
    server: Server
    thread: threading.Thread

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()


@contextmanager
def running(segmenter: Segmenter, settings: Settings = SMALL, request: ServeRequest | None = None) -> Iterator[Running]:
    """A server on a thread; it has ended when the block has."""
    request = request or ServeRequest()
    servers: list[Server] = []
    answers, ready = threading.Event(), []

    def listening(facts: Listening) -> None:
        ready.append(facts)
        answers.set()

    bound = bind(request)
    arguments = (segmenter, settings, request, bound, listening, servers.append)
    thread = threading.Thread(target=serve, args=arguments, daemon=True)
    thread.start()
    assert answers.wait(20)
    found = Running(ready[0].url, int(ready[0].url.rsplit(":", 1)[1].strip("/")), servers[0], thread)
    try:
        yield found
    finally:
        found.stop()
        bound.close()


def png(width: int = 70, height: int = 40, seed: int = 0, **options: object) -> bytes:
    """An image file: smooth noise."""
    coarse = np.random.default_rng(seed).integers(0, 256, (max(height // 8, 1), max(width // 8, 1), 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((width, height)).save(file, "PNG", **options)
    return file.getvalue()


def post(path: str, body: bytes, *headers: str, host: str = "localhost", length: object = None) -> bytes:
    """The bytes of a request."""
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}", f"Content-Length: {len(body) if length is None else length}"]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


@dataclass
class Answer:
    """What came back on a connection, and after how many seconds."""

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def ask(port: int, request: bytes, *, half_close: bool = False) -> Answer:
    """Sends bytes as they are on a connection of their own and reads one answer."""
    with connect(port) as connection:
        began = time.perf_counter()
        connection.sendall(request)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        return read_answer(connection, began)


def read_answer(connection: socket.socket, began: float) -> Answer:
    data = b""
    while True:
        head, found, body = data.partition(b"\r\n\r\n")
        headers = {}
        if found:
            lines = head.decode().split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
            if len(body) >= (length := int(headers.get("content-length", 1 << 40))):
                body = body[:length]  # the answer to a second request may follow
                break
        received = connection.recv(1 << 16)
        if not received:
            break
        data += received
    assert found, f"no answer, but {data[:200]!r}"
    return Answer(int(head.split()[1]), headers, body, time.perf_counter() - began)
