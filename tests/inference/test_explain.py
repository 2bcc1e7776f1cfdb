"""Explanations as users get them: the nearest window, coordinates of the image, drawings, files, refusals."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from streets import segmenter as without_attention

from dgmn2cli.config import InferenceConfig
from dgmn2cli.data.images import write_png
from dgmn2cli.errors import ConfigError
from dgmn2cli.inference.explain import Explanation
from dgmn2cli.inference.explain_files import explain_image
from dgmn2cli.inference.plan import Settings
from dgmn2cli.inference.prediction import CITYSCAPES
from dgmn2cli.inference.segmenter import RunInfo, Segmenter
from dgmn2cli.model.attention import DynamicGraphAttention
from dgmn2cli.model.filled import filled_state
from dgmn2cli.model.fused.network import InferenceForm
from dgmn2cli.model.segmentor import Segmentor
from dgmn2cli.plotting import drawing

IMAGE = np.random.default_rng(3).integers(0, 256, (90, 150, 3), np.uint8)
SETTINGS = Settings(scale=(300, 180), window=96, stride=64)  # twice the image's size
DY, DX = 1.5, -2.25  # cells by which every node is moved


def segmenter(fused: bool = True, moved: bool = False) -> Segmenter:
    model = Segmentor("tiny", "setr_naive").eval()
    model.load_state_dict(filled_state(model))
    for module in model.modules():
        if moved and isinstance(module, DynamicGraphAttention):
            module.conv_offset.weight.data.zero_()
            module.conv_offset.bias.data = torch.tensor([DY, DX] * 9)
    form = "fused" if fused else "published"
    info = RunInfo("setr_naive-tiny", "f.pth", "", "cpu", "a machine", "float32", "auto", form)
    return Segmenter(InferenceForm(model) if fused else model, CITYSCAPES, info, InferenceConfig())


@pytest.fixture(scope="module")
def made() -> Explanation:
    return segmenter(moved=True).explain(IMAGE, 100, 30, SETTINGS)


def test_the_window_nearest_to_the_position_is_taken(made: Explanation) -> None:
    # windows of 96 start at 0, 64, 128, 192, 204 and 0, 64, 84 of 300 x 180; the position is 200.5, 60.5
    assert (made.window.number, made.window.count, made.window.size) == (3, 15, (96, 96))
    assert (made.window.x, made.window.y, made.window.width, made.window.height) == (64, 0, 48, 48)


def test_nodes_lie_in_the_image_where_the_offsets_point(made: Explanation) -> None:
    for block in made.blocks:
        step = block.stride / 2  # pixels of the image
        # the cell at n pixels of the window, which starts at 128: (128 + n + 0.5) / 2 - 0.5 in the image
        assert (block.x + 0.25 - 64) % step == 0
        for head in block.heads:
            for sample, (x, y, _) in enumerate(head.nodes):
                row, column = divmod(sample, 3)
                assert abs(x - (block.x + (column - 1 + DX) * step)) < 1e-3
                assert abs(y - (block.y + (row - 1 + DY) * step)) < 1e-3


def test_nodes_are_drawn_within_half_a_pixel(made: Explanation) -> None:
    """Of the last block of stage 1, a single head: the centres of its drawn discs, seen in the pixels."""
    with drawing():
        figure = made.figure()
        panel = next(axes for axes in figure.axes if len(axes.collections) == 2)  # one head: its edges, its nodes
        block = [block for block in made.blocks if block.stage == 1][-1]
        for edges in panel.collections[:1]:
            edges.set_visible(False)
        for line in panel.lines:
            line.set_visible(False)
        nodes = panel.collections[1]
        nodes.set(sizes=[60.0] * 9, facecolors="#ff00ff", edgecolors="none", alpha=1)
        x, y = np.array([node[:2] for node in block.heads[0].nodes]).T
        assert np.abs(nodes.get_offsets() - np.stack([x, y], 1)).max() < 1e-9
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        height = figure.bbox.height
        wanted = panel.transData.transform(np.stack([x, y], 1))
        scale = panel.bbox.width / abs(np.diff(panel.get_xlim())[0])  # drawn pixels of one of the image
    drawn = np.array(Image.open(buffer).convert("RGB"))
    found = np.argwhere((drawn == (255, 0, 255)).all(2))
    assert len(found) > 9 * 30
    for right, up in wanted:
        centre = np.array([height - up, right])
        own = found[np.abs(found + 0.5 - centre).max(1) < 5]
        assert np.abs(own.mean(0) + 0.5 - centre).max() < 0.5 * scale


def test_an_interactive_session_gets_a_line(made: Explanation) -> None:
    assert made.model in repr(made)
    assert len(repr(made)) < 300


def test_a_notebook_sees_the_drawing_and_names_are_escaped(made: Explanation) -> None:
    assert Image.open(io.BytesIO(made._repr_png_())).size[0] == 1600
    assert made._repr_html_().startswith("<img ")
    assert b"<svg" in made.render("svg")
    odd = Explanation("m", 1, 2, made.window, '<b>"road" & $x$', 0.5, made.blocks[:1], made.image)
    assert "<b>" not in odd._repr_html_()
    assert b"<b>" not in odd.render("svg")


def test_the_drawing_calls_a_runs_configuration_by_the_models_key(made: Explanation) -> None:
    with drawing():
        figure = replace(made, model="setr_naive_dgmn2_tiny_4x2_769x769_40k_cityscapes").figure()
    assert "what setr_naive-tiny attends to" in figure.get_suptitle()


def test_both_forms_give_one_mask_and_one_graph() -> None:
    fused, published = segmenter(), segmenter(fused=False)
    options = {"scale": (300, 180), "window": 96, "stride": 64}
    assert np.array_equal(fused.predict(IMAGE, **options).ids, published.predict(IMAGE, **options).ids)
    one, other = (made.explain(IMAGE, 100, 30, SETTINGS) for made in (fused, published))
    assert one.predicted == other.predicted
    for mine, theirs in zip(one.blocks, other.blocks, strict=True):
        for a, b in zip(mine.heads, theirs.heads, strict=True):
            assert np.abs(np.array(a.nodes) - np.array(b.nodes)).max() < 1e-3


@pytest.mark.parametrize("protocol", ["paper", "native"])
def test_windows_that_are_not_square_and_padded_ones(protocol: str) -> None:
    scale = None if protocol == "native" else (150, 90)
    settings = Settings(ms_flip=True, protocol=protocol, scale=scale, window=128, stride=96)
    found = segmenter().explain(IMAGE, 149, 89, settings)
    assert found.window.size == (128, 90)
    assert found.blocks[-1].map == ((16, 16) if protocol == "native" else (16, 12))
    assert abs(found.blocks[0].x - 149) <= 4


def test_files_and_the_report(tmp_path: Path) -> None:
    path = write_png(tmp_path / "a.png", IMAGE)
    report = explain_image(segmenter, path, [(100.5, 30), (100.5, 30)], tmp_path / "out", SETTINGS)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(
        f"a_100.5_30_graph.{kind}" for kind in ("json", "png", "svg")
    )
    document = json.loads((tmp_path / "out" / "a_100.5_30_graph.json").read_text())
    assert len(document["blocks"]) == 8
    assert len(report.blocks) == 8
    assert report.blocks[0] == {"at": [100.5, 30], **document["blocks"][0]}
    assert [len(head["nodes"]) for head in report.blocks[7]["heads"]] == [9] * 8
    with pytest.raises(ConfigError, match="exist already") as refused:
        explain_image(pytest.fail, path, [(100.5, 30)], tmp_path / "out", SETTINGS)
    assert len(refused.value.faults) == 3
    again = explain_image(segmenter, path, [(100.5, 30)], tmp_path / "out", SETTINGS, overwrite=True)
    assert [found.at for found in again.positions] == [(100.5, 30)]


def test_positions_that_differ_little_have_files_of_their_own(tmp_path: Path) -> None:
    path = write_png(tmp_path / "a.png", IMAGE)
    explain_image(segmenter, path, [(100.0001, 30), (100.0002, 30)], tmp_path / "out", SETTINGS)
    found = [json.loads(file.read_text())["x"] for file in sorted((tmp_path / "out").glob("*.json"))]
    assert found == [100.0001, 100.0002]


@pytest.mark.parametrize("at", [(150, 0), (0, 90), (-1, 0), (float("nan"), 0), (0, float("inf"))])
def test_positions_outside_the_image_are_refused(at: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="outside the image"):
        segmenter().explain(IMAGE, *at, SETTINGS)


def test_a_network_without_attention_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be explained"):
        without_attention().explain(IMAGE, 1, 1)
