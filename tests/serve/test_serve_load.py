"""Many requests: memory, no deadlock, and what the server adds to the time of the network. Marked slow."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import torch
from networks import stand_ins
from serving import SMALL, around, png, real, running
from torch import Tensor, nn

from dgmn2cli.checkpoint.weights import write_checkpoint
from dgmn2cli.data.images import decode_image
from dgmn2cli.inference.load import build_model
from dgmn2cli.serve.request import ServeRequest
from dgmn2cli.serve.service import Service

pytestmark = pytest.mark.slow


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """A server in a process of its own."""
    path = write_checkpoint(tmp_path / "w.pth", stand_ins(lambda: build_model("setr_naive-tiny")), {})
    options = ["-m", "setr_naive-tiny", "--checkpoint", str(path), "--protocol", "native", "--window", "64"]
    command = [sys.executable, "-m", "dgmn2cli", "serve", *options, "--stride", "48", "--port", "0"]
    environment = {**os.environ, "DGMN2_CACHE": str(tmp_path / "cache")}
    with subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split(" at ")[1].strip()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143


def memory(url: str) -> float:
    lines = httpx.get(f"{url}metrics").text.splitlines()
    [found] = [line for line in lines if line.startswith("process_resident_memory_bytes ")]
    return float(found.split()[1])


def test_500_requests_in_a_row_and_8_at_a_time(url: str) -> None:
    bodies = [png(60, 40 + seed % 20, seed) for seed in range(20)]

    def ask(client: httpx.Client, number: int) -> int:
        path = ("v1/segment?save=ids", "v1/segment?save=overlay", "v1/segment?save=json", "v1/explain?x=9&y=9")[
            number % 4
        ]
        return client.post(path, content=bodies[number % 20]).status_code

    with httpx.Client(base_url=url, timeout=120) as client:
        for number in range(100):
            assert ask(client, number) == 200
        before = memory(url)
        assert [ask(client, number) for number in range(500)] == [200] * 500
        row = memory(url)
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(lambda number: ask(client, number), range(500))) == [200] * 500
        after = memory(url)
    print(f"\nmemory: {before / 1e6:.1f}, {row / 1e6:.1f}, {after / 1e6:.1f} MB")  # noqa: T201
    assert row < 1.05 * before
    assert after < 1.05 * row


def test_the_server_adds_less_than_10_ms_at_512x256(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that a request takes but decoding, the network and encoding, which `infer` does, too."""
    body = png(512, 256)
    image = decode_image(body)
    answer = real().predict_planned(image, real().plan(image.shape[:2], SMALL), SMALL).encode("ids")
    with running(real()) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        assert client.post("v1/segment", content=body).content == answer
        monkeypatch.setattr(Service, "segment", lambda *arguments: answer)
        wall, cpu = [], []
        for _ in range(100):
            began, used = time.perf_counter(), time.process_time()
            assert client.post("v1/segment", content=body).content == answer
            wall.append(time.perf_counter() - began)
            cpu.append(time.process_time() - used)
    print(f"\nadded: {1000 * statistics.median(cpu):.1f} ms of CPU, {1000 * min(wall):.1f} ms at best")  # noqa: T201
    assert statistics.median(cpu) <= 0.010, "of client and server; wall time is also that of a busy machine"
    assert min(wall) <= 0.010


class _Reds(nn.Module):
    """Takes no time: what is red is class 1."""

    def forward(self, images: Tensor) -> Tensor:
        scores = torch.zeros(len(images), 19, *images.shape[2:])
        scores[:, 1] = images[:, 0]
        return scores


def test_an_answer_adds_less_than_10_ms_to_the_same_prediction() -> None:
    """Decoded, segmented and encoded both times, through HTTP and directly, in turn."""
    body, segmenter = png(512, 256), around(_Reds())
    direct, differences = Service(segmenter, SMALL, ServeRequest()), []
    with running(segmenter) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        ways: tuple[Callable[[], bytes], ...] = (
            lambda: client.post("v1/segment", content=body).content,
            lambda: direct.segment("ids", body, lambda: None),
        )
        for number in range(200):
            seconds, answers = [0.0, 0.0], [b"", b""]
            for way in (0, 1) if number % 2 else (1, 0):
                began = time.perf_counter()
                answers[way] = ways[way]()
                seconds[way] = time.perf_counter() - began
            assert answers[0] == answers[1]
            differences.append(seconds[0] - seconds[1])
    direct.close()
    added = statistics.quantiles(differences, n=4)
    print(f"\nadded, quartiles: {', '.join(f'{1000 * part:.1f}' for part in added)} ms")  # noqa: T201
    assert added[1] <= 0.010
