"""The check names every broken pair and counts every pixel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dgmn2cli.data.check import check_dataset, class_weights, require_sound
from dgmn2cli.data.cityscapes import open_cityscapes
from dgmn2cli.data.images import write_png
from dgmn2cli.errors import DataError
from dgmn2cli.observer import Silent


class Steps(Silent):
    """Counts what was checked."""

    done = 0

    def advance(self, *arguments: object, **options: object) -> None:
        self.done += 1


@pytest.mark.parametrize("thorough", [True, False])
def test_a_sound_data_set(make_cityscapes: Callable[..., Path], thorough: bool) -> None:
    data, steps = open_cityscapes(make_cityscapes(), "val"), Steps()
    report = require_sound(check_dataset(data, thorough=thorough, observer=steps))
    assert (report.pairs, report.faults, report.notes, report.sizes) == (4, (), (), {"40x24": 4})
    assert steps.done == 4
    assert len(report.classes) == 19
    labels = np.stack([data.read_label(i) for i in range(4)])
    for number, entry in enumerate(report.classes):
        assert entry.pixels == (labels == number).sum() == 192
        assert entry.images == 4
        assert entry.share == pytest.approx(1 / 19)
        assert entry.weight == pytest.approx(1)
    assert report.ignored_share == pytest.approx(1 / 20)


@pytest.mark.parametrize("thorough", [True, False])
def test_every_broken_pair_is_named(make_cityscapes: Callable[..., Path], thorough: bool) -> None:
    root = make_cityscapes(count=7)
    data = open_cityscapes(root, "val")
    images, labels = [pair.image for pair in data.pairs], [pair.label for pair in data.pairs]
    assert all(labels)
    images[0].write_bytes(images[0].read_bytes()[:-40])
    write_png(labels[1], np.zeros((24, 41), np.uint8))
    write_png(labels[2], np.full((24, 40), 30, np.uint8))
    write_png(labels[3], np.zeros((24, 40, 3), np.uint8))
    images[5].unlink()
    images[5].mkdir()
    write_png(root / "gtFine/val/ulm/ulm_9_9_gtFine_labelTrainIds.png", np.zeros((24, 40), np.uint8))
    data = open_cityscapes(root, "val")
    report = check_dataset(data, thorough=thorough, workers=3)
    assert report.pairs == 6
    whys = ("the file is cut", "41x24", "it holds 30", "colour image")
    for fault, why, path in zip(report.faults, whys, (images[0], labels[1], labels[2], labels[3]), strict=True):
        assert why in fault
        assert str(path) in fault
    assert report.sizes == {"40x24": 2}
    assert "a folder named like a file" in report.notes[0]
    assert ["no image belongs" in note for note in report.notes[1:3]] == [True, True]
    with pytest.raises(DataError, match="4 of 6 pairs") as caught:
        require_sound(report)
    assert caught.value.faults == report.faults


def test_training_ids_named_as_label_ids_are_noticed_without_ignored_pixels(
    make_cityscapes: Callable[..., Path],
) -> None:
    data = open_cityscapes(make_cityscapes(ids=("labelIds",)), "val")
    for index, pair in enumerate(data.pairs):
        assert pair.label is not None
        write_png(pair.label, np.full((24, 40), index, np.uint8))
    assert check_dataset(data).remarks[0].startswith("classes without a pixel")
    write_png(data.pairs[0].label, np.full((24, 40), 8, np.uint8))
    assert "are they training ids" in check_dataset(data).notes[0]


def test_class_weights_rise_as_classes_get_rare_and_average_one() -> None:
    weights = class_weights(np.array([1000, 100, 10, 0]))
    assert weights[0] < weights[1] < weights[2]
    assert weights[:3].mean() == pytest.approx(1)
    assert weights[3] == 1
    assert weights[2] / weights[0] == pytest.approx(np.log(1.02 + 1000 / 1110) / np.log(1.02 + 10 / 1110))
    np.testing.assert_array_equal(class_weights(np.zeros(2, int)), [1, 1])
