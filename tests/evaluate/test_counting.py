"""The metric against the published system's numbers and the official benchmark's scripts."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dgmn2cli.data.cityscapes import CATEGORY_OF_CLASS, CLASSES, LABEL_ID_OF_TRAIN_ID
from dgmn2cli.data.folder import FolderDescription, id_map
from dgmn2cli.data.images import write_png
from dgmn2cli.errors import DataError
from dgmn2cli.evaluate.analysis.counts import to_text
from dgmn2cli.evaluate.analysis.measure import ImageRecord, Measured
from dgmn2cli.evaluate.counting import compute_scores, confusion
from dgmn2cli.evaluate.journal import Tally
from dgmn2cli.files import to_plain

GOLDEN: dict[str, Any] = dict(np.load(Path(__file__).parents[1] / "golden" / "golden_metrics.npz"))


def golden_counts() -> np.ndarray:
    tally = Tally()
    for index, (prediction, label) in enumerate(zip(GOLDEN["preds"], GOLDEN["gts"], strict=True)):
        record = ImageRecord(str(index), label.shape[::-1], "", to_text(confusion(prediction, label, 19)))
        tally.add(index, Measured(record))
    return tally.counts(19)


def test_the_published_figures() -> None:
    scores = compute_scores(golden_counts(), CLASSES)
    assert len(scores.classes) == 19
    iou, accuracy = ([getattr(c, key) for c in scores.classes] for key in ("iou", "accuracy"))
    np.testing.assert_allclose(iou, GOLDEN["mean_iou__IoU"], rtol=1e-12)
    np.testing.assert_allclose(accuracy, GOLDEN["mean_iou__Acc"], rtol=1e-12)
    np.testing.assert_allclose(scores.pixel_accuracy, GOLDEN["mean_iou__aAcc"], rtol=1e-12)
    np.testing.assert_allclose(scores.mean_iou, GOLDEN["mIoU_nanmean"], rtol=1e-12)
    np.testing.assert_allclose(scores.mean_accuracy, GOLDEN["mAcc_nanmean"], rtol=1e-12)
    assert scores.absent == ("terrain", "motorcycle")
    assert scores.classes[9].iou == 0  # only predicted: counts as 0
    assert np.isnan(scores.classes[17].iou)  # absent from both: left out


def test_the_published_figures_as_printed() -> None:
    scores = compute_scores(golden_counts(), CLASSES)
    printed = {"aAcc": scores.pixel_accuracy, "mIoU": scores.mean_iou, "mAcc": scores.mean_accuracy}
    printed |= {f"IoU.{c.name}": c.iou for c in scores.classes} | {f"Acc.{c.name}": c.accuracy for c in scores.classes}
    expected = dict(zip(GOLDEN["evaluate_keys"].tolist(), GOLDEN["evaluate_values"].tolist(), strict=True))
    assert len(printed) == 41
    assert {key: f"{100 * value:.2f}" for key, value in printed.items()} == {
        key: f"{100 * value:.2f}" for key, value in expected.items()
    }


def test_the_areas_of_one_image() -> None:
    scores = compute_scores(confusion(GOLDEN["preds"][0], GOLDEN["gts"][0], 19), CLASSES)
    for key, name in (("intersection", "intersect"), ("labelled", "label"), ("predicted", "pred")):
        np.testing.assert_array_equal([getattr(c, key) for c in scores.classes], GOLDEN[f"img0_area_{name}"])


def test_the_label_areas_with_zero_reduced() -> None:
    reduced = id_map(FolderDescription(CLASSES, reduce_zero_label=True)).apply(GOLDEN["gts"][0], "golden")
    areas = np.bincount(reduced.ravel(), minlength=256)[:19]
    np.testing.assert_array_equal(areas, GOLDEN["img0_rzl_area_label"])


def test_predictions_outside_the_classes_count_in_the_label_area_only() -> None:
    label = np.array([[0, 0, 1, 255]])
    scores = compute_scores(confusion(np.array([[0, 7, -1, 0]]), label, 2), ("a", "b"))
    assert (scores.classes[0].iou, scores.classes[0].accuracy) == (0.5, 0.5)
    assert (scores.classes[1].iou, scores.classes[1].predicted) == (0.0, 0)
    assert scores.pixel_accuracy == pytest.approx(1 / 3)
    same = confusion(np.array([[0, 255, 200, 1]], np.uint8), label.astype(np.uint8), 2)
    np.testing.assert_array_equal(same, confusion(np.array([[0, 7, -1, 0]]), label, 2))


def test_nothing_labelled_gives_no_number_and_no_warning() -> None:
    scores = compute_scores(confusion(np.zeros((2, 2), int), np.full((2, 2), 255), 3), "abc", ("x", "x", "y"))
    assert np.isnan([scores.mean_iou, scores.mean_accuracy, scores.pixel_accuracy, scores.mean_category_iou]).all()
    assert scores.absent == ("a", "b", "c")
    assert to_plain(scores)["mean_iou"] is None


def test_ids_outside_the_classes_and_sizes_are_refused() -> None:
    with pytest.raises(DataError, match=r"a\.png.*\[3, 9\].*0 to 2"):
        confusion(np.zeros((1, 3), int), np.array([[3, 9, 0]]), 3, where="a.png")
    with pytest.raises(DataError, match=r"prediction is 2x3, the label 3x2"):
        confusion(np.zeros((3, 2), int), np.zeros((2, 3), int), 3)


def test_parts_add_up_to_the_whole() -> None:
    parts = [confusion(GOLDEN["preds"][i], GOLDEN["gts"][i], 19) for i in (2, 0, 1)]
    np.testing.assert_array_equal(sum(parts), golden_counts())
    assert golden_counts().dtype == parts[0].dtype == np.int64
    assert golden_counts().shape == (19, 20)


def synthetic_maps(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Label and prediction (64, 96) in training ids; class 16 is absent, class 3 only predicted, 17 only labelled."""
    label = np.repeat(np.repeat(rng.integers(0, 19, (8, 12)), 8, axis=0), 8, axis=1)
    label[np.isin(label, (3, 16))] = 0
    prediction = np.where(rng.random(label.shape) < 0.3, rng.integers(0, 19, label.shape), label)
    prediction[np.isin(prediction, (16, 17))] = 3
    label[rng.random(label.shape) < 0.1] = 255
    return label.astype(np.uint8), prediction.astype(np.uint8)


@pytest.mark.filterwarnings("ignore")
def test_equal_to_the_official_scripts(tmp_path: Path) -> None:
    official = importlib.import_module("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")  # warns

    rng, counts = np.random.default_rng(5), np.zeros((19, 20), np.int64)
    truths, guesses = [], []
    for index in range(3):
        label, prediction = synthetic_maps(rng)
        counts += confusion(prediction, label, 19)
        for files, name, ids in ((truths, "gt", label), (guesses, "pred", prediction)):
            path = tmp_path / f"{name}{index}.png"
            files.append(str(write_png(path, LABEL_ID_OF_TRAIN_ID[ids])))
    official.args.evalInstLevelScore, official.args.JSONOutput, official.args.quiet = False, False, True
    expected = official.evaluateImgLists(guesses, truths, official.args)
    scores = compute_scores(counts, CLASSES, CATEGORY_OF_CLASS)

    assert set(scores.absent) == {"wall", "train"}
    assert np.isnan(scores.classes[16].iou)
    assert scores.classes[3].iou == 0 < scores.classes[3].predicted
    np.testing.assert_array_equal([c.iou for c in scores.classes], [expected["classScores"][n] for n in CLASSES])
    got = {group.name: group.iou for group in scores.categories}
    assert len(got) == 7
    np.testing.assert_array_equal(list(got.values()), [expected["categoryScores"][name] for name in got])
    assert f"{scores.mean_iou:.12f}" == f"{expected['averageScoreClasses']:.12f}"
    assert f"{scores.mean_category_iou:.12f}" == f"{expected['averageScoreCategories']:.12f}"
