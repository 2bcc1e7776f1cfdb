"""Recorded passes: when they serve, and that wrong ones never do. The recording itself needs a GPU (`gpu`)."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dgmn2cli.inference.cuda_graphs import MOST_SHAPES, RecordedNetwork, Replay, record, unrecorded
from dgmn2cli.model.filled import filled_state
from dgmn2cli.model.fused.network import InferenceForm
from dgmn2cli.model.segmentor import Segmentor
from dgmn2cli.ops import operators
from dgmn2cli.ops.operators import cached, held

SHAPE = (2, 3, 8, 6)


class Counting(nn.Module):
    """Scales images, and counts its passes."""

    def __init__(self) -> None:
        super().__init__()
        self.passes = 0

    def forward(self, images: Tensor) -> Tensor:
        self.passes += 1
        return images[:, :1] * 2 + 1


class Recorder:
    """Stands in for CUDA graphs: what it gives of a network lies in one place, overwritten by the next call."""

    def __init__(self, answer: Callable[[Tensor], Tensor]) -> None:
        self.answer, self.recorded, self.replayed = answer, list[tuple[int, ...]](), 0

    def __call__(self, network: nn.Module, images: Tensor) -> Replay:
        self.recorded.append(tuple(images.shape))
        place = torch.empty(images.shape[0], 1, *images.shape[2:])

        def replay(images: Tensor) -> Tensor:
            self.replayed += 1
            return place.copy_(self.answer(images))

        return replay


def right(images: Tensor) -> Tensor:
    return images[:, :1] * 2 + 1


def test_a_shape_that_comes_again_is_replayed_and_gives_the_same() -> None:
    network, recorder = Counting(), Recorder(right)
    recorded = RecordedNetwork(network, recorder)
    batches = [torch.randn(SHAPE) for _ in range(4)]
    answers = [recorded(images) for images in batches]  # all kept: a replay must not overwrite what it gave before
    assert all(torch.equal(answer, right(images)) for answer, images in zip(answers, batches, strict=True))
    assert recorder.recorded == [SHAPE]
    assert network.passes == 1 + 2, "once as ever, twice to compare"
    assert recorder.replayed == 2 + 3
    recorded(torch.randn(1, 3, 8, 6))
    assert recorder.recorded == [SHAPE], "another shape, for the first time"
    recorded(torch.randn(SHAPE, dtype=torch.float64))
    assert network.passes == 5, "another dtype, too"


@pytest.mark.parametrize(
    "answer",
    [
        lambda images: right(images) + 1e-6,
        lambda images: right(torch.ones_like(images)),  # what was recorded is given for any image
        lambda images: right(images.abs()),  # right for some images only
    ],
)
def test_a_recording_that_gives_other_bits_does_not_serve(
    answer: Callable[[Tensor], Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(answer)
    recorded = RecordedNetwork(Counting(), recorder)
    with caplog.at_level(logging.WARNING, "dgmn2cli"):
        for images in (torch.rand(SHAPE) for _ in range(4)):
            assert torch.equal(recorded(images), right(images))
        for images in (torch.rand(1, 3, 4, 4) for _ in range(4)):
            assert torch.equal(recorded(images), right(images))
    assert recorder.recorded == [SHAPE], "one that failed is the last that is tried"
    [line] = [entry.getMessage() for entry in caplog.records]
    assert "(2, 3, 8, 6)" in line
    assert "same bits" in line


def test_a_recording_that_cannot_be_made_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    def refusing(network: nn.Module, images: Tensor) -> Replay:
        raise RuntimeError("operation not permitted when stream is capturing\nwith more lines")

    recorded = RecordedNetwork(Counting(), refusing)
    with caplog.at_level(logging.WARNING, "dgmn2cli"):
        for images in (torch.rand(SHAPE) for _ in range(4)):
            assert torch.equal(recorded(images), right(images))
    [line] = [entry.getMessage() for entry in caplog.records]
    assert line.endswith("operation not permitted when stream is capturing")


def test_so_many_shapes_are_recorded_and_no_more() -> None:
    recorder = Recorder(right)
    recorded = RecordedNetwork(Counting(), recorder)
    for side in range(1, MOST_SHAPES + 4):
        for _ in range(3):
            images = torch.rand(1, 3, side, 5)
            assert torch.equal(recorded(images), right(images))
    assert recorder.recorded == [(1, 3, side, 5) for side in range(1, MOST_SHAPES + 1)]


def test_a_copy_has_recordings_of_its_own() -> None:
    recorded = RecordedNetwork(Counting(), Recorder(right))
    for _ in range(2):
        recorded(torch.rand(SHAPE))
    assert recorded._replays
    doubled = copy.deepcopy(recorded).double()
    assert not doubled._replays
    images = torch.rand(SHAPE, dtype=torch.float64)
    assert torch.equal(doubled(images), right(images))
    alone = RecordedNetwork(nn.Identity())
    assert isinstance(pickle.loads(pickle.dumps(alone)), RecordedNetwork)
    assert unrecorded(alone) is alone.network
    assert unrecorded(alone.network) is alone.network


def test_constants_outlive_what_keeps_them() -> None:
    made = []

    @cached
    def table(size: int) -> Tensor:
        made.append(size)
        return torch.arange(size)

    first = table(1)
    with held() as tables:
        for size in range(1, 100):  # more than are kept
            table(size)
    assert len(tables) == 99
    assert tables[0] is first
    table(1)
    assert made.count(1) == 2, "it was no longer kept"
    assert not operators._holders


@pytest.mark.gpu
@pytest.mark.parametrize("head", ["fpn", "setr_naive", "setr_pup", "setr_mla"])
def test_replayed_passes_of_the_network_on_a_gpu(head: str, caplog: pytest.LogCaptureFixture) -> None:
    model = Segmentor("tiny", head, 19)
    model.load_state_dict(filled_state(model))
    network = InferenceForm(model.cuda().eval())
    recorded = RecordedNetwork(network, record)
    shapes = [(4, 3, 257, 257), (1, 3, 129, 257)] * 4
    with torch.inference_mode(), caplog.at_level(logging.WARNING, "dgmn2cli"):
        for seed, shape in enumerate(shapes):
            images = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).cuda()
            assert torch.equal(recorded(images), network(images))
    assert len(recorded._replays) == 2
    assert not caplog.records
