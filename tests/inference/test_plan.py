"""Memory limits: the plan that keeps within one, the peak it predicts, and what happens when memory runs out."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from streets import Colours, predict_files, segmenter
from torch import Tensor, nn

from dgmn2cli.errors import ResourceError
from dgmn2cli.inference.plan import (
    SLACK_BYTES,
    Machine,
    Plan,
    Settings,
    TooLargeError,
    fitted,
    predicted_peak,
    require_room,
)
from dgmn2cli.inference.report import MemoryUse
from dgmn2cli.inference.segmenter import Segmenter
from dgmn2cli.inference.sliding_window import Windowing
from dgmn2cli.runtime import can_measure, highest_use, in_fresh_process

MACHINE = Machine(limit=10**12, in_use=500_000_000, window=300_000_000, classes=19, discrete=False)
needs_meter = pytest.mark.skipif(not can_measure(torch.device("cpu")), reason="this system does not tell memory use")


def native(height: int, width: int, batch: int = 1) -> Plan:
    return Plan((None,), (False,), Windowing(769, 513, batch, pad=True), (height, width))


def test_without_need_nothing_changes() -> None:
    wanted = native(4096, 8192, batch=4)
    assert replace(fitted(wanted, MACHINE), peak=None) == wanted


def test_finished_rows_are_let_go_before_windows_are_taken_one_by_one() -> None:
    wanted = native(4096, 8192, batch=4)
    seen = []
    limit = predicted_peak(wanted, MACHINE)
    for _ in range(4):
        limit -= 1
        plan = fitted(wanted, replace(MACHINE, limit=limit))
        assert plan.peak is not None
        assert plan.peak <= limit
        seen.append((plan.keep, plan.windowing.batch))
        limit = plan.peak
        if seen[-1] == (False, 1):
            break
    assert seen == [(False, 4), (False, 2), (False, 1)]


def test_a_gpu_may_leave_the_sums_to_main_memory() -> None:
    wanted, machine = native(4096, 8192, batch=1), replace(MACHINE, discrete=True)
    passing = fitted(wanted, replace(machine, limit=predicted_peak(wanted, machine) - 1))
    assert (passing.keep, passing.on_host) == (False, False)
    assert passing.peak is not None
    elsewhere = fitted(wanted, replace(machine, limit=passing.peak - 1))
    assert (elsewhere.keep, elsewhere.on_host) == (False, True)


def test_rows_let_go_make_memory_grow_with_the_width() -> None:
    """Beside the picture, the class ids and the files made of them, height costs nothing."""
    small, tall, wide = (replace(native(*size), keep=False) for size in ((4096, 4096), (8192, 4096), (4096, 8192)))
    peaks = [predicted_peak(plan, replace(MACHINE, window=10**9), result_bytes=0) for plan in (small, tall, wide)]
    assert peaks[1] - peaks[0] == 5 * 4096 * 4096
    assert peaks[2] - peaks[0] > 19 * 4 * 769 * 4096
    kept = predicted_peak(native(8192, 4096), MACHINE) - predicted_peak(native(4096, 4096), MACHINE)
    assert kept > 19 * 4 * 4096 * 4096


def test_what_cannot_fit_is_refused_with_the_least_that_would() -> None:
    with pytest.raises(
        ResourceError, match=r"take at least \d\.\d\d GB, and the limit is 0\.80 GB: 0\.50 GB are in use"
    ):
        fitted(native(4096, 8192), replace(MACHINE, limit=800_000_000))


class Narrow(nn.Module):
    """`Colours` in a memory that holds `most` windows at a time."""

    def __init__(self, most: int, error: Exception) -> None:
        super().__init__()
        self.colours, self.most, self.error = Colours(), most, error
        self.batches: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.batches.append(images.shape[0])
        if images.shape[0] > self.most:
            raise self.error
        out: Tensor = self.colours(images)
        return out


ERRORS = (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory"))


@pytest.mark.parametrize("error", ERRORS)
def test_a_batch_that_does_not_fit_is_halved_with_a_note(
    error: Exception, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("dgmn2cli"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("dgmn2cli"), "handlers", [])
    caplog.set_level(logging.WARNING, "dgmn2cli")
    picture = np.random.default_rng(1).integers(0, 256, (60, 100, 3), np.uint8)
    settings = {"scale": (100, 60), "window": 20, "stride": 20}
    narrow = Narrow(2, error)
    got = segmenter(narrow).predict(picture, window_batch=8, **settings)
    assert np.array_equal(got.probs, segmenter().predict(picture, window_batch=2, **settings).probs)
    assert narrow.batches == [8, 4, 2, 2, 2, 2, 2, 2, 2, 1]
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory with 8 windows at a time: going on with 4",
        "out of memory with 4 windows at a time: going on with 2",
    ]


def test_one_window_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(ResourceError, match=r"a single window of 20x20 does not fit. Use a smaller --window"):
        segmenter(Narrow(0, ERRORS[0])).predict(np.zeros((20, 20, 3), np.uint8), scale=(20, 20), window=20)


def test_other_errors_of_the_network_are_not_taken_for_it() -> None:
    with pytest.raises(RuntimeError, match="something else"):
        segmenter(Narrow(0, RuntimeError("something else"))).predict(np.zeros((20, 20, 3), np.uint8), window=20)


def measured(path: str, out: str, settings: Settings) -> tuple[MemoryUse | None, bytes]:
    """Memory use and the mask file of a picture, segmented in a process of its own."""
    torch.set_num_threads(1)
    made: Segmenter = segmenter()
    report = predict_files(made, Path(path), Path(out), ["ids", "overlay"], settings)
    [result] = report.images
    return result.memory, result.outputs["ids"].read_bytes()


@needs_meter
def test_the_predicted_peak_is_kept_and_the_mask_is_the_same(tmp_path: Path) -> None:
    coarse = np.random.default_rng(2).integers(0, 256, (100, 150, 3), np.uint8)
    assert cv2.imwrite(str(tmp_path / "street.png"), cv2.resize(coarse, (2700, 1800)))
    settings = Settings(protocol="native", window=257, stride=171)
    free, mask = in_fresh_process(measured, str(tmp_path / "street.png"), str(tmp_path / "free"), settings)
    assert free is None
    ample = replace(settings, max_memory=64 * 10**9)
    held, held_mask = in_fresh_process(measured, str(tmp_path / "street.png"), str(tmp_path / "held"), ample)
    assert held is not None
    tight = replace(settings, max_memory=held.predicted - 120_000_000)
    passed, passed_mask = in_fresh_process(measured, str(tmp_path / "street.png"), str(tmp_path / "passed"), tight)
    assert passed is not None
    assert mask == held_mask == passed_mask
    assert 0 < held.highest <= held.predicted
    assert 0 < passed.highest <= passed.predicted <= tight.max_memory  # type: ignore[operator]
    assert passed.highest < held.highest - 120_000_000


def test_a_limit_is_too_small_for_one_image_or_for_all() -> None:
    least, read = 10**9, 3 * 900 * 900
    window = least - SLACK_BYTES - MACHINE.in_use
    plan, machine = native(900, 900), replace(MACHINE, limit=least, in_use=MACHINE.in_use + read, window=window)
    with pytest.raises(TooLargeError, match="900x900"):
        fitted(plan, machine)
    with pytest.raises(ResourceError) as caught:
        fitted(plan, replace(machine, limit=least - 1))
    assert type(caught.value) is ResourceError


@needs_meter
def test_what_is_asked_for_beyond_a_limit_is_told_from_a_limit_that_was_passed() -> None:
    device = torch.device("cpu")
    highest = highest_use(device)
    with pytest.raises(TooLargeError):
        require_room(highest + 10**8, device, 10**10, "decoding")
    with pytest.raises(ResourceError) as caught:
        require_room(highest // 2, device, 10**10, "decoding")
    assert type(caught.value) is ResourceError
