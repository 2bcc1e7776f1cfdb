"""Doubt: entropy, disagreement under mirroring, the order of a folder; and what results show in notebooks."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from streets import Colours, Watcher, predict_files, segmenter
from torch import Tensor, nn

from dgmn2cli.data.images import write_png
from dgmn2cli.inference.plan import Settings
from dgmn2cli.inference.sliding_window import entropy

IMAGE = np.random.default_rng(3).integers(0, 256, (40, 64, 3), np.uint8)
OPTIONS = {"scale": (80, 50), "window": 24, "stride": 16}


class Uneven(nn.Module):
    """As `Colours`, with one class favoured more and more to the right: a mirrored image gets other classes."""

    def __init__(self) -> None:
        super().__init__()
        self.colours = Colours()

    def forward(self, images: Tensor) -> Tensor:
        logits = self.colours(images)
        logits[:, 3] += 4 * torch.linspace(-1, 1, logits.shape[3])
        return logits


def test_entropy_is_0_where_certain_and_1_where_all_are_equal() -> None:
    values = torch.zeros(19, 1, 3)
    values[4, 0, 0] = 1
    values[:, 0, 1] = 1 / 19
    values[:2, 0, 2] = 0.5
    assert torch.allclose(entropy(values), torch.tensor([[0, 1, math.log(2) / math.log(19)]]))
    assert torch.equal(entropy(torch.ones(1, 2, 2)), torch.zeros(2, 2))


@pytest.mark.parametrize("ms_flip", [False, True])
def test_the_maps_are_those_of_the_probabilities(ms_flip: bool) -> None:
    made = segmenter(Uneven()).predict(IMAGE, ms_flip, **OPTIONS)
    probs = made.probs.astype(np.float64)
    wanted = -(probs * np.log(np.maximum(probs, 1e-300))).sum(0) / math.log(19)
    assert np.abs(made.entropy - wanted).max() < 1e-5
    assert abs(made.doubt - (1 - probs.max(0).mean())) < 1e-6
    seen = segmenter(Uneven()).predict(IMAGE, **OPTIONS).probs
    mirrored = segmenter(Uneven()).predict(np.ascontiguousarray(IMAGE[:, ::-1]), **OPTIONS).probs[:, :, ::-1]
    assert np.abs(made.disagreement - np.abs(seen - mirrored).sum(0) / 2).max() < 1e-5
    assert made.disagreement.max() > 0.5
    assert segmenter().predict(IMAGE, **OPTIONS).disagreement.max() < 1e-5  # colours alone do not mind the mirror


def test_the_images_with_most_doubt_come_first(tmp_path: Path) -> None:
    flat = np.full((30, 40, 3), 119, np.uint8)  # nearly the mean colour: all classes alike
    for name, image in (("sure", IMAGE[:30, :40]), ("unsure", flat), ("between", (IMAGE[:30, :40] // 2 + flat // 2))):
        write_png(tmp_path / f"{name}.png", image)
    watcher = Watcher()
    watcher.result = lambda value: None  # type: ignore[method-assign]
    kinds = ("entropy", "disagreement", "stats")
    settings = Settings(**OPTIONS)
    report = predict_files(
        segmenter(), sorted(tmp_path.glob("*.png")), tmp_path / "out", kinds, settings, observer=watcher
    )
    assert [path.stem for path in report.by_doubt] == ["unsure", "between", "sure"]
    assert watcher.parts == pytest.approx(len(report.images))  # mirrored windows are in the shares
    written = np.array(Image.open(tmp_path / "out" / "unsure_entropy.png"))
    assert written.dtype == np.uint8
    [unsure] = [done for done in report.images if done.path.stem == "unsure"]
    assert abs(written.mean() / 255 - segmenter().predict(flat, **OPTIONS).entropy.mean()) < 0.01
    assert np.array(Image.open(tmp_path / "out" / "sure_disagreement.png")).max() == 0
    assert set(unsure.outputs) == set(kinds)
    assert "unsure.png" in report._repr_html_()


def test_results_show_themselves_and_names_are_text() -> None:
    made = segmenter().predict(IMAGE, **OPTIONS)
    assert np.array_equal(np.array(Image.open(io.BytesIO(made._repr_png_())))[..., ::-1], made.overlay())
    assert made._repr_html_().startswith("<img ")
    assert json.dumps(made._repr_html_()).isascii()
