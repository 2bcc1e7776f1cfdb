"""The pages of `eval --html` and `compare --html`: whole, small, safe, and working in a browser."""

from __future__ import annotations

import csv
import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from streets import SMALL, Load, Watcher, make_tree

from dgmn2cli.data.catalog import open_dataset
from dgmn2cli.data.images import write_png
from dgmn2cli.evaluate import EvalReport
from dgmn2cli.evaluate.analysis.crops import CROP_TILE, KEPT, VIEW_TILE, Shown, tiles
from dgmn2cli.evaluate.analysis.measure import ImageRecord
from dgmn2cli.evaluate.analysis.summary import analyse
from dgmn2cli.evaluate.compare import compare, write_comparison_page
from dgmn2cli.evaluate.page import write_report_page, write_tables
from dgmn2cli.evaluate.reading import read_report
from dgmn2cli.evaluate.request import EvalRequest
from dgmn2cli.evaluate.run import run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
MARKUP = '<img src=x onerror="document.title=1">&amp;'
LIMIT = 6_000_000  # bytes


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> EvalReport:
    folder = tmp_path_factory.mktemp("page")
    root = make_tree(folder / "city", 6)
    return run(EvalRequest(root, settings=SMALL, report=folder / "r.json", device="cpu"), Load(), Watcher())


@pytest.fixture
def hostile(tmp_path: Path) -> EvalReport:
    """Class names and file names that hold markup."""
    for i in range(3):
        write_png(tmp_path / "images" / f"{i}<b onclick='x()'>&lt;.png", np.full((20, 30, 3), 60 * i, np.uint8))
        write_png(tmp_path / "labels" / f"{i}<b onclick='x()'>&lt;.png", np.full((20, 30), i % 2, np.uint8))
        write_png(tmp_path / "preds" / f"{i}<b onclick='x()'>&lt;.png", np.full((20, 30), 1, np.uint8))
    classes = json.dumps([MARKUP, "</script><script>document.title=2</script>"])
    (tmp_path / "dataset.toml").write_text(f'images = "images"\nlabels = "labels"\nclasses = {classes}\n')
    return run(EvalRequest(tmp_path, "all", predictions=tmp_path / "preds", html=tmp_path / "page.html"))


def in_browser(page: Path, script: str, width: int = 1280) -> dict[str, object]:
    """What `script` returns in Chromium, run in the page after it has loaded; with the page's errors and requests.

    The page lies in a frame, because a window cannot be as narrow as a phone's.
    """
    assert CHROMIUM is not None
    watched = "<script>window.faults=[];addEventListener('error',e=>faults.push(e.message));"
    watched += "addEventListener('securitypolicyviolation',e=>faults.push(e.blockedURI))</script>"
    after = (
        "<script>addEventListener('load',()=>{const found=(()=>{" + script + "})();"
        "found.faults=window.faults;parent.postMessage(JSON.stringify(found),'*')})</script>"
    )
    text = page.read_text().replace("<head>", f"<head>{watched}", 1).replace("</body>", f"{after}</body>", 1)
    framed = page.with_name("frame.html")
    framed.write_text(
        "<!doctype html><body><pre id=out></pre><script>addEventListener('message',e=>"
        "{document.getElementById('out').textContent=e.data})</script>"
        f'<iframe srcdoc="{html.escape(text)}" style="width:{width}px;height:900px;border:0"></iframe></body>'
    )
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={page.parent / 'browser'}"]
    command += ["--virtual-time-budget=5000", "--dump-dom", f"file://{framed}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="out">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-500:]
    answer: dict[str, object] = json.loads(html.unescape(found[1]))
    return answer


def outside(text: str) -> list[str]:
    """Addresses that a browser would fetch by itself and that are not in the page."""
    found = re.findall(r"""(?:src|srcset|poster|data)\s*=\s*["']?([^"'\s>]+)|url\(([^)]+)\)|@import\s+(\S+)""", text)
    found += [(address, "", "") for address in re.findall(r"<link[^>]*href=[\"']([^\"']+)", text)]
    addresses = ["".join(parts) for parts in found]
    return [address for address in addresses if not address.startswith("data:")]


# --- without a browser ------------------------------------------------------------------------------------------------


def test_the_page_says_what_was_done_and_what_was_not(report: EvalReport, tmp_path: Path) -> None:
    text = write_report_page(tmp_path / "page.html", replace(report, command="dgmn2 eval x --html y")).read_text()
    assert report.protocol is not None
    facts = [report.run.model, report.run.sha256, str(report.protocol), report.certificate.fingerprint, "float32"]
    facts += ["reference", f"torch {report.versions['torch']}", "dgmn2 eval x --html y", "a test machine"]
    facts += [f"{100 * report.scores.mean_iou:.2f} %", "instance map", "not the published one"]
    for fact in facts:
        assert html.escape(fact) in text or fact in text, fact
    assert outside(text) == []
    assert text.count("<figure") == len(report.views) + len(report.crops) > 6
    for image in report.analysis.images:
        assert image.name in text
    partial = write_report_page(tmp_path / "partial.html", replace(report, partial=True)).read_text()
    assert "Partial" in partial
    assert "Partial" not in text


def test_names_with_markup_are_text(hostile: EvalReport, tmp_path: Path) -> None:
    text = (tmp_path / "page.html").read_text()
    assert html.escape(MARKUP).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in text
    for dangerous in ("<img src=x", "<b onclick", "<script>document.title=2"):
        assert dangerous not in text


def test_500_images_fit_a_mail(report: EvalReport, tmp_path: Path) -> None:
    """Noise is what JPEG compresses worst."""
    rng, names = np.random.default_rng(0), tuple(score.name for score in report.scores.classes)
    base = report.certificate.records
    records = [
        replace(base[i % len(base)], name=f"frankfurt_{i:06d}_{19 * i:06d}_with_a_rather_long_name") for i in range(500)
    ]
    noise = rng.integers(0, 256, (1024, 2048, 3)).astype(np.uint8)
    ids = rng.integers(0, 19, (1024, 2048)).astype(np.uint8)
    palette = np.array(report.palette, np.uint8)
    view, crop = tiles(noise, ids, ids[::-1], palette, VIEW_TILE), tiles(noise[:256, :256], ids[:256, :256],
        ids[256:512, :256], palette, CROP_TILE)  # fmt: skip
    assert isinstance(records[0], ImageRecord)
    large = replace(
        report,
        analysis=analyse(records, names, report_temperatures(report)),
        views={i: Shown(i, view) for i in range(KEPT)},
        crops={i: Shown(i, crop) for i in range(KEPT)},
    )
    assert write_report_page(tmp_path / "page.html", large).stat().st_size < LIMIT


def report_temperatures(report: EvalReport):
    from dgmn2cli.evaluate.analysis.measure import TemperatureCounts

    assert report.certificate.temperatures is not None
    return TemperatureCounts.of_plain(report.certificate.temperatures)


def test_tables_for_a_spreadsheet(report: EvalReport, tmp_path: Path) -> None:
    paths = write_tables(tmp_path / "tables", report)
    assert [path.name for path in paths] == ["classes.csv", "images.csv"]
    classes, images = (list(csv.DictReader(path.read_text().splitlines())) for path in paths)
    assert [row["class"] for row in classes] == [score.name for score in report.scores.classes]
    assert [row["image"] for row in images] == [image.name for image in report.analysis.images]
    for row, score in zip(classes, report.scores.classes, strict=True):
        assert row["iou"] == ("" if np.isnan(score.iou) else repr(score.iou))
        assert float(row["labelled"]) == score.labelled
    assert float(images[2]["mean_iou"]) == report.analysis.images[2].mean_iou
    assert float(images[2]["doubt"]) == report.analysis.images[2].doubt


# --- in a browser -----------------------------------------------------------------------------------------------------

SORT = """
const table = document.querySelectorAll("table")[0], head = [...table.tHead.rows[0].cells].find(c => c.textContent === "IoU");
const column = () => [...table.tBodies[0].rows].map(r => r.cells[head.cellIndex].dataset.value).filter(v => v !== "").map(Number);
const button = head.querySelector("button");
button.focus(); const focused = document.activeElement === button; button.click();
const down = column(), first = head.getAttribute("aria-sort"); button.click(); const up = column();
const select = document.getElementById("of-class"); select.value = "13"; select.dispatchEvent(new Event("change"));
const rows = [...document.getElementById("all-images").tBodies[0].rows];
return {down, up, first, focused, second: head.getAttribute("aria-sort"),
  shown: rows.filter(r => !r.hidden).map(r => [r.cells[0].textContent, r.cells[r.cells.length - 2].textContent]),
  wide: document.documentElement.scrollWidth, count: document.getElementById("count").textContent,
  anchors: [...document.querySelectorAll("a[href^='#']")].filter(a => !document.querySelector(a.getAttribute("href"))).length,
  broken: [...document.images].filter(i => !i.src.startsWith("data:")).length};
"""  # noqa: E501


@needs_chromium
@pytest.mark.parametrize("width", [1280, 380])
def test_tables_sort_and_filter_in_a_browser(report: EvalReport, tmp_path: Path, width: int) -> None:
    found = in_browser(write_report_page(tmp_path / "page.html", report), SORT, width)
    ious = [score.iou for score in report.scores.classes if not np.isnan(score.iou)]
    assert found["faults"] == []
    assert found["down"] == sorted(ious, reverse=True)
    assert found["up"] == sorted(ious)
    assert (found["first"], found["second"], found["focused"]) == ("descending", "ascending", True)
    cars = [(image.name, image.classes["car"]) for image in report.analysis.images if "car" in image.classes]
    assert found["shown"] == [[name, f"{100 * iou:.1f}"] for name, iou in cars]
    assert found["count"] == f"{len(cars)} of 6"
    assert found["wide"] <= width, "nothing sticks out: tables scroll within their cards"
    assert (found["anchors"], found["broken"]) == (0, 0)


@needs_chromium
def test_markup_runs_nowhere_in_a_browser(hostile: EvalReport, tmp_path: Path) -> None:
    script = """return {title: document.title, bold: document.querySelectorAll("b[onclick]").length,
      images: [...document.images].filter(i => i.getAttribute("src") === "x").length,
      names: [...document.getElementById("all-images").tBodies[0].rows].map(r => r.cells[0].textContent)};"""
    found = in_browser(tmp_path / "page.html", script)
    assert found["faults"] == []
    assert found["title"] not in ("1", "2")
    assert (found["bold"], found["images"]) == (0, 0)
    assert found["names"] == [image.name for image in hostile.analysis.images]


@needs_chromium
def test_the_comparison_in_a_browser(report: EvalReport, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    root = Path(report.data.root)
    data = open_dataset(root, "val")
    for i, pair in enumerate(data.pairs):
        write_png(tmp_path / "preds" / f"{pair.name}.png", data.read_label(i) % 19)
    run(EvalRequest(root, predictions=tmp_path / "preds", report=path))
    found = compare(read_report(root.with_name("r.json")), read_report(path))
    page = write_comparison_page(tmp_path / "page.html", found)
    assert outside(page.read_text()) == []
    script = """const which = document.getElementById("which");
      which.value = "1"; which.dispatchEvent(new Event("change"));
      const rows = [...document.getElementById("all-images").tBodies[0].rows].filter(r => !r.hidden);
      return {shown: rows.length, wide: document.documentElement.scrollWidth};"""
    answer = in_browser(page, script, 380)
    assert answer == {"shown": found.better, "wide": answer["wide"], "faults": []}
    assert found.better == 6
    assert int(str(answer["wide"])) <= 380
