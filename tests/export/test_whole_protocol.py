"""Exported graphs through the published procedure at full size: the classes of whole images, beside the network's."""

from __future__ import annotations

import logging
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import dgmn2cli
from dgmn2cli import build_model
from dgmn2cli.checkpoint.weights import write_checkpoint
from dgmn2cli.data.images import read_image
from dgmn2cli.data.transforms import resize_image
from dgmn2cli.demo.streets.scene import draw_scene
from dgmn2cli.inference.graph import load_graph
from dgmn2cli.inference.load import load
from dgmn2cli.inference.plan import Settings
from dgmn2cli.inference.runtimes import open_graph
from dgmn2cli.inference.segmenter import Segmenter
from dgmn2cli.model.filled import filled_state
from dgmn2cli.resources import example_photograph
from dgmn2cli.zoo import load_zoo

LOGGER = logging.getLogger(__name__)
pytestmark = pytest.mark.slow
AGREEMENT = 0.9999  # of the pixels, at least, get the same class
MODELS = [entry.key for entry in load_zoo().segmentors]
CASES = [  # model, what, (width, height), procedure, windows of at most 769 that it cuts
    *(
        (model, *case)
        for model in MODELS
        for case in (
            ("street", (2048, 1024), Settings(), 8),
            ("street", (3072, 1194), Settings(), 8),
            ("portrait", (768, 1024), Settings(), 6),
            ("street", (400, 300), Settings(ms_flip=True, protocol="native"), 12),
        )
    ),
    ("fpn-tiny", "street", (160, 80), Settings(ms_flip=True), 124),
]


@lru_cache(maxsize=1)
def _both(model: str) -> tuple[Segmenter, Segmenter]:
    """The network with stand-in weights, and its export in ONNX Runtime."""
    with TemporaryDirectory() as folder:
        state = filled_state(build_model(model))
        checkpoint = write_checkpoint(Path(folder, "weights.pth"), state, {})
        native = load(model, checkpoint, device="cpu")
        dgmn2cli.export(native, Path(folder, "graph"))
        return native, open_graph(load_graph(Path(folder, "graph")), "onnxruntime")


@pytest.mark.parametrize(("model", "what", "size", "how", "windows"), CASES)
def test_graph_gives_the_classes_of_the_network(model, what, size, how, windows):
    if what == "portrait":
        drawn = np.rot90(read_image(example_photograph()))
    else:
        drawn = draw_scene(np.random.RandomState(4), (512, 256), ("car", "person")).image
    image = resize_image(np.ascontiguousarray(drawn), size[::-1])
    network, graph = _both(model)
    assert network.plan(image.shape[:2], how).windows == windows
    wanted, found = (
        segmenter.predict(image, ms_flip=how.ms_flip, protocol=how.protocol).ids for segmenter in (network, graph)
    )
    agreement = float((wanted == found).mean())
    LOGGER.info("%s %s: same class in %.5f %% of the pixels", model, size, 100 * agreement)  # --log-cli-level INFO
    assert agreement >= AGREEMENT
