"""Other libraries' networks, exported by PyTorch and described by a draft: `eval` counts what they count themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from streets import make_tree
from torch import nn

from dgmn2cli.cli import main
from dgmn2cli.data.catalog import open_dataset
from dgmn2cli.inference.describe_graph import describe

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # the exporters and libraries warn of their own
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

SIZE = (96, 160)
Predict = Callable[[np.ndarray], np.ndarray]  # (H, W, 3) uint8 RGB to class ids (H, W), all by the library's own means


def segformer(path: Path) -> Predict:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_sizes": [16, 32, 80, 128], "depths": [1, 1, 1, 1], "decoder_hidden_size": 64}
    network = transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(num_labels=19, **sizes)).eval()
    processor = transformers.SegformerImageProcessor(do_resize=False, do_reduce_labels=False)

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            return self.network(pixel_values=pixel_values).logits

    example = torch.zeros(1, 3, *SIZE)
    names = {"input_names": ["pixel_values"], "output_names": ["logits"]}
    torch.onnx.export(Logits().eval(), (example,), path, dynamo=True, opset_version=18, verbose=False, **names)

    def predict(image: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            outputs = network(**processor(images=image, return_tensors="pt"))
        return processor.post_process_semantic_segmentation(outputs, target_sizes=[image.shape[:2]])[0].numpy()

    return predict


def unet(path: Path) -> Predict:
    smp = pytest.importorskip("segmentation_models_pytorch")
    torch.manual_seed(0)
    network = smp.Unet("resnet18", encoder_weights=None, classes=19).eval()
    axes = {0: "batch", 2: "height", 3: "width"}
    torch.onnx.export(
        network, (torch.zeros(1, 3, *SIZE),), path, dynamo=False, opset_version=18, input_names=["image"],
        output_names=["mask"], dynamic_axes={"image": axes, "mask": axes},
    )  # fmt: skip
    normal = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "input_range": [0, 1]}

    def predict(image: np.ndarray) -> np.ndarray:
        prepared = torch.from_numpy(smp.encoders.preprocess_input(image, **normal).transpose(2, 0, 1)).float()[None]
        with torch.inference_mode():
            return network(prepared)[0].argmax(0).numpy()

    return predict


def matrix(predict: Predict, root: Path) -> np.ndarray:
    """(19, 19): rows are labels, columns predictions, in NumPy alone."""
    data, total = open_dataset(root, "val"), np.zeros((19, 19), np.int64)
    for index in range(len(data)):
        sample = data.read(index)
        ids = predict(np.ascontiguousarray(sample.image[:, :, ::-1]))
        counted = sample.label < 19
        np.add.at(total, (sample.label[counted], ids[counted]), 1)
    return total


@pytest.mark.parametrize("make", [segformer, unet])
def test_the_confusion_matrix_is_the_librarys_own(
    make: Callable[[Path], Predict], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, path = make_tree(tmp_path / "data", 3, size=SIZE), tmp_path / "graph" / "network.onnx"
    path.parent.mkdir()
    wanted = matrix(make(path), root)
    assert len(np.flatnonzero(wanted.sum(0))) > 2  # several classes are told apart
    draft = describe(path)
    draft.path.write_text(json.dumps(draft.document))
    for runtime in ("onnxruntime", "openvino"):
        capsys.readouterr()
        assert main(["eval", "--graph", str(path), "--runtime", runtime, "--data-root", str(root), "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        np.testing.assert_array_equal(np.array(report["confusion"])[:, :19], wanted)
