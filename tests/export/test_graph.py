"""The exported graph: its operators, and its logits beside the network's at window sizes of every kind."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from dgmn2cli.model.attention import use_backend

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from dgmn2cli.export.graph import build_graph  # noqa: E402  # after the packages that it needs

HEADS = ("setr_naive", "setr_pup", "setr_mla", "fpn")
OPERATORS = {
    "Abs", "Add", "Cast", "Clip", "Concat", "Conv", "Div", "Erf", "Floor", "Gather", "Identity", "LayerNormalization",
    "MatMul", "Max", "Min", "Mul", "Pad", "Range", "ReduceSum", "Relu", "Reshape", "Resize", "Shape", "Slice",
    "Softmax", "Squeeze", "Sub", "Transpose", "Unsqueeze",
}  # fmt: skip
LARGEST, MEAN = 1e-3, 1e-5


def logits_of(model: onnx.ModelProto, images: torch.Tensor) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 2, 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"images": images.numpy()})[0]


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("head", HEADS)
def test_graph_has_standard_operators_of_opset_18_only(head, network):
    model = build_graph(network(f"{head}-tiny"))
    assert {node.op_type for node in model.graph.node} <= OPERATORS
    assert {node.domain for node in model.graph.node} == {""}
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    shapes = [
        [side.dim_param or side.dim_value for side in port.type.tensor_type.shape.dim]
        for port in (*model.graph.input, *model.graph.output)
    ]
    assert shapes == [["batch", 3, "height", "width"], ["batch", 19, "height", "width"]]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("size", [(65, 65), (41, 97), (97, 50)])
def test_logits_are_those_of_the_network(head, size, network):
    model, images = network(f"{head}-tiny"), drawn(2, 3, *size)
    with torch.inference_mode():
        wanted = model(images).numpy()
    found = logits_of(build_graph(model), images)
    assert np.abs(found - wanted).max() <= LARGEST
    assert np.abs(found - wanted).mean() <= MEAN
    assert np.array_equal(found.argmax(1), wanted.argmax(1))


@pytest.mark.parametrize("head", ["setr_naive", "fpn"])
@pytest.mark.parametrize("size", [(40, 8), (1, 70)])
def test_narrow_windows_are_as_exact_as_the_network(head, size, network):
    """There float32 rounds both by more than the limits of ordinary windows: float64 says who is nearer."""
    model, images = network(f"{head}-tiny"), drawn(1, 3, *size)
    with torch.inference_mode():
        wanted = model(images).numpy()
    found = logits_of(build_graph(model), images)
    exact = copy.deepcopy(model).double()
    use_backend(exact, "reference")
    with torch.inference_mode():
        truth = exact(images.double()).numpy()
    assert np.abs(found - wanted).max() <= LARGEST
    assert np.abs(found - truth).mean() <= max(MEAN, 2 * np.abs(wanted - truth).mean())
    assert np.array_equal(found.argmax(1), truth.argmax(1))


def test_offsets_far_outside_sample_nothing(network):
    """Samples beyond the border are zero, also where an offset is enormous."""
    model = network("setr_naive-tiny", 7)
    layer = model.backbone.get_submodule("block4.0.attn.conv_offset")
    before = layer.bias.clone()
    layer.bias.copy_(torch.linspace(-1e9, 1e9, 18))
    try:
        images = drawn(1, 3, 65, 65)
        with torch.inference_mode():
            wanted = model(images).numpy()
        found = logits_of(build_graph(model), images)
    finally:
        layer.bias.copy_(before)
    assert np.abs(found - wanted).max() <= LARGEST


def test_half_graph_takes_and_gives_float32(network):
    model, images = network("fpn-tiny"), drawn(1, 3, 65, 65)
    graph = build_graph(model, half=True)
    assert {port.type.tensor_type.elem_type for port in (*graph.graph.input, *graph.graph.output)} == {1}
    kinds = {node.op_type: node for node in graph.graph.node}
    weights = {tensor.name: tensor.data_type for tensor in graph.graph.initializer}
    assert weights[kinds["Conv"].input[1]] == onnx.TensorProto.FLOAT16
    assert weights[kinds["LayerNormalization"].input[1]] == onnx.TensorProto.FLOAT
    with torch.inference_mode():
        wanted = model(images).numpy()
    found = logits_of(graph, images)
    assert 1e-5 < np.abs(found - wanted).max() <= 0.1
    assert (found.argmax(1) == wanted.argmax(1)).mean() >= 0.98


def test_batch_can_be_fixed_and_classes_counted(network):
    graph = build_graph(network("fpn-tiny", 5), batch=2).graph
    assert [side.dim_value for side in graph.input[0].type.tensor_type.shape.dim][:2] == [2, 3]
    assert [side.dim_value for side in graph.output[0].type.tensor_type.shape.dim][:2] == [2, 5]
