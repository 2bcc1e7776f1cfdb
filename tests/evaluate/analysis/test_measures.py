"""Each measure against an independent one: brute force, torchmetrics, cityscapesScripts, simulations."""

from __future__ import annotations

import importlib
import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from streets import make_tree

from dgmn2cli.data.catalog import open_dataset
from dgmn2cli.data.cityscapes import LABEL_ID_OF_TRAIN_ID
from dgmn2cli.data.dataset import SegmentationSet
from dgmn2cli.data.images import write_png
from dgmn2cli.evaluate.analysis import bootstrap, boundary, calibration
from dgmn2cli.evaluate.analysis.counts import UNIT, count_ids, from_text, to_text
from dgmn2cli.evaluate.analysis.crops import worst_box
from dgmn2cli.evaluate.analysis.instances import AREAS, SUFFIX, count_instances, instance_scores, read_instances
from dgmn2cli.evaluate.analysis.summary import fine_grained
from dgmn2cli.evaluate.counting import confusion


def random_map(rng: np.random.Generator, size: tuple[int, int], classes: int, ignored: bool = True) -> np.ndarray:
    """Blocks and specks of classes, some ignored."""
    cell = int(rng.integers(1, 9))
    ids = rng.integers(0, classes, (-(-size[0] // cell), -(-size[1] // cell)))
    ids = np.kron(ids, np.ones((cell, cell), int))[: size[0], : size[1]].astype(np.uint8)
    ids[rng.random(size) < 0.02] = rng.integers(0, classes)
    if ignored:
        top, left = rng.integers(0, size[0]), rng.integers(0, size[1])
        ids[top : top + 5, left : left + 7] = 255
    return ids


# --- boundaries -------------------------------------------------------------------------------------------------------


def eroded(mask: np.ndarray, times: int) -> np.ndarray:
    """By a 3x3 box, so many times, background beyond the image; by definition."""
    for _ in range(times):
        padded = np.pad(mask, 1)
        shifts = [padded[y : y + mask.shape[0], x : x + mask.shape[1]] for y in range(3) for x in range(3)]
        mask = np.logical_and.reduce(shifts)
    return mask


def boundary_by_hand(prediction: np.ndarray, label: np.ndarray, classes: int) -> np.ndarray:
    width = max(1, round(0.02 * math.hypot(*label.shape)))
    counts = np.zeros((2, classes), np.int64)
    for c in range(classes):
        regions = [(ids == c) & ~eroded(ids == c, width) & (label != 255) for ids in (prediction, label)]
        counts[:, c] = (regions[0] & regions[1]).sum(), (regions[0] | regions[1]).sum()
    return counts


def test_boundary_iou_is_that_of_repeated_erosion_on_200_maps() -> None:
    rng, widths = np.random.default_rng(0), set()
    for _ in range(200):
        size = int(rng.integers(3, 160)), int(rng.integers(3, 160))
        classes = int(rng.integers(1, 8))
        label = random_map(rng, size, classes)
        prediction = np.where(rng.random(size) < 0.3, random_map(rng, size, classes, ignored=False), label)
        prediction = np.where(prediction == 255, 0, prediction).astype(np.uint8)
        found = boundary.boundary_counts(prediction, label, classes)
        np.testing.assert_array_equal(found, boundary_by_hand(prediction, label, classes))
        widths.add(boundary.boundary_width(*size))
    assert {1, 2, 3, 4} <= widths


def test_trimaps_are_those_of_a_search_around_each_pixel() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        size = int(rng.integers(5, 48)), int(rng.integers(5, 48))
        label, prediction = random_map(rng, size, 4), random_map(rng, size, 4, ignored=False)
        expected = np.zeros((5, 2), int)
        for y, x in np.argwhere(label != 255):
            for i, radius in enumerate(boundary.RADII):
                box = label[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1]
                if ((box != label[y, x]) & (box != 255)).any():
                    expected[i] += 1, prediction[y, x] == label[y, x]
        np.testing.assert_array_equal(boundary.trimap_counts(prediction, label), expected)
    lone = np.full((9, 9), 255, np.uint8)
    lone[3:6, 3:6] = 254
    assert not boundary.trimap_counts(lone, lone).any(), "ignored pixels are no boundary"


# --- calibration ------------------------------------------------------------------------------------------------------


def overconfident(temperature: float, pixels: int = 60_000, classes: int = 6, seed: int = 0) -> tuple[Any, Any]:
    """(C, n) probabilities and (n,) truth drawn from the softmax of logits; the probabilities are of logits / T."""
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(0, 2, (classes, pixels)))
    truth = torch.multinomial(logits.softmax(0).T, 1, generator=torch.Generator().manual_seed(seed))[:, 0]
    return (logits / temperature).softmax(0).float().numpy(), truth.numpy()


def test_ece_is_torchmetrics_and_that_of_known_miscalibration() -> None:
    torchmetrics = pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")
    for temperature in (0.5, 1.0, 2.0):
        probabilities, truth = overconfident(temperature, pixels=4000)  # it sums in single precision
        confidence, right = probabilities.max(0), probabilities.argmax(0) == truth
        counts = calibration.confidence_counts(confidence, right, np.ones_like(right))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            metric = torchmetrics.functional.calibration_error(
                torch.from_numpy(probabilities.T.copy()),
                torch.from_numpy(truth),
                "multiclass",
                n_bins=15,
                num_classes=6,
            )
        assert calibration.expected_error(counts) == pytest.approx(float(metric), abs=1e-6)


@pytest.mark.parametrize("gap", [-0.3, -0.1, 0.0, 0.15])
def test_ece_of_known_miscalibration(gap: float) -> None:
    """Confidences spread over 0.4 to 0.65, each right with that probability plus a gap."""
    rng = np.random.default_rng(3)
    confidence = rng.uniform(0.4, 0.65, 2_000_000).astype(np.float32)
    right = rng.random(confidence.size) < confidence + gap
    valid = np.ones(confidence.size, bool)
    valid[::7] = False
    right[::7] = False
    counts = calibration.confidence_counts(confidence, right, valid)
    assert counts[0].sum() == valid.sum()
    assert calibration.expected_error(counts) == pytest.approx(abs(gap), abs=0.002)


@pytest.mark.parametrize("temperature", [0.5, 0.7, 1.0, 2.0])
def test_the_temperature_is_found_again(temperature: float) -> None:
    """Logits that were divided by 1 / T are best divided by T again."""
    fitted = sum(calibration.temperature_losses(*overconfident(1 / temperature, seed=seed)) for seed in range(4))
    tested = sum(
        calibration.temperature_confidences(*overconfident(1 / temperature, seed=9 + seed)) for seed in range(2)
    )
    found = calibration.summarize(tested[24], fitted, tested)
    assert found.temperature == pytest.approx(temperature, rel=0.01)
    natural = sum(calibration.temperature_confidences(*overconfident(1, seed=9 + seed))[24] for seed in range(2))
    assert found.ece_after == pytest.approx(calibration.expected_error(natural), abs=0.002)
    assert found.ece_before == pytest.approx(found.ece, abs=1e-9)
    if temperature != 1.0:
        assert found.ece_before > 0.05


def test_no_pixels_no_calibration() -> None:
    empty = calibration.summarize(np.zeros((3, 15), int), np.zeros(50, int), np.zeros((49, 3, 15), int))
    assert math.isnan(empty.ece)
    assert math.isnan(empty.temperature)
    assert math.isnan(empty.ece_after)


# --- intervals --------------------------------------------------------------------------------------------------------


def simulated_parts(rng: np.random.Generator, images: int) -> np.ndarray:
    """(n, 3, 4): images of random difficulty; class 3 is in few of them."""
    labelled = rng.integers(200, 2000, (images, 4)) * (rng.random((images, 4)) < [1, 0.9, 0.8, 0.4])
    skill = rng.beta(8, 2, (images, 1)) * np.array([1.0, 0.95, 0.9, 0.8])
    right = rng.binomial(labelled, skill)
    wrong = labelled - right
    predicted = right + np.roll(wrong, 1, axis=1)
    return np.stack([right, labelled, predicted], 1)


def test_intervals_cover_the_truth_in_93_to_97_of_100_sets() -> None:
    truth = float(bootstrap.nan_mean(bootstrap.iou_of(simulated_parts(np.random.default_rng(99), 400_000).sum(0))))
    rng, covered, sets = np.random.default_rng(5), 0, 300
    for _ in range(sets):
        low, high = bootstrap.intervals(simulated_parts(rng, 150), ("a", "b", "c", "d")).mean_iou
        covered += low <= truth <= high
    assert 0.93 <= covered / sets <= 0.97


def test_intervals_are_the_same_again_and_hold_the_figure() -> None:
    parts = simulated_parts(np.random.default_rng(0), 50)
    found = bootstrap.intervals(parts, ("a", "b", "c", "d"))
    assert found == bootstrap.intervals(parts, ("a", "b", "c", "d"))
    low, high = found.mean_iou
    assert low < float(bootstrap.nan_mean(bootstrap.iou_of(parts.sum(0)))) < high
    assert found.classes["a"][0] < found.classes["a"][1]
    single = bootstrap.intervals(parts[:1], ("a", "b", "c", "d"))
    assert single.mean_iou[0] == single.mean_iou[1]


# --- instances --------------------------------------------------------------------------------------------------------


def add_instances(data: SegmentationSet, seed: int = 0) -> None:
    """Instance maps beside the labels: each class's pixels cut into stripes, some left without an instance."""
    rng = np.random.default_rng(seed)
    for i, pair in enumerate(data.pairs):
        ids = LABEL_ID_OF_TRAIN_ID[data.read_label(i)].astype(np.uint16)
        number = rng.integers(0, 5, (1, ids.shape[1] // 8 + 1)).repeat(8, 1)[:, : ids.shape[1]]
        is_thing = (ids >= 24) & (rng.random(ids.shape) > 0.05)
        assert pair.label is not None
        write_png(
            pair.label.with_name(pair.label.name.split("_gtFine_")[0] + SUFFIX),
            np.where(is_thing, ids * 1000 + number, ids).astype(np.uint16),
        )


def test_iiou_is_that_of_cityscapesscripts(tmp_path: Path) -> None:
    module = "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling"
    pytest.importorskip("cityscapesscripts", reason="cityscapesScripts is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tool = importlib.import_module(module)
    data = open_dataset(make_tree(tmp_path / "city", 3, size=(96, 160)), "val")
    add_instances(data)
    rng, counts, total, files = np.random.default_rng(2), [], np.zeros((19, 20), np.int64), []
    for i, pair in enumerate(data.pairs):
        label = data.read_label(i)
        guess = np.where(rng.random(label.shape) < 0.3, rng.integers(0, 19, label.shape), label)
        guess = np.where(guess == 255, 8, guess).astype(np.uint8)
        instances = read_instances(pair, label.shape)
        assert instances is not None
        counts.append(count_instances(guess, instances))
        total += confusion(guess, label, 19)
        files.append(str(write_png(tmp_path / "preds" / f"{pair.name}.png", LABEL_ID_OF_TRAIN_ID[guess])))
    tool.args.quiet, tool.args.JSONOutput, tool.args.evalInstLevelScore = True, False, True
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        patch.setattr(np, "in1d", np.isin, raising=False)  # newer NumPys have only the other name
        result = tool.evaluateImgLists(files, [str(pair.label) for pair in data.pairs], tool.args)
    found = instance_scores(counts, total)
    assert set(found.classes) == set(AREAS)
    assert len(found.categories) == 2
    for name, value in found.classes.items():
        assert value == pytest.approx(result["classInstScores"][name], abs=1e-12), name
    for name, value in found.categories.items():
        assert value == pytest.approx(result["categoryInstScores"][name], abs=1e-12), name
    assert found.mean_iiou == pytest.approx(result["averageScoreInstClasses"], abs=1e-12)
    assert found.mean_category_iiou == pytest.approx(result["averageScoreInstCategories"], abs=1e-12)


def test_a_damaged_instance_map_counts_as_none(tmp_path: Path) -> None:
    data = open_dataset(make_tree(tmp_path / "city", 1), "val")
    pair, size = data.pairs[0], data.read_label(0).shape
    assert read_instances(pair, size) is None
    add_instances(data)
    assert read_instances(pair, size) is not None
    assert read_instances(pair, (size[0], size[1] + 1)) is None
    assert pair.label is not None
    pair.label.with_name(pair.label.name.split("_gtFine_")[0] + SUFFIX).write_bytes(b"no image")
    assert read_instances(pair, size) is None


# --- fine-grained means, counts, crops --------------------------------------------------------------------------------


def test_fine_grained_means_by_hand() -> None:
    """Two classes, 20 images; class 1 is in the last ten. The definitions of arXiv 2310.19252, spelled out."""
    rng = np.random.default_rng(4)
    labelled = np.stack([rng.integers(5, 50, 20), np.where(np.arange(20) < 10, 0, rng.integers(5, 50, 20))], 1)
    right = rng.integers(0, labelled + 1)
    predicted = right + (labelled - right)[:, ::-1]
    parts = np.stack([right, labelled, predicted], 1)
    iou = [
        {c: right[i, c] / (labelled[i, c] + predicted[i, c] - right[i, c]) for c in range(2) if labelled[i, c]}
        for i in range(20)
    ]
    of_images = sorted(sum(classes.values()) / len(classes) for classes in iou)
    of_classes = [sorted(classes[c] for classes in iou if c in classes) for c in range(2)]

    def lowest(values: list[float], share: int) -> float:
        count = max(1, int(share / 100 * len(values)))
        return sum(values[:count]) / count

    def both(share: int) -> float:
        return sum(lowest(values, share) for values in of_classes) / 2

    total = [right[:, c].sum() / (labelled[:, c] + predicted[:, c] - right[:, c]).sum() for c in range(2)]
    shares = range(10, 101, 10)
    expected = {
        "mIoU-D": sum(total) / 2,
        "mIoU-I": lowest(of_images, 100),
        "mIoU-Iq": sum(lowest(of_images, share) for share in shares) / 10,
        "mIoU-I5": lowest(of_images, 5),
        "mIoU-I1": lowest(of_images, 1),
        "mIoU-C": both(100),
        "mIoU-Cq": sum(both(share) for share in shares) / 10,
        "mIoU-C5": both(5),
        "mIoU-C1": both(1),
    }
    assert fine_grained(parts) == pytest.approx(expected, abs=1e-12)
    assert len(set(expected.values())) >= 7


def test_counts_survive_as_text_and_wrong_texts_do_not() -> None:
    counts = np.array([[0, 3, 0], [1 << 40, 0, 7]])
    assert to_text(counts) == f"2x3 1:3 3:{1 << 40} 5:7"
    np.testing.assert_array_equal(from_text(to_text(counts), (2, 3)), counts)
    for wrong in ("3x2 1:3", "2x3 6:1", "2x3 -1:1", "2x3 1:x", "", "2x3 1"):
        with pytest.raises(ValueError, match=r"."):
            from_text(wrong, (2, 3))
    ids = np.random.default_rng(0).integers(0, 256, (3000, 700)).astype(np.uint8)
    where = ids % 3 > 0
    np.testing.assert_array_equal(count_ids(ids, where), np.bincount(ids[where], minlength=256))
    assert UNIT == 1 << 24
    assert json.loads(json.dumps(to_text(counts))) == to_text(counts)


def test_the_worst_box_is_where_the_errors_are() -> None:
    wrong = np.zeros((200, 300), bool)
    wrong[150:170, 260:280] = True
    box = worst_box(wrong)
    assert box.wrong == 400
    assert (box.side, 260 - box.x >= 0, box.x + box.side >= 280) == (50, True, True)
    for shape in ((1, 1), (1, 40), (3, 2), (17, 5)):
        everywhere = worst_box(np.ones(shape, bool))
        assert everywhere.wrong == everywhere.side**2
        assert everywhere.x + everywhere.side <= shape[1]
