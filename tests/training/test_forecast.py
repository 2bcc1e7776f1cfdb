"""The time that a training still takes: steps, and the evaluations between them."""

from __future__ import annotations

from itertools import accumulate, count
from types import SimpleNamespace

import pytest
from small_trainings import FPN, Watcher, small_request

from dgmn2cli.config import load_config
from dgmn2cli.data.catalog import open_dataset
from dgmn2cli.training import forecast
from dgmn2cli.training.forecast import FORWARD, Forecast, evaluation_in_steps, evaluations_left
from dgmn2cli.training.run import train


def config(**train: object):
    return load_config(FPN, [f"train.{key}={value}" for key, value in train.items()])


@pytest.mark.parametrize(
    ("iters", "every", "due"),
    [
        (10, 5, {0: 2, 4: 2, 5: 1, 9: 1, 10: 0}),
        (11, 5, {0: 3, 5: 2, 10: 1, 11: 0}),
        (7, 0, {0: 1, 6: 1, 7: 0}),
        (3, 9, {0: 1, 3: 0}),
    ],
)
def test_evaluations_that_are_due(iters, every, due):
    wanted = config(iters=iters, val_every=every)
    assert {done: evaluations_left(wanted, done) for done in due} == due


def test_an_evaluation_is_weighed_by_the_pixels_of_its_windows(streets):
    windows = ["inference.scale=[128, 64]", "inference.window=64", "inference.stride=32"]
    wanted = load_config(FPN, [*windows, "augment.crop=64", "train.batch_size=3"])
    data = open_dataset(streets, "val")
    assert evaluation_in_steps(wanted, data, 1) == pytest.approx(FORWARD * len(data) * 2 / 3)  # 2 windows, batches of 3
    assert evaluation_in_steps(wanted, data, 4) == pytest.approx(FORWARD * len(data) * 2 / 12)


def test_steps_and_evaluations_as_they_were_timed(monkeypatch):
    seconds = [50.0, 2.0, 2.0, 9.0, 2.0]  # the first one warms up, another was slow
    stamps = iter([0.0, *accumulate(seconds), 100.0, 130.0])
    monkeypatch.setattr(forecast, "time", SimpleNamespace(monotonic=lambda: next(stamps)))
    coming = Forecast(config(iters=10, val_every=5), 4.0)
    coming.begin()
    for _ in seconds:
        coming.step()
    assert coming.seconds_left(5, due=True) == 5 * 2.0 + 2 * (4.0 * 2.0), "an evaluation is expected to take 4 steps"
    coming.begin()
    coming.evaluated()
    assert coming.seconds_left(5, due=False) == 5 * 2.0 + 30.0, "it took 30 s"
    assert coming.seconds_left(10, due=False) == 0.0


def test_a_training_tells_how_long_it_takes(streets, tmp_path, monkeypatch):
    told, ticks = [], count()
    monkeypatch.setattr(forecast, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))

    class Clock(Watcher):
        def advance(self, parts=1, *, done=None, total=None, detail="", left=None):
            if self.task == "training":
                told.append(left)

    request = small_request(streets, tmp_path / "run", settings={"train.iters": 2, "train.val_every": 1})
    train(request, Clock())
    expected = evaluation_in_steps(request.config, open_dataset(streets, "val"), 1)
    assert told == [1 + 2 * expected, 1.0], "each step and each evaluation takes one second by this clock"
