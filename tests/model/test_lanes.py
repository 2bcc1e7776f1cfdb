"""A batch's images side by side: the numbers of one after the other, and errors end all of them."""

from __future__ import annotations

import multiprocessing
import os
import threading
import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from dgmn2cli import build_model
from dgmn2cli.model.fused import lanes as module
from dgmn2cli.model.fused.lanes import MOST, StoppedError, lanes, side_by_side, spans, stop_if_told
from dgmn2cli.model.fused.network import InferenceForm

pytestmark = pytest.mark.skipif(not module._can_share(), reason="this PyTorch's threads cannot be shared out")


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def test_a_batch_gives_the_bits_of_single_images() -> None:
    torch.manual_seed(0)
    form, images = InferenceForm(build_model("setr_pup-tiny").eval()), torch.randn(3, 3, 64, 64)
    single = torch.cat([form(image[None]) for image in images])
    assert torch.equal(form(images), single)
    with torch.inference_mode():
        assert torch.equal(form(images), single)


@pytest.mark.parametrize("name", ["setr_pup-tiny", "setr_mla-tiny", "setr_naive-tiny", "fpn-tiny"])
def test_parts_of_one_image_give_the_bits_of_one_thread(name: str) -> None:
    torch.manual_seed(0)
    form, image = InferenceForm(build_model(name).eval()), torch.randn(1, 3, 160, 128)
    shared = form(image)
    with torch.inference_mode():
        assert torch.equal(form(image), shared)
    torch.set_num_threads(1)
    assert lanes() == 1
    assert torch.equal(form(image), shared)


def test_a_lane_has_no_lanes() -> None:
    assert side_by_side(lambda part: (part, lanes()), [1, 2, 3]) == [(1, 1), (2, 1), (3, 1)]


@pytest.mark.parametrize(
    ("count", "most"), [(1, 1024), (2, 1), (3, 1), (1024, 1024), (1025, 1024), (9409, 256), (7, None)]
)
def test_spans_cover_all_once(count: int, most: int | None) -> None:
    made = spans(count, most)
    assert [place for span in made for place in range(span.start, span.stop)] == list(range(count))
    assert {span.stop - span.start for span in made[:-1]} <= {most or -(-count // MOST)}
    assert len(made) <= -(-count // (most or 1))
    assert most is not None or len(made) <= MOST


def test_each_lane_has_its_share_of_the_threads() -> None:
    assert lanes() == 2
    seen: set[tuple[str, int]] = set()
    met = threading.Barrier(2, timeout=60)

    def run(image: Tensor) -> Tensor:
        met.wait()  # both are at work at the same time
        seen.add((threading.current_thread().name, torch.get_num_threads()))
        return image + 1

    assert [float(made) for made in side_by_side(run, list(torch.arange(2.0)))] == [1, 2]
    assert len(seen) == 2
    assert {threads for _, threads in seen} == {1}
    assert torch.get_num_threads() == 2
    fresh: list[int] = []
    later = threading.Thread(target=lambda: fresh.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert fresh == [2]  # threads that come later are as before, too


def test_gradients_are_not_recorded() -> None:
    weight = torch.ones(1, requires_grad=True)
    assert not any(made.requires_grad for made in side_by_side(lambda image: image * weight, [torch.ones(1)] * 2))


def test_an_error_ends_all_lanes() -> None:
    stopped = threading.Event()
    begun = threading.Event()

    def run(image: Tensor) -> Tensor:
        if float(image) == 0:
            assert begun.wait(60)
            raise ValueError("broken")
        begun.set()
        try:
            while True:
                stop_if_told()
        except StoppedError:
            stopped.set()
            raise

    with pytest.raises(ValueError, match="broken"):
        side_by_side(run, list(torch.arange(2.0)))
    assert stopped.wait(60)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_has_lanes_of_its_own() -> None:
    def run(image: Tensor) -> Tensor:
        return image + 1

    images = list(torch.arange(2.0))
    side_by_side(run, images)
    child = multiprocessing.get_context("fork").Process(target=side_by_side, args=(run, images))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads, which is what is tried
        child.start()
    child.join(60)
    ended = child.exitcode
    child.kill()
    child.join()
    assert ended == 0
