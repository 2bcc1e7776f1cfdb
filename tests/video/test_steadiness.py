"""TC and VC beside an oracle: loops over pixels, by the definitions of docs/video.md."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

pytest.importorskip("av")
from clips import NAMES, clip, label

from dgmn2cli.video.measures import Steady


def flow_of(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    gray = [cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY) for frame in (one, other)]
    return cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(*gray, None)


def tc_oracle(frames: list[np.ndarray], ids: list[np.ndarray]) -> tuple[float, float]:
    """mIoU over all pairs, and the share of pixels that count."""
    both, either = np.zeros(len(NAMES)), np.zeros(len(NAMES))
    counted = total = 0
    for now, before, seen, former in zip(frames[1:], frames, ids[1:], ids, strict=False):
        back, forth = flow_of(now, before), flow_of(before, now)
        for y in range(seen.shape[0]):
            for x in range(seen.shape[1]):
                total += 1
                u, v = back[y, x].astype(np.float64)
                row, column = int(np.rint(np.float32(y + v))), int(np.rint(np.float32(x + u)))
                if not (0 <= row < seen.shape[0] and 0 <= column < seen.shape[1]):
                    continue
                p, q = forth[row, column].astype(np.float64)
                if (u + p) ** 2 + (v + q) ** 2 > 0.01 * (u * u + v * v + p * p + q * q) + 0.5:
                    continue
                counted += 1
                one, other = seen[y, x], former[row, column]
                both[one] += one == other
                either[one] += 1
                either[other] += one != other
    return float(np.mean(both[either > 0] / either[either > 0])), counted / total


def vc_oracle(ids: list[np.ndarray], length: int) -> float:
    clips = [np.stack(ids[first : first + length]) for first in range(len(ids) - length + 1)]
    return float(np.mean([np.mean((part == part[0]).all(axis=0)) for part in clips]))


@pytest.mark.parametrize("shift", [0, 7])
def test_tc_and_vc_are_what_an_oracle_finds(shift: int) -> None:
    frames, rng = clip(20, 4), np.random.default_rng(5)
    frames = [np.roll(frame, shift * i, axis=1) for i, frame in enumerate(frames)]  # also over the edge
    ids = [np.roll(label(i), shift * i, axis=1) for i in range(20)]
    ids = [np.where(rng.random(one.shape) < 0.03, rng.integers(0, 4, one.shape), one).astype(np.uint8) for one in ids]
    steady = Steady(NAMES)
    for frame, one in zip(frames, ids, strict=True):
        steady.add(frame, one)
    found = steady.result()
    tc, seen = tc_oracle(frames, ids)
    assert found.tc == pytest.approx(tc, abs=1e-4)
    assert found.tc_seen == pytest.approx(seen, abs=1e-4)
    assert 0.1 < tc < 0.95
    assert seen < 1
    assert found.vc8 == pytest.approx(vc_oracle(ids, 8), abs=1e-12)
    assert found.vc16 == pytest.approx(vc_oracle(ids, 16), abs=1e-12)
    assert found.vc16 < found.vc8 < 1
    changing = np.mean([np.mean(one != other) for one, other in zip(ids[1:], ids, strict=False)])
    assert found.changing == pytest.approx(changing, abs=1e-12)


def test_perfect_motion_is_consistent_and_a_standing_mask_is_not() -> None:
    moving, standing = Steady(NAMES), Steady(NAMES)
    texture = np.random.default_rng(0).integers(0, 256, (80, 200, 3), np.uint8)
    texture = cv2.GaussianBlur(texture, (0, 0), 2)
    for number in range(10):
        part = np.s_[:, 3 * number : 3 * number + 100]
        mask = (np.arange(200) // 20 % 5).astype(np.uint8)[None].repeat(80, 0)
        moving.add(np.ascontiguousarray(texture[part]), mask[part])
        standing.add(np.ascontiguousarray(texture[part]), mask[:, :100])
    assert moving.result().tc > 0.98
    assert standing.result().tc < 0.8
    assert standing.result().vc8 == 1


def test_too_few_frames_leave_measures_open() -> None:
    steady = Steady(NAMES)
    assert np.isnan(steady.result().tc)
    for number, frame in enumerate(clip(8)):
        steady.add(frame, label(number))
    found = steady.result()
    assert found.vc8 < 1
    assert np.isnan(found.vc16)
