"""The server's page in a browser: an image chosen, its mask, legend, a class, a pixel, the keyboard, errors."""

from __future__ import annotations

import base64
import html
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from serving import SMALL, png, real, running
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dgmn2cli.data.images import decode_image
from dgmn2cli.serve import app, run
from dgmn2cli.serve.request import ServeRequest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
IMAGE, TOKEN = png(150, 90), "k" * 32

DRIVER = """
const frame = document.querySelector("iframe"), out = document.querySelector("pre");
const until = async what => { for (let i = 0; i < 600; i++) { if (what()) return; await new Promise(r => setTimeout(r, 50)); } throw Error("waited for " + what); };
frame.addEventListener("load", async () => {
  const page = frame.contentDocument, view = frame.contentWindow, faults = [], $ = id => page.getElementById(id);
  view.addEventListener("error", e => faults.push(e.message));
  page.addEventListener("securitypolicyviolation", e => faults.push(e.violatedDirective + " " + e.blockedURI));
  const choose = (bytes, name, type) => {
    const files = new view.DataTransfer();
    files.items.add(new view.File([bytes], name, {type})); $("file").files = files.files;
    $("file").dispatchEvent(new view.Event("change"));
  };
  const press = (key, more) => $("stage").dispatchEvent(new view.KeyboardEvent("keydown", {key, bubbles: true, cancelable: true, ...more}));
  const image = Uint8Array.from(atob("IMAGE"), c => c.charCodeAt(0));
  const alpha = () => { const c = $("mask"), d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data; let n = 0; for (let i = 3; i < d.length; i += 4) n += d[i] > 100; return n / (c.width * c.height); };
  try { const found = await (async () => { SCRIPT })(); out.textContent = JSON.stringify({...found, faults, wide: page.documentElement.scrollWidth}); }
  catch (error) { out.textContent = JSON.stringify({failed: String(error), said: page.body.innerText.slice(0, 500), faults}); }
});
"""  # noqa: E501


class Framed:
    """The server's application and, on a path more, its page in a frame as wide as a phone, and what drives it."""

    def __init__(self, inner: ASGIApp, driver: dict[str, str]) -> None:
        self.inner, self.driver = inner, driver

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/frame":
            content = self.driver["page"].encode()
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/html")]})
            return await send({"type": "http.response.body", "body": content})

        async def framed(message: Message) -> None:
            if message["type"] == "http.response.start":  # the frame is the test's; the rest of the policy stays
                message["headers"] = [
                    (name, value.replace(b"frame-ancestors 'none'", b"frame-ancestors 'self'"))
                    for name, value in message["headers"]
                    if name != b"x-frame-options"
                ]
            await send(message)

        await self.inner(scope, receive, framed)


class Browser:
    """Runs scripts in the page of a server."""

    def __init__(self, url: str, driver: dict[str, str], folder: Path) -> None:
        self.url, self.driver, self.folder = url, driver, folder

    def run(self, script: str, width: int = 1280, shot: Path | None = None) -> dict[str, Any]:
        assert CHROMIUM is not None
        code = DRIVER.replace("IMAGE", base64.b64encode(IMAGE).decode()).replace("SCRIPT", script)
        self.driver["page"] = (
            f"<!doctype html><body style='margin:0'><iframe src='/' style='width:{width}px;height:1500px;border:0'>"
            f"</iframe><pre></pre><script>{code}</script></body>"
        )
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={self.folder}"]
        command += ["--virtual-time-budget=60000", f"--window-size={width},1500"]
        if shot is not None:
            subprocess.run([*command, f"--screenshot={shot}", f"{self.url}frame"], capture_output=True, timeout=200)
            return {}
        command += ["--dump-dom", f"{self.url}frame"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
        found = re.search(r"<pre>(.+?)</pre>", done.stdout, re.DOTALL)
        assert found, done.stderr[-800:]
        answer: dict[str, Any] = json.loads(html.unescape(found[1]))
        assert "failed" not in answer, answer
        return answer


def browser_of(folder: Path, request: ServeRequest) -> Iterator[Browser]:
    driver: dict[str, str] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "make_app", lambda *arguments: Framed(app.make_app(*arguments), driver))
        with running(real(), request=request) as server:
            yield Browser(server.url, driver, folder)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    yield from browser_of(tmp_path_factory.mktemp("browser"), ServeRequest())


def test_the_page_is_whole_and_its_policy_allows_its_own_script_alone() -> None:
    with running(real()) as server:
        answer = httpx.get(server.url)
    assert not re.findall(
        r"""(?:src|href)=["'](?!data:)|url\(|@import|https?://(?!www\.w3\.org/2000/svg)""", answer.text
    )
    assert not re.findall(r"<[^>]+ (?:style|on\w+)=", answer.text.split("<script>")[0])
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert policy["script-src"].startswith("'sha256-")
    assert policy["style-src"].startswith("'sha256-")
    assert len(answer.content) < 30_000


SEGMENT = """
choose(image, "street <b>.png", "image/png");
await until(() => !$("work").hidden && $("legend").children.length);
const all = alpha(), entries = [...$("legend").querySelectorAll("button")];
const shares = entries.map(b => b.innerText.split("\\n").map(t => t.trim()).filter(Boolean));
entries[0].dispatchEvent(new view.MouseEvent("mouseenter")); const hovered = [$("mask").dataset.only, alpha()];
entries[0].dispatchEvent(new view.MouseEvent("mouseleave")); const left = alpha();
entries[1].focus(); const focused = $("mask").dataset.only; entries[1].click(); entries[1].blur();
const pinned = [$("mask").dataset.only, entries[1].getAttribute("aria-pressed")]; entries[1].click();
$("opacity").value = 20; $("opacity").dispatchEvent(new view.Event("input"));
const opacity = $("mask").style.opacity;
const box = $("stage").getBoundingClientRect();
const at = (x, y) => ({clientX: box.left + box.width * (x + .5) / 150, clientY: box.top + box.height * (y + .5) / 90, bubbles: true});
$("stage").dispatchEvent(new view.MouseEvent("mousemove", at(100, 30))); const under = $("under").textContent;
$("stage").dispatchEvent(new view.MouseEvent("click", at(100, 30)));
await until(() => !$("explained").hidden);
const nodes = () => [...$("graph").querySelectorAll(".node")].map(n => [n.getAttribute("cx"), n.getAttribute("cy")].map(Number));
const last = nodes(), blocks = $("block").options.length, verdict = $("verdict").textContent;
$("block").value = 0; $("block").dispatchEvent(new view.Event("change")); const first = nodes().length;
$("stage").focus(); press("ArrowRight", {shiftKey: true}); press("ArrowUp", {shiftKey: true});
const moved = $("under").textContent; press("Enter"); await until(() => !$("explained").hidden && nodes().length);
press("Escape"); const cleared = $("graph").children.length;
return {all, shares, hovered, left, focused, pinned, opacity, under, last, blocks, verdict, first, moved, cleared,
  focusable: [...page.querySelectorAll("input, select, button, a[href], [tabindex]")].every(e => e.tabIndex >= 0),
  name: $("save").download, shown: $("image").naturalWidth, bold: page.querySelectorAll("b").length};
"""  # noqa: E501


@needs_chromium
@pytest.mark.parametrize("width", [1280, 380])
def test_an_image_is_segmented_and_a_pixel_explained(browser: Browser, width: int) -> None:
    found = browser.run(SEGMENT, width)
    prediction = real().predict(decode_image(IMAGE)[:, :, ::-1], protocol="native", window=64, stride=48)
    stats, ids = prediction.stats(), prediction.ids
    assert found["faults"] == []
    assert found["wide"] <= width, "nothing sticks out"
    percents = [f"{100 * share.share:.1f} %" if share.share >= 0.001 else "<0.1 %" for share in stats]
    assert found["shares"] == [[share.name, percent] for share, percent in zip(stats, percents, strict=True)]
    assert (found["all"], found["left"]) == (1, 1)
    assert found["hovered"][0] == stats[0].name
    assert abs(found["hovered"][1] - stats[0].share) < 1e-6
    assert found["focused"] == stats[1].name
    assert found["pinned"] == [stats[1].name, "true"]
    assert found["opacity"] == "0.2"
    assert found["under"] == f"100, 30: {prediction.classes.names[ids[30, 100]]}"
    assert found["moved"].startswith("101, 29: ")
    made = real().explain(decode_image(IMAGE)[:, :, ::-1], 100, 30, SMALL)
    own = np.array([head.nodes for head in made.blocks[-1].heads])[:, :, :2].reshape(-1, 2)
    assert np.abs(np.array(found["last"]) - own).max() <= 0.0051
    assert found["verdict"] == f"{made.predicted}, {100 * made.confidence:.1f} %"
    assert (found["blocks"], found["first"], found["cleared"]) == (8, 9, 0)
    assert found["focusable"] is True
    assert (found["name"], found["shown"], found["bold"]) == ("street <b>_ids.png", 150, 0)


ERRORS = """
await until(() => $("model").textContent.includes("19"));
const said = [];
for (const [bytes, name, type] of [["hello", "a.txt", "text/plain"], ["hello", "a.png", "image/png"], [image.slice(0, 900), "cut.png", "image/png"]]) {
  choose(bytes, name, type); await until(() => !$("error").hidden);
  said.push($("error").textContent); $("error").hidden = true;
}
choose(image, "good.png", ""); await until(() => !$("work").hidden && $("legend").children.length);
choose("hello", "b.png", "image/png"); await until(() => !$("error").hidden); $("error").hidden = true;
$("stage").dispatchEvent(new view.MouseEvent("click", {clientX: 1, clientY: 1, bubbles: true}));
await until(() => !$("explained").hidden || !$("error").hidden);  // of the image that is still shown
return {said, hidden: $("error").hidden, role: $("error").getAttribute("role")};
"""  # noqa: E501


@needs_chromium
def test_errors_are_shown_and_can_be_got_over(browser: Browser) -> None:
    found = browser.run(ERRORS, 380)
    assert [len(text) > 20 for text in found["said"]] == [True] * 3
    assert "text/plain" in found["said"][0]
    assert (found["hidden"], found["role"], found["faults"]) == (True, "alert", [])


@needs_chromium
def test_the_page_asks_for_the_token(tmp_path: Path) -> None:
    script = """
    const use = async text => { $("token").value = text; $("login").requestSubmit(); };
    await use("wrong"); await until(() => !$("error").hidden); const refused = $("error").textContent;
    await use("TOKEN"); await until(() => $("model").textContent.includes("19"));
    choose(image, "a.png", "image/png"); await until(() => !$("work").hidden);
    return {refused, hidden: $("error").hidden};"""
    [found] = [
        browser.run(script.replace("TOKEN", TOKEN)) for browser in browser_of(tmp_path, ServeRequest(token=TOKEN))
    ]
    assert "Bearer" in found["refused"]
    assert (found["hidden"], found["faults"]) == (True, [])
