"""Evaluation counts every picture exactly once, whoever counts, and continues to the identical matrix."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from streets import SMALL, Colours, Load, Watcher, make_tree, segmenter

import dgmn2cli
from dgmn2cli.config import DataConfig, InferenceConfig
from dgmn2cli.data.catalog import open_dataset
from dgmn2cli.data.check import fingerprint
from dgmn2cli.data.cityscapes import LABEL_ID_OF_TRAIN_ID
from dgmn2cli.data.dataset import IdMap
from dgmn2cli.data.images import read_label, write_png
from dgmn2cli.data.loaders import eval_indices
from dgmn2cli.errors import ConfigError, DataError, NonFiniteError, ResourceError
from dgmn2cli.evaluate import Settings, engine, evaluate
from dgmn2cli.evaluate.analysis.counts import to_text
from dgmn2cli.evaluate.analysis.measure import ImageRecord, Measured
from dgmn2cli.evaluate.journal import Journal, Tally, start_tally
from dgmn2cli.evaluate.predictions import PredictionFolder
from dgmn2cli.evaluate.request import EvalRequest, prepare
from dgmn2cli.evaluate.run import run
from dgmn2cli.files import to_json
from dgmn2cli.inference import pipeline
from dgmn2cli.inference.prediction import CITYSCAPES

Tree = Callable[..., Path]
GUESSED = replace(CITYSCAPES, stated=False)
ONES = Measured(ImageRecord("one", (3, 2), "", to_text(np.ones((2, 3), np.int64))))


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return lambda *args, **named: make_tree(tmp_path / "city", *args, **named)


def counted_by_hand(folder: Path, data: object) -> np.ndarray:
    counts = np.zeros((19, 20), np.int64)
    for i, pair in enumerate(data.pairs):
        guess, truth = read_label(folder / "trainIds" / f"{pair.name}_trainIds.png"), data.read_label(i)
        for t, g in zip(truth.ravel().tolist(), guess.ravel().tolist(), strict=True):
            if t != 255:
                counts[t, g] += 1
    return counts


def test_counts_are_those_of_the_kept_predictions(tree: Tree, tmp_path: Path) -> None:
    data, watcher = open_dataset(tree(3), "val"), Watcher()
    report = evaluate(segmenter(), data, SMALL, save_preds=tmp_path / "preds", observer=watcher)
    np.testing.assert_array_equal(np.array(report.confusion), counted_by_hand(tmp_path / "preds", data))
    assert np.array(report.confusion).sum() == report.scores.pixels > 2000
    assert 0 < report.scores.mean_iou < 1
    assert [picture.name for picture in watcher.images] == [pair.name for pair in data.pairs]
    assert watcher.parts == pytest.approx(3)
    for pair in data.pairs:
        official = read_label(tmp_path / "preds" / "labelIds" / f"{pair.name}_labelIds.png")
        trained = read_label(tmp_path / "preds" / "trainIds" / f"{pair.name}_trainIds.png")
        np.testing.assert_array_equal(official, LABEL_ID_OF_TRAIN_ID[trained])
    plain = json.loads(to_json(report))
    assert plain["run"]["sha256"] == "ab" * 32
    assert plain["data"] == {
        "root": str(data.root), "split": "val", "kind": "cityscapes", "images": 3, "of": 3, "sizes": {}, "sha256": "",
        "mapping": None, "corruption": "",
    }  # fmt: skip
    assert plain["protocol"]["scale"] == [48, 24]
    assert not plain["partial"]
    assert {"torch", "opencv", "dgmn2cli", "python"} <= set(plain["versions"])


@pytest.mark.parametrize("size", [1, 7, 16])
def test_any_number_of_shares_gives_the_identical_matrix(tree: Tree, size: int) -> None:
    data, matrices = open_dataset(tree(size), "val"), []
    for world in (1, 2, 3):
        total, seen = np.zeros((19, 20), np.int64), []
        for rank in range(world):
            mine = eval_indices(size, rank, world)
            for picture in engine.network_source(segmenter(), data, SMALL, workers=1 + rank).images(mine):
                total += picture.counts
                seen.append(picture.index)
        assert sorted(seen) == list(range(size))
        matrices.append(total)
    assert matrices[0].sum() > 500 * size
    np.testing.assert_array_equal(matrices[1], matrices[0])
    np.testing.assert_array_equal(matrices[2], matrices[0])


def test_multi_scale_and_limit(tree: Tree) -> None:
    data = open_dataset(tree(3), "val")
    single = evaluate(segmenter(), data, SMALL, limit=2)
    multi = evaluate(segmenter(), data, replace(SMALL, ms_flip=True), limit=2)
    assert single.partial
    assert (single.data.images, single.data.of) == (2, 3)
    assert single.protocol.ratios == (1.0,)
    assert multi.protocol.ratios == (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    assert multi.protocol.flip
    assert multi.confusion != single.confusion
    assert not evaluate(segmenter(), data, SMALL, limit=99).partial


def test_absent_and_only_predicted_classes(tree: Tree) -> None:
    data = open_dataset(tree(2, classes=[0, 1, 8, 10, 13]), "val")
    report = evaluate(segmenter(Colours(never=(2, 8))), data, SMALL)
    assert f"fake: mIoU {100 * report.scores.mean_iou:.2f} % on" in report._repr_html_()
    by_name = {score.name: score for score in report.scores.classes}
    assert np.isnan(by_name["building"].iou)
    assert by_name["vegetation"].iou == 0
    assert "building" in report.scores.absent
    assert "vegetation" not in report.scores.absent
    only_predicted = [s for s in report.scores.classes if s.predicted and not s.labelled]
    assert only_predicted
    assert all(s.iou == 0 and np.isnan(s.accuracy) for s in only_predicted)
    assert '"iou": null' in to_json(report)


def test_a_folder_data_set_has_its_own_classes(tmp_path: Path) -> None:
    for i in range(2):
        pixels = np.full((20, 30, 3), 40 * i + 30, np.uint8)
        write_png(tmp_path / "images" / "val" / f"{i}.png", pixels)
        write_png(tmp_path / "labels" / "val" / f"{i}.png", np.full((20, 30), i, np.uint8))
    names = ", ".join(f'"c{i}"' for i in range(19))
    (tmp_path / "dataset.toml").write_text(
        f'images = "images/{{split}}"\nlabels = "labels/{{split}}"\nclasses = [{names}]\n'
    )
    data = open_dataset(tmp_path, "val")
    report = evaluate(segmenter(classes=GUESSED), data, SMALL, save_preds=tmp_path / "preds")
    assert [score.name for score in report.scores.classes][:2] == ["c0", "c1"]
    assert report.scores.categories == ()
    assert report.scores.pixels == 1200
    assert sorted(p.name for p in (tmp_path / "preds").rglob("*.png")) == ["0_trainIds.png", "1_trainIds.png"]

    (tmp_path / "dataset.toml").write_text(
        'images = "images/{split}"\nlabels = "labels/{split}"\nclasses = ["a","b"]\n'
    )
    with pytest.raises(ConfigError, match="tells 19 classes apart, the data set has 2"):
        evaluate(segmenter(), open_dataset(tmp_path, "val"), SMALL)


def test_classes_are_matched_by_name(tree: Tree, tmp_path: Path) -> None:
    """The same network and data with the data's classes, or the network's, in another order: the same figures."""
    data, order = open_dataset(tree(2), "val"), np.random.default_rng(3).permutation(19)
    straight = evaluate(segmenter(), data, SMALL)
    turned = replace(
        data,
        classes=tuple(data.classes[i] for i in order),
        palette=data.palette[order],
        categories=tuple(data.categories[i] for i in order),
        pairs=tuple(replace(pair, ids=reordered(pair.ids, order)) for pair in data.pairs),
    )
    report = evaluate(segmenter(), turned, SMALL, save_preds=tmp_path / "preds")
    assert report.scores.mean_iou == pytest.approx(straight.scores.mean_iou, abs=1e-15)
    assert {s.name: (s.intersection, s.labelled, s.predicted) for s in report.scores.classes} == {
        s.name: (s.intersection, s.labelled, s.predicted) for s in straight.scores.classes
    }
    np.testing.assert_array_equal(np.array(report.confusion), counted_by_hand(tmp_path / "preds", turned))
    assert evaluate(segmenter(classes=GUESSED), turned, SMALL).confusion == report.confusion, (
        "guessed, and the same set"
    )


def reordered(ids: IdMap, order: np.ndarray) -> IdMap:
    """Stored ids whose class number `order[i]` is called `i` now."""
    place = np.append(np.argsort(order), np.full(237, 255)).astype(np.uint8)
    return replace(ids, table=place[ids.table])


def test_other_names_are_refused(tree: Tree) -> None:
    data = open_dataset(tree(1), "val")
    renamed = replace(data, classes=("street", *data.classes[1:]))
    with pytest.raises(ConfigError, match="their classes have other names") as caught:
        evaluate(segmenter(), renamed, SMALL)
    assert caught.value.faults == ("class 0: the model says road, the data set street",)
    assert evaluate(segmenter(classes=GUESSED), renamed, SMALL).scores.pixels > 0, "the checkpoint does not say"


def test_not_a_number_names_the_picture(tree: Tree) -> None:
    data = open_dataset(tree(2), "val")
    with pytest.raises(NonFiniteError, match=r"aachen_000001_000019_leftImg8bit\.png"):
        evaluate(Load("nan")(device="cpu"), data, SMALL)


def test_faults_of_the_data_are_all_named_before_anything_is_loaded(tree: Tree) -> None:
    root = tree(8)
    label = sorted((root / "gtFine").rglob("*.png"))
    picture = sorted((root / "leftImg8bit").rglob("*.png"))
    write_png(label[0], np.zeros((24, 39), np.uint8))
    write_png(label[1], np.zeros((24, 40, 3), np.uint8))
    write_png(label[2], np.full((24, 40), 77, np.uint8))
    picture[3].write_bytes(picture[3].read_bytes()[:200])
    picture[4].write_bytes(b"no picture")
    request = EvalRequest(root, settings=SMALL)
    with pytest.raises(DataError, match="5 of 8 pairs") as caught:
        run(request, Load("odd"), Watcher())
    text = "\n".join(caught.value.faults)
    assert len(caught.value.faults) == 5
    assert caught.value.exit_code == 6
    named = dict(zip([*label[:3], *picture[3:5]], ["39x24", "colour image", "77", "cut", "a text file"], strict=True))
    for path, why in named.items():
        assert any(path.name in fault and why in fault for fault in caught.value.faults), (path.name, text)
    label[5].unlink()
    label[6].unlink()
    with pytest.raises(DataError, match="2 of 8 images have no label map") as caught:
        run(request, Load("odd"), Watcher())
    assert len(caught.value.faults) == 2


def test_settings_are_refused_before_the_data_is_read(tmp_path: Path) -> None:
    nowhere = EvalRequest(tmp_path / "nowhere")
    watcher = Watcher()
    for request, message in [
        (replace(nowhere, settings=Settings(window=10, stride=20)), "sliding window is impossible"),
        (replace(nowhere, settings=Settings(protocol="odd")), "no such protocol"),
        (replace(nowhere, resume=True), "--resume needs --report"),
        (replace(nowhere, resume=True, report=tmp_path / "r", official=True), "kept predictions"),
        (replace(nowhere, device="cuda:1", gpus=2), "one device for several"),
        (replace(nowhere, report=tmp_path), "the report is not written.*it is a folder"),
    ]:
        with pytest.raises(ConfigError, match=message):
            prepare(request, [InferenceConfig()], watcher)
    with pytest.raises(ResourceError, match="not enough GPUs"):
        prepare(replace(nowhere, gpus=64), [InferenceConfig()], watcher)
    with pytest.raises(DataError, match="no such folder"):
        prepare(nowhere, [InferenceConfig()], watcher)


def test_predictions_never_overwrite_the_data_set(tmp_path: Path) -> None:
    for i in range(2):
        write_png(tmp_path / "images" / f"{i}.png", np.zeros((8, 8, 3), np.uint8))
        write_png(tmp_path / "trainIds" / f"{i}_trainIds.png", np.zeros((8, 8), np.uint8))
    (tmp_path / "dataset.toml").write_text(
        'images = "images"\nlabels = "trainIds"\nlabel_suffix = "_trainIds.png"\nclasses = ["a", "b"]\n'
    )
    data = open_dataset(tmp_path, "all")
    with pytest.raises(ConfigError, match="would overwrite") as caught:
        PredictionFolder.of(tmp_path, data)
    assert len(caught.value.faults) == 2
    twice = replace(data, pairs=(data.pairs[0], data.pairs[0]))
    with pytest.raises(ConfigError, match="one name"):
        PredictionFolder.of(tmp_path / "out", twice)


def test_the_fingerprint_is_of_names_and_contents(tree: Tree, tmp_path: Path) -> None:
    data = open_dataset(tree(2), "val")
    first = fingerprint(data)
    assert fingerprint(open_dataset(make_tree(tmp_path / "elsewhere", 2), "val"), 3) == first
    for path in (data.pairs[0].image, data.pairs[1].label):
        assert path is not None
        kept = path.read_bytes()
        path.write_bytes(kept + b"x")
        assert fingerprint(data) != first
        path.write_bytes(kept)
    assert fingerprint(data) == first
    renamed = replace(data, pairs=(replace(data.pairs[0], name="other"), data.pairs[1]))
    assert fingerprint(renamed) != first


# --- interruption -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [1, 2, 5, 6])
def test_an_interrupted_run_goes_on_to_the_identical_matrix(tree: Tree, tmp_path: Path, stop: int) -> None:
    report = tmp_path / "out" / "report.json"
    request = EvalRequest(tree(6), settings=SMALL, report=report, journal_every=1e9)
    whole = run(replace(request, report=None), Load(), Watcher())
    with pytest.raises(KeyboardInterrupt):
        run(request, Load(), Watcher(stop_after=stop))
    assert [path.name for path in report.parent.iterdir()] == ["report.json.journal"]
    with pytest.raises(ConfigError, match=f"journal of an interrupted.*{stop} of 6 images"):
        run(request, Load(), Watcher())
    watcher = Watcher()
    resumed = run(replace(request, resume=True), Load(), watcher)
    assert watcher.started == [("fake", 6, stop)]
    assert len(watcher.images) == 6 - stop
    assert resumed.resumed == stop
    assert resumed.confusion == whole.confusion
    assert [path.name for path in report.parent.iterdir()] == ["report.json"]
    assert json.loads(report.read_text())["confusion"] == [list(row) for row in whole.confusion]
    assert run(replace(request, resume=True), Load(), Watcher()).resumed == 0, "nothing to go on from: from zero"


def test_a_journal_of_another_run_is_refused_with_the_difference(tree: Tree, tmp_path: Path) -> None:
    request = EvalRequest(tree(3), settings=SMALL, report=tmp_path / "r.json")
    with pytest.raises(KeyboardInterrupt):
        run(request, Load(), Watcher(stop_after=1))
    again = replace(request, resume=True)
    changed = [
        (again, Load("well", "cd" * 32), "checkpoint sha256: the journal has"),
        (replace(again, compiled=True), Load(), "compiled: the journal has false, this run true"),
        (
            replace(again, settings=replace(SMALL, window=20)),
            Load(),
            "protocol window: the journal has 24, this run 20",
        ),
        (replace(again, settings=replace(SMALL, ms_flip=True)), Load(), "protocol ratios"),
        (replace(again, described=DataConfig(ignore_index=3)), Load(), "meaning of the labels: the journal has"),
        (replace(again, limit=2), Load(), "images: the journal has 3, this run 2"),
        (replace(again, save_preds=tmp_path / "p"), Load(), "save-preds: the journal has null"),
    ]
    for other, load, line in changed:
        with pytest.raises(ConfigError, match="another evaluation's journal") as caught:
            run(other, load, Watcher())
        assert any(fault.startswith(line) for fault in caught.value.faults), caught.value.faults
    image = next((tmp_path / "city" / "leftImg8bit").rglob("*.png"))
    kept = image.read_bytes()
    write_png(image, np.zeros((24, 40, 3), np.uint8))
    with pytest.raises(ConfigError) as caught:
        run(again, Load(), Watcher())
    assert len(caught.value.faults) == 1
    assert caught.value.faults[0].startswith("data sha256")
    image.write_bytes(kept)
    assert run(again, Load(), Watcher()).resumed == 1


def test_a_damaged_journal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.journal"
    tally = Tally(Journal(path, {"a": 1}, every=0))
    tally.note()
    assert not path.exists(), "nothing is counted yet"
    tally.add(1, ONES)
    good = path.read_bytes()
    again = start_tally(2, 3, Journal(path, {"a": 1}), resume=True)
    assert set(again.records) == {1}
    np.testing.assert_array_equal(again.counts(2), np.ones((2, 3)))
    with pytest.raises(ValueError, match="counted already"):
        again.add(1, ONES)
    for damaged in (good[:-20], good.replace(b"[1]", b"[2]"), b"", b"[]", b'{"digest": 3}', b"[" * 100_000):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="cannot use the journal"):
            start_tally(2, 3, Journal(path, {"a": 1}), resume=True)
    path.write_bytes(good)
    with pytest.raises(DataError, match="do not fit"):
        start_tally(2, 1, Journal(path, {"a": 1}), resume=True)
    with pytest.raises(DataError, match="do not fit"):
        start_tally(3, 3, Journal(path, {"a": 1}), resume=True)


def test_journal_entries_are_written_as_time_goes(tmp_path: Path) -> None:
    path = tmp_path / "r.journal"
    tally = Tally(Journal(path, {}, every=1e9))
    tally.add(0, ONES)
    assert not path.exists()
    tally.note()
    assert json.loads(path.read_text())["done"] == [0]
    eager = Tally(Journal(path, {}, every=0))
    eager.add(5, ONES)
    assert json.loads(path.read_text())["done"] == [5]


def test_a_file_that_vanishes_meanwhile_is_named_and_the_rest_is_kept(tree: Tree, tmp_path: Path) -> None:
    root = tree(5)
    lost = open_dataset(root, "val").pairs[4].image

    class Vandal(Watcher):
        def begin(self, task: str, total: float | None = None, *, done: float = 0, unit: str = "") -> None:
            if task.startswith("evaluating"):
                lost.rename(lost.with_suffix(".away"))

    request = EvalRequest(root, settings=SMALL, report=tmp_path / "r.json", workers=1)
    with pytest.raises(DataError, match="no such file") as caught:
        run(request, Load(), Vandal())
    assert caught.value.where == str(lost)
    lost.with_suffix(".away").rename(lost)
    report = run(replace(request, resume=True), Load(), Watcher())
    assert report.resumed >= 2
    assert report.confusion == run(replace(request, report=None), Load(), Watcher()).confusion


def test_as_many_threads_read_ahead_as_the_memory_limit_allows(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is decided by the largest image, before the first one is read."""
    data, made = open_dataset(tree(3), "val"), segmenter()
    larger = tree(1, size=(80, 90)).parent / "city"
    data = replace(data, pairs=(*data.pairs, *open_dataset(larger, "val").pairs[:1]))
    asked: list[int | None] = []

    def plan(size: tuple[int, ...], settings: Settings, result_bytes: int = 0, used: int | None = None) -> None:
        asked.append(used)
        assert tuple(size) == (80, 90)
        if used is not None and used > limit:
            raise ResourceError("the memory limit is too small")

    monkeypatch.setattr(made, "plan", plan)
    monkeypatch.setattr("dgmn2cli.inference.segmenter.in_use", lambda device: 1000)
    each = engine.ANALYSED
    per_reader = 80 * 90 * (pipeline.DECODE_BYTES + each.read)
    kept = 80 * 90 * (each.read + (engine.BEHIND + 2) * each.done + each.finishing)
    for workers, limit in ((6, 10**9), (3, 1000 + kept + 3 * per_reader), (1, 1000 + kept + 2 * per_reader - 1)):
        found = engine._readers(made, data, range(len(data)), Settings(max_memory=limit), 6, analysis=True)
        assert found == (workers, 1000 + kept + workers * per_reader)
    limit = 1000 + kept
    with pytest.raises(ResourceError) as caught:
        engine._readers(made, data, range(len(data)), Settings(max_memory=limit), 6, analysis=True)
    assert "--no-analysis" in caught.value.hint
    assert asked[0] is None, "a window is measured first"


def test_room_is_callable_as_the_command_is(tree, tmp_path):
    root = tree()
    report = dgmn2cli.evaluate(segmenter(), root, settings=SMALL, limit=2)
    wanted = run(EvalRequest(root, settings=SMALL, limit=2, device="cpu"), Load())
    assert report.confusion == wanted.confusion
    assert (report.partial, report.data) == (True, wanted.data)
    assert len(repr(report)) < 300, "an interactive session gets a line"
    with pytest.raises(DataError):
        dgmn2cli.evaluate(segmenter(), tmp_path / "nowhere")
    for wrong in (0, -1, float("nan"), "3", True):
        for name in ("limit", "workers"):
            with pytest.raises(ConfigError, match=name):
                dgmn2cli.evaluate(segmenter(), root, **{name: wrong})
