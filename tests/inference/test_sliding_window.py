"""The published test procedure: windows, pipeline, single scale and multi-scale with flips."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import segmentor
from torch import Tensor
from torch.nn import functional as F

from dgmn2cli.data.images import read_image
from dgmn2cli.data.transforms import network_input, resize_image, scaled, target_size
from dgmn2cli.errors import ConfigError, NonFiniteError
from dgmn2cli.inference.arithmetic import window_starts
from dgmn2cli.inference.sliding_window import LogitsFunction, Scores, View, Windowing, segment, sweep
from dgmn2cli.model.fused.network import InferenceForm

SCALE = (421, 301)
RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
WINDOWING = Windowing(crop=129, stride=86)


def view_of(image: Tensor, flipped: bool = False) -> View:
    """The view of an image `(3, h, w)` float, already normalised and, where `flipped` says so, mirrored."""
    return View((image.shape[1], image.shape[2]), lambda: lambda rows, columns: image[:, rows, columns], flipped)


@pytest.fixture(scope="module")
def network() -> InferenceForm:
    return InferenceForm(segmentor("tiny", "setr_pup"))


def test_windows_of_the_published_protocol() -> None:
    sizes = [(512, 1024), (768, 1536), (1025, 2049), (1281, 2561), (1537, 3073), (1793, 3585)]
    counts = [len(Windowing().boxes(*size)) for size in sizes]
    assert counts == [2, 3, 8, 10, 18, 21]
    assert 2 * sum(counts) == 124
    rows, columns = Windowing().boxes(512, 1024)[1]
    assert (rows, columns) == (slice(0, 512), slice(255, 1024))
    assert window_starts(1025, 769, 513) == [0, 256]
    assert window_starts(100, 769, 513) == [0]
    assert window_starts(769, 769, 513) == [0]


@pytest.mark.parametrize("bad", [{"crop": 0}, {"stride": 0}, {"crop": 10, "stride": 11}, {"batch": 0}])
def test_impossible_windows_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="impossible"):
        Windowing(**bad)


def views(picture: np.ndarray, ratios: tuple[float, ...], flips: tuple[bool, ...]) -> list[View]:
    return [
        view_of(torch.from_numpy(network_input(resize_image(picture, size), flip=flip)), flip)
        for size in (target_size(*picture.shape[:2], scaled(SCALE, ratio)) for ratio in ratios)
        for flip in flips
    ]


def pixels(view: View) -> Tensor:
    return view.open()(slice(0, view.size[0]), slice(0, view.size[1]))


def slide(logits_of: LogitsFunction, image: Tensor, windowing: Windowing) -> Tensor:
    [(rows, logits)] = sweep(logits_of, view_of(image), windowing, whole=True)
    assert rows == slice(0, image.shape[1])
    return logits


def check(scores: Scores, arrays: dict[str, np.ndarray]) -> None:
    ids, confidence = scores.classes()
    probabilities = scores.probabilities()
    stride = int(arrays["prob_stride"])
    assert np.abs(probabilities[:, ::stride, ::stride].numpy() - arrays["prob"]).max() <= 2e-4
    decided = arrays["margin_u8"] > 1
    assert decided.mean() > 0.9
    assert np.array_equal(ids.numpy()[decided], arrays["label"][decided])
    assert (ids.numpy() != arrays["label"]).mean() <= 2e-4
    assert torch.equal(confidence, probabilities.amax(0))


def test_golden_single_scale(golden: Path, network: InferenceForm) -> None:
    arrays = dict(np.load(golden / "slide" / "pup_tiny_small_ss_c129.npz"))
    picture = read_image(golden / "slide" / "small_300x420.png")
    [view] = views(picture, (1.0,), (False,))
    assert np.array_equal(pixels(view)[:, ::7, ::7].numpy(), arrays["input0"])
    check(segment(network, [view], (300, 420), WINDOWING), arrays)


def test_golden_multi_scale_and_flip(golden: Path, network: InferenceForm) -> None:
    arrays = dict(np.load(golden / "slide" / "pup_tiny_small_msflip_c129.npz"))
    about = json.loads((golden / "slide" / "index.json").read_text())["pup_tiny_small_msflip_c129"]["per_inference"]
    picture = read_image(golden / "slide" / "small_300x420.png")
    twelve = views(picture, RATIOS, (False, True))
    assert len(twelve) == len(about) == 12
    for index, (view, measured) in enumerate(zip(twelve, about, strict=True)):
        stride = int(arrays[f"input{index}_stride"])
        assert np.array_equal(pixels(view)[:, ::stride, ::stride].numpy(), arrays[f"input{index}"])
        assert len(WINDOWING.boxes(*view.size)) == measured["crops"]
        assert view.flipped == measured["flip"]
    check(segment(network, twelve, (300, 420), WINDOWING), arrays)


def toy(images: Tensor) -> Tensor:
    """Logits that depend on the position in the window, so that misplaced or miscounted windows show."""
    height, width = images.shape[2:]
    ramp = torch.linspace(-1, 1, height)[:, None] + torch.linspace(-1, 1, width)
    return torch.cat([images, images[:, :2] * ramp], dim=1)


@pytest.mark.parametrize("size", [(1, 1), (33, 47), (50, 20), (64, 64), (65, 129), (1, 200)])
def test_windows_in_batches_and_one_by_one_agree(size: tuple[int, int]) -> None:
    image = torch.randn(3, *size, generator=torch.Generator().manual_seed(3))
    one = slide(toy, image, Windowing(32, 21))
    assert one.shape == (5, *size)
    assert torch.allclose(slide(toy, image, Windowing(32, 21, batch=5)), one, atol=1e-6)


def test_overlaps_are_averaged() -> None:
    image = torch.randn(3, 40, 70)
    windowing = Windowing(32, 21)
    total, count = torch.zeros(5, 40, 70), torch.zeros(40, 70)
    for rows, columns in windowing.boxes(40, 70):
        total[:, rows, columns] += toy(image[None, :, rows, columns])[0]
        count[rows, columns] += 1
    assert count.max() == 4
    assert torch.allclose(slide(toy, image, windowing), total / count, atol=1e-6)


@pytest.mark.parametrize("stride", [32, 21, 5])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (33, 47), (50, 20), (200, 33), (20, 90)])
def test_rows_that_are_let_go_are_the_rows_of_the_whole(size: tuple[int, int], batch: int, stride: int) -> None:
    """Wide, tall and tiny views, enlarged, kept and shrunk, one or several: the same bits, and few rows held."""
    generator = torch.Generator().manual_seed(3)
    scaled_sizes = [size, (max(size[0] // 2, 1), max(size[1] // 2, 1)), (size[0] * 2, size[1] * 2)]
    images = [torch.randn(3, *scaled, generator=generator) for scaled in scaled_sizes]
    windowing, final = Windowing(32, stride, batch), (size[0] + 17, size[1])
    for views in ([view_of(images[0])], [view_of(image, flip) for image in images for flip in (False, True)]):
        whole = segment(toy, views, final, windowing)
        passing = segment(toy, views, final, windowing, keep=False)
        for _ in range(2):  # asked for twice, it is computed twice
            assert torch.equal(passing.probabilities(), whole.probabilities())
        assert all(map(torch.equal, passing.classes(), whole.classes()))
    given = 0
    for rows, logits in sweep(toy, view_of(images[2]), windowing):
        assert rows.start == given
        assert logits.shape[1] == rows.stop - rows.start <= windowing.held_rows(*scaled_sizes[2])
        given = rows.stop
    assert given == scaled_sizes[2][0]


def test_held_rows_do_not_grow_with_the_picture() -> None:
    windowing = Windowing(769, 513)
    assert windowing.held_rows(4096, 8192) == windowing.held_rows(40960, 8192) == 769
    assert windowing.held_rows(300, 8192) == 300


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 64])
def test_held_rows_are_those_of_the_tallest_group(batch: int) -> None:
    for height, width in ((1, 1), (32, 90), (33, 31), (100, 75), (57, 200)):
        windowing = Windowing(32, 21, batch)
        tallest = max(group[-1][0].stop - group[0][0].start for group in windowing.groups(height, width))
        assert windowing.held_rows(height, width) == tallest


def test_padding_reaches_the_network_but_not_the_result() -> None:
    seen = []

    def network(images: Tensor) -> Tensor:
        seen.append(tuple(images.shape[2:]))
        return images

    image = torch.randn(3, 20, 50)
    padded = slide(network, image, Windowing(32, 21, pad=True))
    assert set(seen) == {(32, 32)}
    assert torch.allclose(padded, image)


def test_scores_do_not_depend_on_the_bands() -> None:
    logits = torch.randn(5, 37, 51)
    scores = Scores.of_logits(logits, (80, 64))
    whole = torch.cat([band for _, band in scores.bands(80)], dim=1)
    pieces = torch.cat([band for _, band in scores.bands(7)], dim=1)
    assert torch.equal(whole, pieces)
    direct = F.interpolate(logits[None], size=(80, 64), mode="bilinear", align_corners=True)[0].softmax(0)
    assert torch.allclose(whole, direct, atol=1e-6)


def test_non_finite_logits_never_become_a_mask() -> None:
    with pytest.raises(NonFiniteError, match="NaN"):
        slide(lambda images: images * float("nan"), torch.zeros(3, 8, 8), Windowing(8, 8))
