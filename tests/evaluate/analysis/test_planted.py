"""Errors planted in predictions come first in their lists; processes and interruptions change nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from streets import SMALL, Load, Watcher, make_tree

from dgmn2cli.data.catalog import open_dataset
from dgmn2cli.data.images import write_png
from dgmn2cli.errors import DataError
from dgmn2cli.evaluate import EvalReport
from dgmn2cli.evaluate.request import EvalRequest
from dgmn2cli.evaluate.run import run
from dgmn2cli.files import to_plain

IMAGES, SIZE = 40, (48, 80)
CAR, TRUCK, POLE = 13, 14, 5


def evaluated(root: Path, predictions: list[np.ndarray]) -> EvalReport:
    """The report of these predictions of `root`."""
    folder = root.with_name("preds")
    for pair, ids in zip(open_dataset(root, "val").pairs, predictions, strict=True):
        write_png(folder / "trainIds" / f"{pair.name}_trainIds.png", ids)
    return run(EvalRequest(root, predictions=folder), observer=Watcher())


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[np.ndarray], list[str]]:
    """A data set, its labels with the ignored pixels filled, and its images' names."""
    root = make_tree(tmp_path_factory.mktemp("planted") / "city", IMAGES, size=SIZE)
    data = open_dataset(root, "val")
    labels = [np.where(data.read_label(i) == 255, 0, data.read_label(i)).astype(np.uint8) for i in range(IMAGES)]
    return root, labels, [pair.name for pair in data.pairs]


def test_a_perfect_prediction(truth: tuple[Path, list[np.ndarray], list[str]]) -> None:
    report = evaluated(*truth[:2])
    assert (report.scores.mean_iou, report.analysis.intervals.mean_iou) == (1.0, (1.0, 1.0))
    assert report.analysis.boundary is not None
    assert report.analysis.boundary.mean_iou == 1.0
    assert all(point.accuracy == 1.0 for point in report.analysis.boundary.trimaps)
    assert set(report.analysis.fine_grained.values()) == {1.0}
    assert report.analysis.confusions == ()
    assert report.crops == {}
    assert report.analysis.calibration is None
    assert set(report.analysis.not_measured) == {"calibration", "instances"}


def test_a_class_swapped_in_three_images(truth: tuple[Path, list[np.ndarray], list[str]]) -> None:
    root, labels, names = truth
    found = [label.copy() for label in labels]
    swapped = [i for i in range(IMAGES) if (labels[i] == CAR).any()][2:5]
    for i in swapped:
        found[i][labels[i] == CAR] = TRUCK
    report = evaluated(root, found)
    worst = report.analysis.confusions[0]
    assert (worst.label, worst.prediction) == ("car", "truck")
    assert set(worst.images) == {names[i] for i in swapped}
    assert worst.error_share == 1.0
    assert len(report.analysis.confusions) == 1
    assert set(report.analysis.worst_images[:3]) == {names[i] for i in swapped}
    assert set(sorted(report.scores.classes, key=lambda score: score.iou)[:2]) == {
        score for score in report.scores.classes if score.name in ("car", "truck")
    }


def test_a_class_two_pixels_too_large(truth: tuple[Path, list[np.ndarray], list[str]]) -> None:
    root, labels, _ = truth
    box = np.ones((5, 5), np.uint8)
    found = []
    for label in labels:
        fat = cv2.dilate((label == POLE).astype(np.uint8), box) > 0
        found.append(np.where(fat, POLE, label).astype(np.uint8))
    report = evaluated(root, found)
    assert report.analysis.boundary is not None
    boundary = report.analysis.boundary.classes
    assert min(boundary, key=lambda name: boundary[name]) == "pole"
    assert {pair.prediction for pair in report.analysis.confusions} == {"pole"}
    near = {point.radius: point.error_share for point in report.analysis.boundary.trimaps}
    assert near[1] < 1.0
    assert near[2] > 0.9, "an error two pixels from the class may lie next to another border, but not farther than 2"


def test_one_image_all_wrong(truth: tuple[Path, list[np.ndarray], list[str]]) -> None:
    root, labels, names = truth
    found = [label.copy() for label in labels]
    found[17] = ((labels[17].astype(int) + 1) % 19).astype(np.uint8)
    found[3][10:14, 20:30] = (found[3][10:14, 20:30] + 1) % 19
    report = evaluated(root, found)
    assert report.analysis.worst_images[:2] == (names[17], names[3])
    assert min(report.views, key=lambda i: report.views[i].rank) == 17
    assert sorted(report.crops) == [3, 17]
    box = report.analysis.images[3].worst
    assert box is not None
    assert box.wrong > 30
    assert box.x <= 30
    assert box.x + box.side >= 20
    assert report.analysis.images[17].mean_iou == 0.0


def test_missing_predictions_are_named(truth: tuple[Path, list[np.ndarray], list[str]], tmp_path: Path) -> None:
    root, labels, names = truth
    for name, label in zip(names[1:], labels[1:], strict=True):
        write_png(tmp_path / f"{name}_leftImg8bit_ids.png", label)
    with pytest.raises(DataError, match="1 of 40 images") as caught:
        run(EvalRequest(root, predictions=tmp_path), observer=Watcher())
    assert caught.value.faults[0].startswith(names[0])
    write_png(tmp_path / f"{names[0]}.png", labels[0])
    assert run(EvalRequest(root, predictions=tmp_path), observer=Watcher()).scores.mean_iou == 1.0
    write_png(tmp_path / f"{names[0]}.png", labels[0][:, 1:])
    with pytest.raises(DataError, match="the prediction is 79x48, the label 80x48") as caught:
        run(EvalRequest(root, predictions=tmp_path), observer=Watcher())
    assert caught.value.where == str(tmp_path / f"{names[0]}.png")
    with pytest.raises(DataError, match="no such folder"):
        run(EvalRequest(root, predictions=tmp_path / "nowhere"), observer=Watcher())


# --- processes and interruptions --------------------------------------------------------------------------------------


def comparable(report: EvalReport) -> dict[str, object]:
    """All of a report but how it came about; crops included."""
    plain = to_plain(report)
    for name in ("processes", "resumed", "seconds", "command"):
        del plain[name]
    del plain["certificate"]["digest"]
    return {**plain, "crops": report.crops, "views": report.views}


def test_saved_predictions_give_the_network_figures(tmp_path: Path) -> None:
    request = EvalRequest(make_tree(tmp_path / "city", 5), settings=SMALL, save_preds=tmp_path / "preds")
    online = run(request, Load(), Watcher())
    saved = run(EvalRequest(request.root, predictions=tmp_path / "preds"), observer=Watcher())
    for name in ("scores", "confusion", "crops"):
        assert getattr(saved, name) == getattr(online, name), name
    for name in ("intervals", "fine_grained", "confusions", "boundary", "worst_images"):
        assert getattr(saved.analysis, name) == getattr(online.analysis, name), name
    assert (online.analysis.calibration is None, saved.analysis.calibration is None) == (False, True)
    assert len(online.analysis.doubtful_images) == 5
    assert saved.analysis.doubtful_images == ()


def test_any_interruption_gives_the_same_report(tmp_path: Path) -> None:
    request = EvalRequest(make_tree(tmp_path / "city", 6), settings=SMALL, device="cpu", workers=1)
    whole = comparable(run(request, Load(), Watcher()))
    assert whole["calibration"]["temperature"] > 0
    for stop in (1, 4):
        own = replace(request, report=tmp_path / f"{stop}.json")
        with pytest.raises(KeyboardInterrupt):
            run(own, Load(), Watcher(stop_after=stop))
        assert comparable(run(replace(own, resume=True), Load(), Watcher())) == whole


def test_two_processes_give_the_same_report(tmp_path: Path) -> None:
    request = EvalRequest(make_tree(tmp_path / "city", 7), settings=SMALL, device="cpu", workers=1)
    whole = comparable(run(request, Load(), Watcher()))
    assert comparable(run(replace(request, gpus=2), Load(), Watcher())) == whole


def test_without_analysis_only_matrices(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "city", 3)
    report = run(EvalRequest(root, settings=SMALL, analysis=False, report=tmp_path / "r.json"), Load())
    assert (report.analysis.boundary, report.analysis.calibration, report.analysis.instances) == (None, None, None)
    assert set(report.analysis.not_measured) == {"boundary", "calibration", "instances"}
    assert report.confusion == run(EvalRequest(root, settings=SMALL), Load()).confusion
    plain = json.loads((tmp_path / "r.json").read_text())
    assert plain["intervals"]["mean_iou"][0] <= plain["scores"]["mean_iou"] <= plain["intervals"]["mean_iou"][1]
    assert {"name", "pixel_accuracy", "mean_iou"} <= set(plain["images"][0])
    assert "crops" not in plain
