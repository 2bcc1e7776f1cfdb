"""The training stream depends on its seed alone; evaluation sees each pair once on whatever number of processes."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch

import dgmn2cli
from dgmn2cli.config import AugmentConfig
from dgmn2cli.data import loaders
from dgmn2cli.data.cityscapes import open_cityscapes
from dgmn2cli.data.dataset import SegmentationSet
from dgmn2cli.data.loaders import (
    TrainBatch,
    TrainStream,
    eval_indices,
    pass_order,
    sample_draws,
    train_batches,
)
from dgmn2cli.data.transforms import Augmentation, Sample
from dgmn2cli.errors import DataError, ResourceError

AUGMENT = Augmentation(AugmentConfig(scale=(48, 30), crop=16, photometric=False))


@pytest.fixture
def data(make_cityscapes: Callable[..., Path]) -> SegmentationSet:
    return open_cityscapes(make_cityscapes(count=5), "val")


def take(batches: Iterator[TrainBatch], count: int) -> list[TrainBatch]:
    return list(itertools.islice(batches, count))


def joined(batches: list[TrainBatch]) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    names = [name for batch in batches for name in batch.names]
    return torch.cat([b.images for b in batches]), torch.cat([b.labels for b in batches]), names


def same(left: Any, right: Any) -> bool:
    return torch.equal(left[0], right[0]) and torch.equal(left[1], right[1]) and left[2] == right[2]


def test_batches_have_their_shape_and_show_each_picture_once_a_pass(data: SegmentationSet) -> None:
    batches = take(train_batches(data, AUGMENT, TrainStream(5, seed=3, batch=2)), 5)
    assert batches[0].images.shape == (2, 3, 16, 16)
    assert batches[0].images.dtype == torch.float32
    assert batches[0].labels.shape == (2, 16, 16)
    assert batches[0].labels.dtype == torch.uint8
    names = joined(batches)[2]
    everything = {pair.name for pair in data.pairs}
    assert set(names[:5]) == set(names[5:]) == everything
    assert names[:5] != names[5:]


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_interruption_and_processes_change_nothing(data: SegmentationSet, workers: int) -> None:
    def stream(**place: int) -> Iterator[TrainBatch]:
        return train_batches(data, AUGMENT, TrainStream(5, seed=3, **{"batch": 2, **place}), workers=workers)

    whole = joined(take(train_batches(data, AUGMENT, TrainStream(5, seed=3, batch=2)), 6))
    assert same(joined(take(stream(), 6)), whole)
    assert same(joined(take(stream(start_step=4), 2)), tuple(part[8:] for part in whole))
    ranks = [take(stream(batch=1, rank=rank, world=2), 6) for rank in (0, 1)]
    dealt = [batch for pair in zip(*ranks, strict=True) for batch in pair]
    assert same(joined(dealt), whole)


def test_a_small_data_set_is_decoded_once(data: SegmentationSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, "KEPT", 0)
    whole = joined(take(train_batches(data, AUGMENT, TrainStream(5, seed=3, batch=2)), 5))
    read, decoded = SegmentationSet.read, list[int]()

    def counting(data: SegmentationSet, index: int) -> Sample:
        decoded.append(index)
        return read(data, index)

    monkeypatch.setattr(SegmentationSet, "read", counting)
    sample = read(data, 0)
    for room, times in ((0, 2), (1, 1)):
        decoded.clear()
        size = sample.image.nbytes + sample.label.nbytes
        monkeypatch.setattr(loaders, "KEPT", 5 * size - 1 + room)
        assert same(joined(take(train_batches(data, AUGMENT, TrainStream(5, seed=3, batch=2)), 5)), whole)
        assert sorted(decoded) == sorted([*range(5)] * times), room


def test_seeds_differ_between_samples_passes_and_runs() -> None:
    first = {tuple(sample_draws(seed, position).randint(0, 2**31, 4)) for seed in range(3) for position in range(300)}
    assert len(first) == 900
    orders = {tuple(pass_order(50, seed, number)) for seed in range(5) for number in range(20)}
    assert len(orders) == 100
    assert sorted(pass_order(50, 1, 2)) == list(range(50))


def test_the_stream_is_fixed_for_all_time() -> None:
    places = [
        place for batch in itertools.islice(TrainStream(7, seed=12, batch=3, rank=1, world=2), 2) for place in batch
    ]
    assert [place.position for place in places] == [3, 4, 5, 9, 10, 11]
    assert [place.index for place in places] == [int(pass_order(7, 12, p // 7)[p % 7]) for p in (3, 4, 5, 9, 10, 11)]
    assert pass_order(7, 12, 0).tolist() == [3, 6, 0, 1, 5, 4, 2]
    assert sample_draws(12, 3).randint(0, 1000, 3).tolist() == [932, 847, 577]


def test_starting_a_loader_leaves_the_global_generator_alone(data: SegmentationSet) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    take(train_batches(data, AUGMENT, TrainStream(5, seed=3, batch=1), workers=1), 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_impossible_streams_are_refused() -> None:
    for wrong in ({"size": 0}, {"batch": 0}, {"rank": 2, "world": 2}, {"start_step": -1}):
        with pytest.raises(ValueError, match="no stream"):
            TrainStream(**{"size": 3, "seed": 0, "batch": 1, **wrong})


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_deleted_in_between_is_named(data: SegmentationSet, workers: int) -> None:
    batches = train_batches(data, AUGMENT, TrainStream(5, seed=3, batch=1), workers=workers)
    next(batches)
    for pair in data.pairs:
        pair.image.unlink()
    with pytest.raises(DataError, match="there is no such file") as caught:
        take(batches, 10)
    assert any(str(pair.image) == caught.value.where for pair in data.pairs)


def test_a_killed_worker_is_a_resource_error(data: SegmentationSet) -> None:
    def suicide(sample: Any, draws: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(ResourceError, match="a data worker died"):
        take(train_batches(data, suicide, TrainStream(5, seed=3, batch=1), workers=1), 1)


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, KeyError, OSError, cv2.error])
def test_what_a_worker_raises_is_one_line(data: SegmentationSet, kind: type[Exception]) -> None:
    def fail(sample: Any, draws: Any) -> Any:
        raise kind("the lens is dirty")

    with pytest.raises(ResourceError, match="a data worker") as caught:
        take(train_batches(data, fail, TrainStream(5, seed=3, batch=1), workers=1), 1)
    assert caught.value.exit_code == 5
    assert "the lens is dirty" in caught.value.why
    assert "\n" not in caught.value.why
    with pytest.raises(kind, match="the lens is dirty"):  # in the process itself it stays what it is
        take(train_batches(data, fail, TrainStream(5, seed=3, batch=1)), 1)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files of its own, whose path is too long for sockets in it."""
    folder = tmp_path / ("x" * 60)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def folders(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The temporary folders that this process makes, as it makes them."""
    made, usual = list[Path](), tempfile.mkdtemp

    def note(*arguments: Any, **named: Any) -> str:
        made.append(Path(usual(*arguments, **named)))
        return str(made[-1])

    monkeypatch.setattr(tempfile, "mkdtemp", note)
    return made


def test_nothing_is_left_of_the_workers(data: SegmentationSet, temporary: Path, folders: list[Path]) -> None:
    files = len(os.listdir("/proc/self/fd"))
    for turn in range(2):
        batches = train_batches(data, AUGMENT, TrainStream(5, seed=3, batch=1), workers=2)
        assert len(take(batches, 3)) == 3
        assert [folder.exists() for folder in folders] == [False] * turn + [True]
        assert list(folders[turn].iterdir()), "the workers' sockets"
        batches.close()
    assert not any(folder.exists() for folder in folders)
    assert not list(temporary.iterdir())
    end = time.monotonic() + 10
    while len(os.listdir("/proc/self/fd")) > files + 2 and time.monotonic() < end:  # the pool's thread closes them
        time.sleep(0.05)
    assert len(os.listdir("/proc/self/fd")) <= files + 2


def test_other_children_of_the_process_live_on(data: SegmentationSet) -> None:
    batches = train_batches(data, AUGMENT, TrainStream(5, seed=3, batch=1), workers=1)
    take(batches, 1)
    child = multiprocessing.Process(target=time.sleep, args=(60,))
    child.start()
    other = train_batches(data, AUGMENT, TrainStream(5, seed=4, batch=1), workers=1)
    take(other, 1)
    batches.close()
    try:
        child.join(0.2)
        assert child.is_alive()
        assert len(take(other, 5)) == 5
    finally:
        other.close()
        child.kill()
        child.join()


def test_a_batch_that_cannot_be_handed_over_is_a_resource_error(
    data: SegmentationSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaders, "LONGEST", 1000)  # Python's own way: a socket wherever temporary files are
    monkeypatch.setattr(tempfile, "tempdir", f"{data.root}/{'x' * 99}")
    Path(tempfile.gettempdir()).mkdir()
    with pytest.raises(ResourceError, match="cannot hand over its batch") as caught:
        take(train_batches(data, AUGMENT, TrainStream(5, seed=3, batch=1), workers=1), 1)
    assert "AF_UNIX path too long" in caught.value.why


def test_workers_that_cannot_be_started(
    data: SegmentationSet, folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_more(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    batches = train_batches(data, AUGMENT, TrainStream(5, seed=3, batch=1), workers=1)
    usual = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", no_more)
    with pytest.raises(ResourceError, match="cannot be started") as caught:
        next(batches)
    monkeypatch.setattr(threading.Thread, "start", usual)
    assert caught.value.why.startswith("can't start new thread")
    assert [folder.exists() for folder in folders] == [False]


@pytest.mark.parametrize("size", [1, 7, 16])
def test_evaluation_deals_each_pair_once(size: int) -> None:
    for world in (1, 2, 3):
        for done in ((), (0,), tuple(range(0, size, 2))):
            dealt = [i for rank in range(world) for i in eval_indices(size, rank, world, done)]
            assert sorted([*dealt, *done]) == list(range(size))


WAITING = """
import multiprocessing, sys, tempfile
import dgmn2cli
from dgmn2cli.config import AugmentConfig
from dgmn2cli.data import loaders
from dgmn2cli.data.cityscapes import open_cityscapes
from dgmn2cli.data.loaders import TrainStream, train_batches
from dgmn2cli.data.transforms import Augmentation
if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[2])
    data = open_cityscapes(sys.argv[1], "val")
    augment = Augmentation(AugmentConfig(scale=(48, 30), crop=16))
    usual, made = tempfile.mkdtemp, []
    def note(**named):
        made.append(usual(**named))
        return made[-1]
    tempfile.mkdtemp = note
    batches = train_batches(data, augment, TrainStream(len(data), seed=0, batch=1), workers=2)
    next(batches)
    print(made[0], *(child.pid for child in multiprocessing.active_children()), flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_workers_end_when_their_training_is_killed(data: SegmentationSet, tmp_path: Path, method: str) -> None:
    """A worker forked from a server has that as its parent, which does not end before the worker does."""
    script = tmp_path / "waiting.py"
    script.write_text(WAITING)
    pipe, root = subprocess.PIPE, Path(dgmn2cli.__file__).parents[1]
    with subprocess.Popen(
        [sys.executable, str(script), str(data.root), method], stdin=pipe, stdout=pipe, text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    ) as child:  # fmt: skip
        assert child.stdout is not None
        folder, *numbers = child.stdout.readline().split()
        workers = [int(number) for number in numbers]
        assert list(Path(folder).iterdir())
        child.kill()
    assert len(workers) == 2
    end, left = time.monotonic() + 10, workers
    while left and time.monotonic() < end:
        time.sleep(0.05)
        left = [worker for worker in left if Path(f"/proc/{worker}").exists()]
    for worker in left:
        os.kill(worker, signal.SIGKILL)
    assert not left, "they live on"
    assert not Path(folder).exists()
