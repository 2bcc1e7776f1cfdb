"""The memory meter sees what is allocated, by whomever, and nothing else; figures by hand confirm it."""

from __future__ import annotations

import os

import pytest
import torch

from dgmn2cli.bench.baseline import compiled_unfold, plain_attention
from dgmn2cli.bench.implementations import Agreement
from dgmn2cli.errors import CheckFailed, ResourceError
from dgmn2cli.ops import available_backends, deform_attention, resample_table
from dgmn2cli.runtime import PeakMeter, can_measure, in_fresh_process

CPU = torch.device("cpu")
needs_meter = pytest.mark.skipif(not can_measure(CPU), reason="this system keeps no resettable high-water mark")


def allocated(pieces: int) -> int | None:
    """The meter's figure for 100 MB in so many tensors."""
    with PeakMeter(CPU) as meter:
        tensors = [torch.ones(25_000_000 // pieces) for _ in range(pieces)]
        del tensors
    return meter.peak


@needs_meter
@pytest.mark.parametrize("pieces", [1, 20])
def test_what_is_allocated_is_seen(pieces: int) -> None:
    """In a process of its own, as where it is used: what earlier tests freed would be used again unseen."""
    peak = in_fresh_process(allocated, pieces)
    assert peak is not None
    assert 0.98 * 100e6 <= peak <= 1.05 * 100e6


@needs_meter
def test_what_was_freed_before_and_what_is_never_touched_do_not_count() -> None:
    freed = torch.ones(25_000_000)
    del freed
    with PeakMeter(CPU) as meter:
        untouched = torch.empty(25_000_000)
    assert meter.peak is not None
    assert meter.peak < 2e6
    assert untouched.numel() == 25_000_000


def test_an_unknown_device_gives_no_figure() -> None:
    with PeakMeter(torch.device("meta")) as meter:
        pass
    assert meter.peak is None


@needs_meter
@pytest.mark.skipif(not available_backends()["native"].usable, reason="the compiled kernels are not built")
def test_nine_fold_tensors_of_the_plain_design_and_none_of_ours() -> None:
    """One head of 64 on 129 x 129: an unfolded map is 38.3 MB, the result 4.3 MB."""
    side, width = 129, 64
    count = side * side
    qkv = torch.randn(1, count, 3, 1, width)
    offset, table = torch.randn(1, count, 1, 18), torch.randn(20, width)
    resampled = resample_table(table, side)
    unfolded, result = 4 * count * 9 * width, 4 * count * width
    with torch.inference_mode():
        deform_attention(qkv[:, :64], offset[:, :64], *2 * [resample_table(table, 8)], (8, 8), backend="native")
        with PeakMeter(CPU) as ours:
            deform_attention(qkv, offset, resampled, resampled, (side, side), backend="native")
        with PeakMeter(CPU) as plain:
            plain_attention(qkv, offset, table, table, (side, side), compiled_unfold)
    assert ours.peak is not None
    assert plain.peak is not None
    assert result <= ours.peak <= result + 2e6  # the result, and 9 height logits a query
    assert 2 * unfolded <= plain.peak <= 4 * unfolded


def test_a_fresh_process_returns_its_result_and_its_error() -> None:
    assert in_fresh_process(os.getpid) != os.getpid()
    apart = Agreement("model", "plain", "float32", "logits", 1.0, 2e-4, "largest absolute")
    with pytest.raises(CheckFailed, match="do not agree"):
        in_fresh_process(apart.require)


def test_a_killed_process_is_told() -> None:
    with pytest.raises(ResourceError, match="killed"):
        in_fresh_process(os._exit, 9)
