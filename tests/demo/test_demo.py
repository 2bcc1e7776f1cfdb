"""The demonstration runs, its page is whole and says what was measured, and it respects what lies in its folder."""

from __future__ import annotations

import base64
import json
import re
import signal
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import cv2
import numpy as np
import pytest

from dgmn2cli import resources
from dgmn2cli.data.catalog import open_dataset
from dgmn2cli.data.images import read_image
from dgmn2cli.demo import run
from dgmn2cli.demo.page import commands
from dgmn2cli.demo.report import DemoReport, StepBegun, StepDone, duration
from dgmn2cli.demo.request import LONG, DemoRequest, refuse_folder
from dgmn2cli.demo.run import STEPS, demo
from dgmn2cli.errors import ConfigError, DataError, ResourceError
from dgmn2cli.observer import Silent
from dgmn2cli.report.html import percent
from dgmn2cli.training.folder import lock_folder
from dgmn2cli.training.report import StepResult
from dgmn2cli.training.request import TrainRequest


class Watcher(Silent):
    """Collects what a demonstration says."""

    def __init__(self) -> None:
        self.begun: list[StepBegun] = []
        self.ended: list[StepDone] = []

    def result(self, value: object) -> None:
        if isinstance(value, StepBegun):
            self.begun.append(value)
        elif isinstance(value, StepDone):
            self.ended.append(value)


def tiny(out: Path, **settings) -> DemoRequest:
    """A demonstration that takes seconds and learns nothing."""
    return DemoRequest(**{
        "out": out, "iters": 2, "scenes": 4, "size": (128, 64), "crop": 64, "batch_size": 2, "device": "cpu", **settings
    })  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[DemoReport, Watcher]:
    """A finished demonstration that no test changes."""
    watcher = Watcher()
    return demo(tiny(tmp_path_factory.mktemp("demo") / "d"), watcher), watcher


class Page(HTMLParser):
    """The addresses in a page, its text, and the tags that are open at its end."""

    VOID = ("meta", "img", "br", "link", "hr", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.images += [found["src"]] if "src" in found else []
        self.links += [found["href"]] if "href" in found else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def page(made) -> Page:
    return Page(made[0].page.read_text(encoding="utf-8"))


def test_every_step_is_told_with_its_time_and_place(made):
    report, watcher = made
    assert [(step.number, step.count) for step in watcher.begun] == [(i + 1, STEPS) for i in range(STEPS)]
    assert [done.what for done in watcher.ended] == [step.what for step in watcher.begun]
    assert tuple(watcher.ended) == report.steps
    for done in watcher.ended:
        assert done.where.exists()
        assert done.found
        assert 0 <= done.seconds <= report.seconds


def test_the_figures_are_those_of_the_evaluations(made):
    report = made[0]
    for figures, ratios in ((report.single_scale, 1), (report.ms_flip, 3)):
        written = json.loads(figures.report.read_text())
        assert written["scores"]["mean_iou"] == figures.mean_iou
        assert written["scores"]["pixel_accuracy"] == figures.pixel_accuracy
        assert len(written["protocol"]["ratios"]) == ratios
        assert written["protocol"]["flip"] == (ratios > 1)
        assert (written["data"]["split"], written["data"]["images"], written["partial"]) == ("val", 1, False)
        assert written["comparison"] is None
    assert report.single_scale.mean_iou == report.training.mean_iou, "the final evaluation of the same weights"
    assert json.loads((report.out / "report.json").read_text())["single_scale"]["mean_iou"] == (
        report.single_scale.mean_iou
    )


def test_the_most_common_class_is_counted_from_the_labels(made):
    report = made[0]
    data = open_dataset(report.data, "val")
    labels = np.concatenate([data.read_label(i).ravel() for i in range(len(data))])
    counts = np.bincount(labels[labels < 19], minlength=19)
    assert report.largest == data.classes[int(counts.argmax())]
    assert report.largest_share == counts.max() / counts.sum()
    assert report.constant_mean_iou == pytest.approx(report.largest_share / np.count_nonzero(counts), rel=1e-12)


def test_the_page_is_whole_and_needs_no_network(made, page):
    report = made[0]
    assert page.open == []
    assert len(page.images) == 3 * min(report.request.held_out, 6) + 3
    drawings = [address for address in page.images if address.startswith("data:image/svg+xml;base64,")]
    assert len(drawings) == 1
    assert b"<svg" in base64.b64decode(drawings[0].split(",", 1)[1])
    for address in page.images:
        head, content = address.split(",", 1)
        if address in drawings:
            continue
        assert re.fullmatch(r"data:image/(png|jpeg);base64", head)
        assert cv2.imdecode(np.frombuffer(base64.b64decode(content), np.uint8), cv2.IMREAD_COLOR) is not None
    assert len(page.links) >= 10
    for address in page.links:
        assert not re.match(r"[a-z]+:|/", address), address
        assert (report.out / unquote(address)).exists(), address
    text = report.page.read_text(encoding="utf-8")
    assert not re.search(r"<script|@import|url\(|https?://", text)
    assert not re.search(r"[{}$]{2}|{%|&amp;[a-z]+;", re.sub(r"base64,[^\"]*", "", text)), "left open, or escaped twice"


def test_the_page_says_what_was_measured(made, page):
    report, words = made[0], " ".join(" ".join(page.words).split())
    for value in (
        report.single_scale.mean_iou, report.ms_flip.mean_iou, report.single_scale.pixel_accuracy,
        report.largest_share, report.constant_mean_iou,
    ):  # fmt: skip
        assert f"{percent(value)} %" in words
    assert len(report.classes) == 19
    for entry in report.classes:
        assert entry.name in words
    assert resources.PHOTOGRAPH_CREDIT in words
    for line in commands(report).splitlines():
        assert line in words


def test_the_sheet_shows_image_truth_and_prediction(made):
    report = made[0]
    sheet = read_image(report.sheet)
    pair = open_dataset(report.data, "val").pairs[0]
    tiles = report.out / "images" / "held_out"
    shown = [pair.image, tiles / f"{pair.name}_truth.png", tiles / f"{pair.name}_prediction.png"]
    assert sheet.shape[1] > 3 * 512
    for path in shown:
        tile = cv2.resize(read_image(path), (512, 256), interpolation=cv2.INTER_NEAREST)
        _, _, (left, top), _ = cv2.minMaxLoc(cv2.matchTemplate(sheet, tile, cv2.TM_SQDIFF))
        np.testing.assert_array_equal(sheet[top : top + 256, left : left + 512], tile, str(path))


def test_an_image_of_the_users_is_refused_before_anything_is_made(tmp_path):
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError, match=r"cut\.png|cannot read"):
        demo(tiny(tmp_path / "d", image=tmp_path / "cut.png"), Silent())
    assert not (tmp_path / "d").exists()


def test_impossible_settings_are_refused_before_anything_is_made(tmp_path):
    for settings in ({"lr": -1.0}, {"device": "cuda:99"}, {"resume": True}, {"resume": True, "overwrite": True}):
        with pytest.raises((ConfigError, ResourceError)):
            demo(tiny(tmp_path / "d", **settings), Silent())
    assert not (tmp_path / "d").exists()


def test_a_folder_with_something_else_is_never_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for settings in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(ConfigError, match="taken"):
            demo(tiny(tmp_path, **settings), Silent())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(ConfigError, match="needs a folder"):
        refuse_folder(tiny(tmp_path / "thesis.txt"))


def test_a_second_run_is_refused_and_says_the_ways_out(made):
    report = made[0]
    with pytest.raises(ConfigError, match="finished demo") as caught:
        refuse_folder(tiny(report.out))
    assert str(report.page) in str(caught.value)
    assert "--overwrite" in str(caught.value)
    refuse_folder(tiny(report.out, overwrite=True))
    refuse_folder(tiny(report.out, resume=True))
    with pytest.raises(ConfigError, match="cannot go on") as caught:
        refuse_folder(tiny(report.out, resume=True, iters=3, seed=5))
    assert caught.value.faults == ("iters: 2 -> 3", "seed: 0 -> 5")
    with lock_folder(report.out):  # record locks do not exclude their own process
        refuse_folder(tiny(report.out, resume=True))


def test_the_number_of_steps_follows_from_their_time_and_stays_when_an_interrupted_demo_goes_on(
    made, tmp_path, monkeypatch
):
    taken = []

    def measured(wanted, observer):
        taken.append(wanted.config.train.batch_size)
        return SimpleNamespace(seconds_per_step=run.TRAIN_SECONDS / 2.5)

    monkeypatch.setattr(run, "plan_training", measured)
    monkeypatch.setattr(run, "LEAST_STEPS", 1)

    class Interrupting(Silent):
        def result(self, value):
            if isinstance(value, StepResult) and value.iteration == 1:
                signal.raise_signal(signal.SIGINT)

    out = tmp_path / "d"
    with pytest.raises(KeyboardInterrupt):
        demo(tiny(out, iters=None), Interrupting())
    assert not (out / "report.json").exists()
    with pytest.raises(ConfigError, match="unfinished"):
        demo(tiny(out, iters=None), Silent())
    resumed = demo(tiny(out, iters=None, resume=True), Silent())
    assert (resumed.resumed, resumed.training.resumed_at, resumed.training.iterations) == (True, 1, 2)
    assert taken == [2], "measured once, with the batch size that is asked for"
    whole = made[0]
    assert resumed.single_scale.mean_iou == whole.single_scale.mean_iou
    assert resumed.ms_flip.mean_iou == whole.ms_flip.mean_iou
    assert (out / "run" / "log.jsonl").read_bytes() == (whole.run / "log.jsonl").read_bytes()
    (out / "notes.txt").write_text("mine")
    request = tiny(out, overwrite=True)
    request.folder.clear()
    assert {path.name for path in out.iterdir()} == {"lock", "notes.txt"}


def test_scenes_cut_short_are_drawn_anew(tmp_path):
    class Interrupting(Silent):
        def begin(self, task, total=None, *, done=0, unit=""):
            self.task = task

        def advance(self, parts=1, *, done=None, total=None, detail="", left=None):
            if self.task == "drawing":
                raise KeyboardInterrupt

    out = tmp_path / "d"
    with pytest.raises(KeyboardInterrupt):
        demo(tiny(out), Interrupting())
    assert not (out / "data" / "synth.json").exists()
    refuse_folder(tiny(out, resume=True))


def test_durations():
    assert [duration(s) for s in (0.04, 9.94, 9.96, 59.4, 60, 185.2)] == [
        "0.0 s", "9.9 s", "10 s", "59 s", "1 min 00 s", "3 min 05 s",
    ]  # fmt: skip


def test_a_slow_machine_makes_fewer_steps_and_a_fast_one_not_without_end(tmp_path, monkeypatch):
    work = run._Demo(tiny(tmp_path / "d", iters=None), Silent(), tmp_path)
    wanted = TrainRequest(work.config, work.folder.run)
    for seconds, steps in ((run.TRAIN_SECONDS / 155.5, 155), (60.0, run.LEAST_STEPS), (1e-6, run.MOST_STEPS)):
        monkeypatch.setattr(run, "plan_training", lambda *_, s=seconds: SimpleNamespace(seconds_per_step=s))
        assert work._steps_in_time(wanted) == steps


def test_the_time_told_counts_the_evaluations_too(tmp_path):
    def left(steps: int, **settings) -> float:
        return run._Demo(DemoRequest(out=tmp_path / "d", **settings), Silent(), tmp_path)._seconds_left(steps, 0.5)

    assert left(10) - left(0) == pytest.approx(5.0), "each step once"
    assert left(0, scenes=64) - left(0, scenes=32) == pytest.approx(left(0, scenes=96) - left(0, scenes=64))
    assert left(0, ratios=(1.0,)) < left(0, ratios=(1.0, 1.25)), "ms+flip takes its time by its pixels"
    assert left(0, evaluations=1) < left(0, evaluations=2)


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "least"), [({"iters": 200}, 0.36), (LONG, 0.5)], ids=["short", "long"])
def test_the_full_demo_learns(recipe, least, tmp_path: Path):
    report = demo(DemoRequest(out=tmp_path / "d", **recipe), Silent())
    assert report.single_scale.mean_iou > least
    assert report.ms_flip.mean_iou > least
    assert report.largest_share < 0.4
