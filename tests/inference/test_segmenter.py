"""A segmenter as Python code uses it: settings, observers, copies, memory limits on systems that tell nothing."""

from __future__ import annotations

import copy
import pickle
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import stand_ins
from streets import predict_files, segmenter

from dgmn2cli import runtime
from dgmn2cli.checkpoint.weights import write_checkpoint
from dgmn2cli.config import InferenceConfig
from dgmn2cli.data.images import write_png
from dgmn2cli.errors import ConfigError, DataError, IntegrityError, ResourceError
from dgmn2cli.inference.load import build_model, load, resolve
from dgmn2cli.inference.outputs import check_targets
from dgmn2cli.inference.plan import Plan, Settings, require_room, resolve_settings
from dgmn2cli.inference.segmenter import RunInfo
from dgmn2cli.inference.sources import find_images
from dgmn2cli.model.fused.lanes import lanes
from dgmn2cli.observer import Silent

IMAGE = np.random.default_rng(3).integers(0, 256, (40, 64, 3), np.uint8)
CPU = torch.device("cpu")


def test_settings_are_resolved_over_the_configurations() -> None:
    base = InferenceConfig()
    paper = resolve_settings(Settings(), base, "cpu")
    assert (paper.name, paper.scale, paper.window, paper.stride) == ("paper", (2049, 1025), 769, 513)
    assert (paper.window_batch, paper.ratios, paper.flip) == (lanes(), (1.0,), False)
    assert resolve_settings(Settings(), base, "cuda:1").window_batch == 4
    assert resolve_settings(Settings(), base).window_batch is None
    assert resolve_settings(Settings(window=64), base).stride == 64
    native = resolve_settings(Settings(ms_flip=True, protocol="native", window_batch=3), base, "cpu")
    assert (native.scale, native.window_batch, native.flip) == (None, 3, True)
    assert native.ratios == (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    plan = Plan.of(native, (100, 200))
    assert plan.sizes == [(50, 100), (75, 150), (100, 200), (125, 250), (150, 300), (175, 350)]
    assert (plan.scales[2], plan.windowing.pad, plan.flips) == (None, True, (False, True))


IMPOSSIBLE = [
    {"scale": (0, 0)}, {"scale": (5,)}, {"scale": (10**6, 5)}, {"window": 0}, {"stride": 0}, {"window_batch": 0},
    {"window": -1}, {"window": 16, "stride": 17}, {"protocol": ""}, {"protocol": "other"},
    {"protocol": "native", "scale": (64, 40)},
]  # fmt: skip


@pytest.mark.parametrize("settings", IMPOSSIBLE, ids=str)
def test_impossible_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        segmenter().predict(IMAGE, **settings)


class Counter(Silent):
    """Counts what it is told."""

    def __init__(self) -> None:
        self.total, self.done, self.results = 0.0, 0.0, []

    def begin(self, task: str, total: float | None = None, *, done: float = 0, unit: str = "") -> None:
        self.total, self.done = total or 0, done

    def advance(
        self, parts: float = 1, *, done: float | None = None, total: float | None = None, detail: str = ""
    ) -> None:
        self.done += parts
        self.total = self.total if total is None else total

    def result(self, value: object) -> None:
        self.results.append(value)


def test_an_observer_sees_every_window_and_image(tmp_path: Path) -> None:
    counter = Counter()
    got = segmenter().predict(IMAGE, scale=(64, 40), window=24, stride=16, observer=counter)
    assert counter.done == counter.total == got.windows == 8
    for name in ("a", "b"):
        write_png(tmp_path / f"{name}.png", IMAGE)
    (tmp_path / "c.png").write_bytes(b"no image")
    settings, counter = Settings(scale=(64, 40), window=24, stride=16), Counter()
    report = predict_files(segmenter(), tmp_path, tmp_path / "out", ["ids"], settings, observer=counter)
    assert counter.done == pytest.approx(3)
    assert counter.total == 3
    assert counter.results == report.images
    assert len(report.images) == 2
    assert [failure.path.name for failure in report.failures] == ["c.png"]
    assert report.protocol == resolve_settings(settings, InferenceConfig(), "cpu")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_copies_and_pickles_give_the_same_probabilities(tmp_path: Path, dtype: str) -> None:
    path = write_checkpoint(tmp_path / "w.pth", stand_ins(lambda: build_model("setr_naive-tiny")), {})
    made = resolve("setr_naive-tiny")(checkpoint=path, device="cpu", dtype=dtype)
    assert made.info.form == "fused"
    prediction = made.predict(IMAGE, protocol="native", window=64)
    assert all(len(repr(shown)) < 300 for shown in (made, prediction)), "an interactive session gets a line"
    wanted = prediction.probs
    for again in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert again.info == made.info
        assert np.array_equal(again.predict(IMAGE, protocol="native", window=64).probs, wanted)


def test_without_proc_a_memory_limit_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(runtime, "_STATUS", Path("/nonexistent/status"))
    monkeypatch.setattr(runtime, "_CLEAR", Path("/nonexistent/clear_refs"))
    write_png(tmp_path / "a.png", IMAGE)
    with pytest.raises(ResourceError, match="memory cannot be measured"):
        segmenter().plan((40, 64), Settings(max_memory=10**10))
    with pytest.raises(ResourceError, match="memory cannot be measured"):
        predict_files(segmenter(), tmp_path, tmp_path / "o", ["ids"], Settings(max_memory=10**10))


@pytest.mark.skipif(not runtime.can_measure(CPU), reason="this system does not tell memory use")
def test_a_limit_covers_what_was_and_what_will_be_in_use(tmp_path: Path) -> None:
    used, highest = runtime.in_use(CPU), runtime.highest_use(CPU)
    require_room(highest + 10**8, CPU, 0, "nothing")
    for limit, needed in ((highest - 1, 0), (highest + 10**8, highest - used + 2 * 10**8)):
        with pytest.raises(ResourceError, match="the memory limit is too small"):
            require_room(limit, CPU, needed, "nothing")
    with pytest.raises(ResourceError, match="loading the model"):
        resolve("setr_naive-tiny")(checkpoint=tmp_path / "none.pth", device="cpu", max_memory=used + 10**7)
    with pytest.raises(ResourceError, match="limit is too small"):
        segmenter().plan((40, 64), Settings(max_memory=highest + 10**9), used=highest + 2 * 10**9)


def test_a_name_that_leaves_no_room_for_the_outputs_is_refused_before_work(tmp_path: Path) -> None:
    longest = tmp_path / f"{'ü' * 122}.png"  # 248 bytes
    write_png(longest, IMAGE)
    images = find_images([str(longest)])
    check_targets(images, tmp_path / "out", ["ids"], overwrite=False)
    with pytest.raises(ConfigError) as caught:
        check_targets(images, tmp_path / "out", ["ids", "overlay"], overwrite=False)
    assert len(caught.value.faults) == 1


def test_weights_of_another_model_are_named(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "x.pth", stand_ins(lambda: build_model("setr_naive-tiny", 3)), {})
    with pytest.raises(IntegrityError) as caught:
        load("setr_pup-tiny", path)
    assert "setr_naive-tiny with 3 classes" in caught.value.hint


def test_compiling_is_refused_where_it_cannot_work() -> None:
    with pytest.raises(ConfigError, match="NVIDIA"):
        resolve("setr_naive-tiny")(checkpoint="none.pth", device="cpu", compiled=True)


@pytest.mark.parametrize("array", [np.zeros((4, 4)), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)])
def test_arrays_that_are_no_images(array: np.ndarray) -> None:
    with pytest.raises(DataError):
        segmenter().predict(array)


def test_what_the_machine_cannot_hold_is_refused_without_a_limit_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert runtime.machine_memory() > 10**8
    made = segmenter()
    with pytest.raises(ResourceError, match=r"99999x\d+ pixels take at least \d+") as caught:
        made.plan((40, 40), Settings(scale=(99999, 99999)))
    assert caught.value.exit_code == 5
    least = (4 * len(made.classes.names) + 3) * 1000 * 1000
    for memory, refused in ((least - 1, True), (least, False)):
        monkeypatch.setattr("dgmn2cli.inference.plan.machine_memory", lambda memory=memory: memory)
        if refused:
            with pytest.raises(ResourceError, match="1000x1000 pixels take at least"):
                made.plan((40, 40), Settings(scale=(1000, 1000), window=64, stride=48))
        else:
            made.plan((40, 40), Settings(scale=(1000, 1000), window=64, stride=48))


def test_what_ran_is_said_in_words() -> None:
    info = RunInfo("m", "f.pth", "", "cpu", "a machine", "float32", "native", "fused")
    assert info.engine == "op backend native"
    assert replace(info, backend="").engine == "no network"  # predictions from files
    graph = replace(info, runtime="openvino", runtime_version="2026.4", graph="g", graph_sha256="ab" * 32)
    assert graph.engine == f"openvino 2026.4, graph {'ab' * 6}"


@pytest.mark.parametrize(
    ("file", "sha256", "runtime", "title"),
    [
        ("runs/mine/checkpoints/best.pth", "ab", "torch", "mine/best.pth of m"),
        ("elsewhere/mine.pth", "ab", "torch", "mine.pth of m"),
        ("cache/files/ab.pth", "ab", "torch", "m"),
        ("predictions", "ab", "files", "m"),
    ],
)
def test_a_users_weights_are_named_beside_the_model(file: str, sha256: str, runtime: str, title: str) -> None:
    assert RunInfo("m", file, sha256, "cpu", "", "float32", "native", "fused", runtime=runtime).title == title
    config = "setr_pup_dgmn2_tiny_4x2_769x769_40k_cityscapes"  # what a run's own configuration is called
    of_run = RunInfo(config, file, sha256, "cpu", "", "float32", "native", "fused", runtime=runtime)
    assert of_run.title == re.sub("m$", "setr_pup-tiny", title)
