"""`dgmn2 serve`: answers equal to `infer`'s files, places and limits, metrics, the end in good order."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import pytest
from networks import stand_ins
from serving import SMALL, Gate, Running, around, ask, connect, png, post, read_answer, real, running
from starlette.datastructures import URL
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message

from dgmn2cli.checkpoint.weights import write_checkpoint
from dgmn2cli.cli import main
from dgmn2cli.data.images import decode_image
from dgmn2cli.inference.load import build_model
from dgmn2cli.inference.plan import Settings
from dgmn2cli.serve import run
from dgmn2cli.serve.request import ServeRequest
from dgmn2cli.serve.service import Service

OPTIONS = ("-m", "setr_naive-tiny", "--protocol", "native", "--window", "64", "--stride", "48")
PHOTO = Path(__file__).parents[2] / "examples" / "summer_palace.jpg"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(real()) as found:
        yield found


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "setr_naive-tiny.pth"
    return write_checkpoint(path, stand_ins(lambda: build_model("setr_naive-tiny")), {})


# --- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("--ms-flip",), ("--protocol", "paper", "--scale", "96x64")])
def test_answers_are_the_files_of_infer(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.png").write_bytes(png(70, 40))
    given = [*OPTIONS, "--checkpoint", str(checkpoint), *options]
    assert main(["infer", "a.png", *given, "-o", "o", "--save", "ids,overlay,stats", "-q"]) == 0
    settings = Settings("--ms-flip" in options, protocol="native", window=64, stride=48)
    if "--scale" in options:
        settings = Settings(protocol="paper", scale=(96, 64), window=64, stride=48)
    wanted = {"ids": "a_ids.png", "overlay": "a_overlay.png", "json": "a_stats.json"}
    with running(real(), settings) as server:
        for kind, name in wanted.items():
            answer = httpx.post(f"{server.url}v1/segment?save={kind}", content=Path("a.png").read_bytes(), timeout=60)
            assert answer.status_code == 200
            assert answer.content == (tmp_path / "o" / name).read_bytes(), kind
            assert answer.headers["content-type"] == ("application/json" if kind == "json" else "image/png")


def test_a_photograph_in_pieces_of_unknown_number(server: Running) -> None:
    data = png(100, 60, seed=4)
    pieces = (data[i : i + 1000] for i in range(0, len(data), 1000))
    chunked = httpx.post(f"{server.url}v1/segment", content=pieces, headers={"Content-Type": "image/png"})
    whole = httpx.post(f"{server.url}v1/segment?save=ids", content=data)
    assert chunked.status_code == whole.status_code == 200
    assert chunked.content == whole.content
    assert decode_image(whole.content).shape == (60, 100, 3)


def test_an_image_too_large_for_the_memory_need_not_be_sent_again(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dgmn2cli.inference.plan.machine_memory", lambda: 4 * 19 * 50 * 50)
    answers = [httpx.post(f"{server.url}v1/segment", content=png(side, side)) for side in (60, 50)]
    assert [(found.status_code, "retry-after" in found.headers) for found in answers] == [(413, False), (200, False)]


def test_an_explanation_is_brief_and_says_what_python_does(server: Running) -> None:
    data = png(150, 90)
    answer = httpx.post(f"{server.url}v1/explain?x=100&y=30", content=data)
    found = answer.json()
    made = real().explain(decode_image(data)[:, :, ::-1], 100, 30, SMALL)
    assert answer.status_code == 200
    assert len(answer.content) < 60_000
    assert (found["predicted"], found["confidence"]) == (made.predicted, made.confidence)
    assert found["window"]["number"] == made.window.number
    assert len(found["blocks"]) == len(made.blocks) == 8
    for block, own in zip(found["blocks"], made.blocks, strict=True):
        nodes = np.array([head.nodes for head in own.heads])
        assert np.abs(np.array(block["heads"]) - nodes).max() <= 0.0051
        assert (block["stage"], block["block"], block["map"]) == (own.stage, own.block, list(own.map))
        assert len(block["hops"]) == min(60, sum(len(hop.heads) * 9 for hop in own.hops))
        weights = [hop[4] for hop in block["hops"]]
        assert weights == sorted(weights, reverse=True)


def test_facts_about_the_model_without_paths(server: Running) -> None:
    answer = httpx.get(f"{server.url}v1/models")
    [model] = answer.json()["models"]
    assert model["model"] == "setr_naive-tiny"
    assert model["classes"][13] == {"name": "car", "color": [0, 0, 142]}
    assert len(model["classes"]) == 19
    assert model["protocol"]["window"] == 64
    assert (model["max_bytes"], model["max_pixels"], model["explains"]) == (32_000_000, 1_000_000, True)
    assert "secret" not in answer.text
    with running(around(Gate())) as other:
        assert httpx.get(f"{other.url}v1/models").json()["models"][0]["explains"] is False
        refused = httpx.post(f"{other.url}v1/explain?x=1&y=1", content=png())
        assert refused.status_code == 400


def test_health_and_metrics() -> None:
    with running(real()) as server, httpx.Client(base_url=server.url) as client:
        assert client.get("healthz").json() == {"status": "ok"}
        assert client.post("v1/segment", content=png(100, 40)).status_code == 200
        assert client.post("v1/segment?save=x", content=png()).status_code == 400
        assert client.get("no/such/path").status_code == 404
        answer = client.get("metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        pairs = (line.rsplit(" ", 1) for line in answer.text.splitlines() if not line.startswith("#"))
        lines = {name: float(value) for name, value in pairs}
        assert lines['dgmn2_requests_total{path="/v1/segment",status="200"}'] == 1
        assert lines['dgmn2_requests_total{path="/v1/segment",status="400"}'] == 1
        assert lines['dgmn2_requests_total{path="other",status="404"}'] == 1
        assert lines['dgmn2_request_seconds_bucket{le="+Inf",path="/v1/segment"}'] == 2
        assert (lines["dgmn2_windows_total"], lines["dgmn2_places"], lines["dgmn2_places_taken"]) == (2, 9, 0)
        assert lines["dgmn2_busy_seconds_total"] > 0
        assert lines["process_resident_memory_bytes"] > 1e7


def test_every_answer_says_how_browsers_have_to_treat_it(server: Running) -> None:
    for path in ("", "healthz", "v1/models", "nothing", "v1/segment"):
        headers = httpx.get(server.url + path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"].startswith("default-src 'none';")
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
        assert not [name for name in headers if name.startswith("access-control") or name == "server"]


# --- who may ask ------------------------------------------------------------------------------------------------------


def test_a_token_opens_all_but_the_page_and_the_health_check() -> None:
    token = "k" * 32
    with running(real(), request=ServeRequest(token=token)) as server, httpx.Client(base_url=server.url) as client:
        assert client.get("").status_code == client.get("healthz").status_code == 200
        for path in ("v1/models", "metrics", "nothing"):
            assert client.get(path).status_code == 401
        assert client.post("v1/segment", content=png()).status_code == 401
        for wrong in (f"Bearer {token}x", "Bearer", f"Basic {token}", token, "Bearer \xfc"):
            answer = client.get("v1/models", headers={"Authorization": wrong.encode("latin-1")})
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
        right = {"Authorization": f"Bearer {token}"}
        assert client.get("v1/models", headers=right).status_code == 200
        assert client.post("v1/segment", content=png(), headers=right).status_code == 200


def test_a_host_header_is_no_way_around_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    def url(self: Request) -> URL:  # as Starlette 1.0 makes it, from whatever is in the header
        return URL(f"http://{self.headers['host']}{self.scope['path']}")

    monkeypatch.setattr(Request, "url", property(url))
    with running(real(), request=ServeRequest("0.0.0.0", token="k" * 32)) as server:
        for host in ("segment.example/healthz?", "segment.example/?"):
            answer = httpx.get(f"http://127.0.0.1:{server.port}/v1/models", headers={"Host": host})
            assert answer.status_code == 401


def test_names_of_other_hosts_are_refused_where_no_token_is_needed(server: Running) -> None:
    for host, status in [("localhost", 200), ("127.0.0.1:99", 200), ("[::1]:8000", 200), ("LOCALHOST", 200)]:
        assert httpx.get(f"{server.url}healthz", headers={"Host": host}).status_code == status
    for host in ("evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "10.0.0.1", "evil:127.0.0.1"):
        assert httpx.get(f"{server.url}healthz", headers={"Host": host}).status_code == 421, host


def test_other_addresses_need_a_token_and_answer_to_any_name() -> None:
    request = ServeRequest("0.0.0.0", token="k" * 32)
    with running(real(), request=request) as server:
        headers = {"Host": "segment.example", "Authorization": f"Bearer {'k' * 32}"}
        assert httpx.get(f"http://127.0.0.1:{server.port}/v1/models", headers=headers).status_code == 200


# --- places -----------------------------------------------------------------------------------------------------------


def test_a_full_queue_refuses_at_once_and_serves_those_that_wait_in_turn() -> None:
    gate = Gate()
    with running(around(gate), request=ServeRequest(queue=2)) as server, ThreadPoolExecutor(3) as pool:

        def segment(seed: int) -> int:
            return httpx.post(f"{server.url}v1/segment", content=png(60, 40, seed), timeout=30).status_code

        waiting = [pool.submit(segment, seed) for seed in range(3)]
        assert gate.reached.acquire(timeout=20)
        await_taken(server, 3)
        refused = [ask(server.port, post("/v1/segment", png())) for _ in range(10)]
        assert {answer.status for answer in refused} == {503}
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
        assert gate.windows == 1, "refused while one is at work and none has been done"
        gate.let_through(3)
        assert [found.result() for found in waiting] == [200] * 3
        assert httpx.get(f"{server.url}healthz").status_code == 200


def await_taken(server: Running, count: int) -> None:
    await_line(server, f"dgmn2_places_taken {count:.1f}")


def await_line(server: Running, line: str) -> None:
    """Waits until the metrics have it."""
    deadline = time.monotonic() + 20
    while line not in httpx.get(f"{server.url}metrics").text.splitlines():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_work_of_a_client_that_leaves_ends_at_the_next_window() -> None:
    gate = Gate()
    with running(around(gate)) as server:
        with connect(server.port) as connection:
            connection.sendall(post("/v1/segment", png(400, 40)))  # 8 windows
            assert gate.reached.acquire(timeout=20)
        await_taken(server, 0)  # gone
        gate.let_through(1)
        gate.let_through(1)
        assert httpx.post(f"{server.url}v1/segment", content=png(60, 40), timeout=30).status_code == 200
        assert gate.windows == 2, "one of the image that nobody waited for"


def test_what_takes_too_long_is_given_up() -> None:
    gate = Gate()
    with running(around(gate), request=ServeRequest(timeout=0.5)) as server:
        answer = ask(server.port, post("/v1/segment", png(400, 40)))
        assert answer.status == 503
        assert 0.4 < answer.seconds < 5
        gate.let_through(2)
        assert ask(server.port, post("/v1/segment", png(60, 40))).status == 200
        assert gate.windows == 2


def test_a_client_that_does_not_read_its_answer_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 30_000_000  # more than the kernel buffers
    monkeypatch.setattr(run, "STUCK_SECONDS", 0.3)
    monkeypatch.setattr(Service, "segment", lambda *arguments: bytes(size))
    with running(real(), request=ServeRequest(queue=0)) as server, connect(server.port) as connection:
        connection.sendall(post("/v1/segment", png()))
        await_line(server, 'dgmn2_requests_total{path="/v1/segment",status="200"} 1.0')
        assert ask(server.port, post("/v1/segment", png())).status == 200, "it holds no place"
        received = 0
        with suppress(ConnectionError):
            while part := connection.recv(1 << 20):
                received += len(part)
        assert 0 < received < size


# --- the end ----------------------------------------------------------------------------------------------------------


def test_the_end_comes_after_the_present_window() -> None:
    gate = Gate()
    with running(around(gate), request=ServeRequest(queue=3)) as server, ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(ask, server.port, post("/v1/segment", png(400, 40))) for _ in range(2)]
        assert gate.reached.acquire(timeout=20)
        await_taken(server, 2)
        with connect(server.port) as slow, connect(server.port) as idle:
            slow.sendall(post("/v1/segment", b"half", length=1000))
            await_taken(server, 3)
            began = time.perf_counter()
            server.server.should_exit = True
            assert read_answer(slow, began).status == 503
            gate.let_through(1)
            assert [found.result().status for found in answers] == [503, 503]
            server.stop()
            assert time.perf_counter() - began < 5
            assert idle.recv(1) == b""
        assert gate.windows == 1


def test_the_end_does_not_wait_for_bodies() -> None:
    service, statuses = Service(around(Gate()), SMALL, ServeRequest(timeout=0.05)), list[object]()

    async def never() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def ask() -> None:
        scope = {"type": "http", "method": "POST", "path": "/v1/segment", "headers": []}
        with pytest.raises(HTTPException) as caught:
            await service.answer(Request(scope, never), lambda data, goes: data)
        statuses.append(caught.value.status_code)

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: statuses.append(str(context)))
        asking = asyncio.create_task(ask())
        await asyncio.sleep(0)
        [limit] = service._reading
        loop.call_at((limit.when() or 0) + 1e-7, service.end)  # in the moment when it is over
        await asking
        service.request = ServeRequest(timeout=60)
        await asyncio.wait_for(ask(), 5)

    try:
        asyncio.run(scenario())
    finally:
        service.close()
    assert (statuses, service.ending) == ([503, 503], True)


def test_an_answer_whose_last_window_is_computed_is_given() -> None:
    gate = Gate()
    with running(around(gate)) as server, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, server.port, post("/v1/segment", png(60, 40)))
        assert gate.reached.acquire(timeout=20)
        server.server.should_exit = True
        time.sleep(0.3)
        gate.let_through(1)
        assert answer.result().status == 200


def test_sigterm_ends_the_command_with_143_within_a_window(tmp_path: Path, checkpoint: Path) -> None:
    command = [sys.executable, "-m", "dgmn2cli", "serve", *OPTIONS, "--checkpoint", str(checkpoint), "--port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DGMN2_CACHE": str(tmp_path)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    deaf = ["sh", "-c", 'trap \'\' INT; exec "$0" "$@"']  # as a shell starts what runs in the background
    with subprocess.Popen([*deaf, *command, "--json"], env=environment, text=True, **pipes) as process:
        assert process.stdout is not None
        text = ""
        while not text.endswith("}\n"):
            text += process.stdout.readline()
        facts = json.loads(text)
        assert facts["model"] == "setr_naive-tiny"
        port = int(facts["url"].rsplit(":", 1)[1].strip("/"))
        found: list[int] = []
        client = threading.Thread(target=lambda: found.append(ask(port, post("/v1/segment", png(900, 900))).status))
        client.start()
        while "dgmn2_windows_total 0.0\n" in httpx.get(f"{facts['url']}metrics").text:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert httpx.get(f"{facts['url']}healthz").status_code == 200
        process.send_signal(signal.SIGTERM)
        client.join(20)
        _, errors = process.communicate(timeout=30)
    assert found == [503], "the image was not segmented to its end"
    assert process.returncode == 143
    assert len(errors.splitlines()) == 1


# --- what is refused before a network is loaded -----------------------------------------------------------------------


def command(*arguments: str) -> int:
    return main(["serve", *OPTIONS, "--checkpoint", "nothing.pth", *arguments])


def test_bad_options(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DGMN2_CACHE", str(tmp_path / "cache"))
    Path("short").write_text("k" * 15 + "\n")
    Path("blank").write_text("k" * 20 + " k")
    Path("good").write_text("k" * 32 + "\n")
    for arguments, code, words in [
        (("--host", "0.0.0.0"), 2, "needs a token"),
        (("--host", "::", "--port", "0"), 2, "needs a token"),
        (("--host", "0.0.0.0", "--token-file", "short"), 2, "short"),
        (("--token-file", "blank"), 2, "blank"),
        (("--token-file", "absent"), 2, "absent"),
        (("--host", "no such host"), 5, "no such host"),
        (("--host", ""), 2, "--host"),
        (("--host", "192.0.2.1", "--token-file", "good"), 5, "192.0.2.1"),
        (("--port", "65536"), 2, "--port"),
        (("--max-bytes", "0"), 2, "--max-bytes"),
        (("--queue", "-1"), 2, "--queue"),
        (("--timeout", "0"), 2, "--timeout"),
        (("--timeout", "nan"), 2, "--timeout"),
        (("--port", "0", "--token-file", "good"), 5, "nothing.pth"),
    ]:
        assert (command(*arguments), code, arguments) == (code, code, arguments)
        captured = capsys.readouterr()
        assert captured.out == ""
        assert len(captured.err.splitlines()) == 1
        assert words in captured.err
    Path("counts").mkdir()
    for folder, code, words in [
        ("nowhere", 2, "PROMETHEUS_MULTIPROC_DIR=nowhere): there is no such folder"),
        ("good", 2, "PROMETHEUS_MULTIPROC_DIR=good): it is a file, wanted a folder"),
        ("counts", 5, "nothing.pth"),
    ]:
        monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", folder)
        assert (command("--port", "0"), folder) == (code, folder)
        assert words in capsys.readouterr().err


def test_a_port_in_use_is_refused(
    server: Running, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command("--port", str(server.port)) == 5
    assert f"127.0.0.1:{server.port}" in capsys.readouterr().err


def test_the_extra_is_named_where_it_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dgmn2cli.errors.find_spec", lambda name: None if name == "uvicorn" else object())
    assert command() == 5
    assert "dgmn2cli[serve]" in capsys.readouterr().err
