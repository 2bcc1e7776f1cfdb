"""Graphs in ONNX Runtime and OpenVINO: the same masks as the network in PyTorch, other people's graphs, bad ones."""

from __future__ import annotations

import copy
import hashlib
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")
import onnx
from graphs import WEIGHT, colours, write_graph
from onnx import TensorProto, helper, numpy_helper
from streets import SMALL, make_tree, scene, segmenter

from dgmn2cli.config import InferenceConfig
from dgmn2cli.data.cityscapes import CLASSES, open_cityscapes
from dgmn2cli.data.transforms import network_input
from dgmn2cli.errors import Dgmn2Error, IntegrityError, NonFiniteError
from dgmn2cli.evaluate import evaluate
from dgmn2cli.inference.graph import load_graph
from dgmn2cli.inference.plan import Plan, Settings, resolve_settings
from dgmn2cli.inference.runtimes import open_graph
from dgmn2cli.inference.segmenter import Segmenter

RUNTIMES = ("onnxruntime", "openvino")
IMAGE = scene(5, (33, 52))[0]  # RGB as `predict` takes it
WHOLE = {"protocol": "whole", "scale": None, "align_corners": False}
OPENED = """
import sys
from pathlib import Path
from dgmn2cli.inference.arithmetic import open_runtime
run = open_runtime(sys.argv[1], Path(sys.argv[2]).read_bytes(), "images", "logits", 1)
assert "openvino_telemetry" not in sys.modules
"""  # a graph in a fresh process: reports are sent, and identifiers written, as a runtime is imported or opened
WATCHED = ("CI", "TF_BUILD", "JENKINS", "GITHUB", "TRAVIS", "CIRCLECI", "GITLAB", "ORT_")  # where runtimes keep quiet
LABELS = [helper.make_node("ArgMax", ["scores"], ["logits"], axis=1, keepdims=0)]


def opened(folder: Path, runtime: str = "onnxruntime", model: Any = None, **values: Any) -> Segmenter:
    return open_graph(load_graph(write_graph(folder, model, **values)), runtime)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_evaluation_counts_what_pytorch_counts(runtime: str, tmp_path: Path) -> None:
    data = open_cityscapes(make_tree(tmp_path / "data"), "val")
    graph = opened(tmp_path / "graph", runtime)
    for settings in (SMALL, Settings(scale=(48, 24), window=24, stride=16, ms_flip=True), Settings(protocol="native")):
        base = segmenter()
        base.inference = InferenceConfig(scale=(48, 24), window=24, stride=16, ratios=(0.5, 1.0))
        wanted, found = evaluate(base, data, settings), evaluate(graph, data, settings)
        assert found.confusion == wanted.confusion
    run = found.run
    assert (run.runtime, run.precision, run.form, run.backend) == (runtime, "float32", "graph", "")
    assert run.graph_sha256 == graph.network.graph.protocol.graph_sha256
    assert run.runtime_version == __import__(runtime).__version__.partition("-")[0]
    assert (wanted.run.runtime, wanted.run.runtime_version) == ("torch", torch.__version__)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_runtimes_tell_their_makers_nothing(runtime: str, tmp_path: Path) -> None:
    graph, home = write_graph(tmp_path / "graph") / "window.onnx", tmp_path / "home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(WATCHED)}
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    command = [sys.executable, "-c", OPENED, runtime, str(graph)]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=120)
    assert list(home.rglob("*")) == []


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_graph_can_be_copied_and_pickled(runtime: str, tmp_path: Path) -> None:
    graph = opened(tmp_path, runtime)
    wanted = graph.predict(IMAGE)
    for other in (copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
        np.testing.assert_array_equal(other.predict(IMAGE).ids, wanted.ids)
    (tmp_path / "window.onnx").write_bytes(b"another")
    with pytest.raises(IntegrityError):
        copy.deepcopy(graph)


def test_the_same_bits_with_rows_let_go_and_other_batches(tmp_path: Path) -> None:
    graph, image = opened(tmp_path), np.ascontiguousarray(IMAGE[:, :, ::-1])
    for ms_flip in (False, True):
        protocol = resolve_settings(Settings(ms_flip=ms_flip), graph.inference, "cpu")
        plan = Plan.of(protocol, image.shape[:2])
        whole = graph.scores(image, plan).probabilities()
        for keep, batch in ((False, 1), (True, 4)):
            windowing = type(plan.windowing)(plan.windowing.crop, plan.windowing.stride, batch)
            other = Plan(plan.scales, plan.flips, windowing, plan.size, keep)
            assert torch.equal(graph.scores(image, other).probabilities(), whole)


def whole_image(table: np.ndarray | None = None) -> np.ndarray:
    """Logits (19, H, W) of `IMAGE` as PyTorch computes them of the whole image."""
    planes = network_input(np.ascontiguousarray(IMAGE[:, :, ::-1])) if table is None else table
    return F.conv2d(torch.from_numpy(planes)[None], torch.from_numpy(WEIGHT))[0].numpy()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_whole_images_of_any_size(runtime: str, tmp_path: Path) -> None:
    graph = opened(tmp_path, runtime, inference=WHOLE)
    found = graph.predict(IMAGE)
    assert found.windows == 1
    np.testing.assert_array_equal(found.ids, whole_image().argmax(0))


def test_whole_images_of_one_size_are_stretched_to_it(tmp_path: Path) -> None:
    taken = {"height": 20, "width": 30}
    model = colours(axes=("batch", 3, 20, 30), out=("batch", 19, 20, 30))
    graph = opened(tmp_path, model=model, input=taken, inference=WHOLE | {"scale": [30, 20]})
    assert graph.plan((33, 52)).sizes == [(20, 30)]
    assert graph.predict(IMAGE).ids.shape == (33, 52)
    with pytest.raises(Dgmn2Error) as caught:
        graph.predict(IMAGE, protocol="native", window=24, stride=16)
    assert caught.value.exit_code == 6  # of this image: others may fit


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("align_corners", [False, True])
def test_a_quarter_of_the_size(runtime: str, align_corners: bool, tmp_path: Path) -> None:
    pool = [helper.make_node("AveragePool", ["scores"], ["logits"], kernel_shape=[4, 4], strides=[4, 4])]
    image = IMAGE[:32]
    model = colours(then=pool, out=None)
    graph = opened(tmp_path, runtime, model, inference=WHOLE, output={"align_corners": align_corners})
    small = F.avg_pool2d(torch.from_numpy(whole_image()[None, :, :32]), 4)
    wanted = F.interpolate(small, (32, 52), mode="bilinear", align_corners=align_corners)
    np.testing.assert_array_equal(graph.predict(image).ids, wanted[0].argmax(0).numpy())


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("axis", [0, 1])
def test_labels_instead_of_scores(runtime: str, axis: int, tmp_path: Path) -> None:
    node = helper.make_node("ArgMax", ["scores"], ["logits"], axis=1, keepdims=axis)
    out = ("batch", 1, "height", "width") if axis else ("batch", "height", "width")
    model = colours(then=[node], given=TensorProto.INT64, out=out)
    graph = opened(tmp_path, runtime, model, inference=WHOLE, output={"kind": "labels"})
    found = graph.predict(IMAGE)
    np.testing.assert_array_equal(found.ids, whole_image().argmax(0))
    assert found.confidence.min() > 0.999


FORMS = {
    "batch": ({"batch": 4}, colours(axes=(4, 3, "h", "w")), WEIGHT),
    "BGR": ({"channels": "BGR", "mean": [103.53, 116.28, 123.675], "std": [57.375, 57.12, 58.395]},
            colours(weight=WEIGHT[:, ::-1]), WEIGHT),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_other_forms_of_input(form: str, runtime: str, tmp_path: Path) -> None:
    taken, model, _ = FORMS[form]
    graph = opened(tmp_path, runtime, model, input=taken)
    wanted = opened(tmp_path / "plain", runtime).predict(IMAGE, ms_flip=True, window_batch=3)
    np.testing.assert_array_equal(graph.predict(IMAGE, ms_flip=True, window_batch=3).ids, wanted.ids)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_channels_last_bytes_and_half_precision(runtime: str, tmp_path: Path) -> None:
    cast = helper.make_node("Cast", ["bytes"], ["floats"], to=TensorProto.FLOAT)
    first = helper.make_node("Transpose", ["floats"], ["images"], perm=[0, 3, 1, 2])
    conv = helper.make_node("Conv", ["images", "weight"], ["scores"])
    last = helper.make_node("Transpose", ["scores"], ["logits"], perm=[0, 2, 3, 1])
    graph = helper.make_graph(
        [cast, first, conv, last],
        "bytes",
        [helper.make_tensor_value_info("bytes", TensorProto.UINT8, ("b", "h", "w", 3))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ("b", "h", "w", 19))],
        [numpy_helper.from_array(WEIGHT, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    taken = {"name": "bytes", "dtype": "uint8", "layout": "NHWC", "mean": [0, 0, 0], "std": [1, 1, 1]}
    found = opened(tmp_path / "a", runtime, model, input=taken, inference=WHOLE).predict(IMAGE)
    wanted = whole_image(IMAGE.transpose(2, 0, 1).astype(np.float32))
    np.testing.assert_array_equal(found.ids, wanted.argmax(0))

    half = colours(weight=WEIGHT.astype(np.float16), given=TensorProto.FLOAT16)
    half.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    segmented = opened(tmp_path / "b", runtime, half, input={"dtype": "float16"}, inference=WHOLE)
    assert segmented.info.precision == ("float16" if runtime == "onnxruntime" else "float32")
    agreed = segmented.predict(IMAGE).ids == whole_image().argmax(0)
    assert agreed.mean() > 0.99


def test_openvino_is_told_its_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import openvino

    made = []
    whole = openvino.Core.compile_model
    monkeypatch.setattr(openvino.Core, "compile_model", lambda *a: made.append(whole(*a)) or made[-1])
    opened(tmp_path, "openvino").predict(IMAGE)
    assert {model.get_property("INFERENCE_PRECISION_HINT").to_string() for model in made} == {"f32"}
    assert {model.get_property("INFERENCE_NUM_THREADS") for model in made} == {torch.get_num_threads()}


def outside(model: onnx.ModelProto, folder: Path, **entries: str) -> bytes:
    """`model` with its weights in `weights.bin` beside it."""
    [tensor] = model.graph.initializer
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights.bin").write_bytes(b"1234" + tensor.raw_data)
    told = {"location": "weights.bin", "offset": "4", "length": str(len(tensor.raw_data))} | entries
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in told.items():
        tensor.external_data.add(key=key, value=value)
    return model.SerializeToString()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_tensors_in_files_of_their_own_are_hashed(
    runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = outside(colours(), tmp_path)
    external = {"weights.bin": hashlib.sha256((tmp_path / "weights.bin").read_bytes()).hexdigest()}
    graph = opened(tmp_path, runtime, data, external=external, inference=WHOLE)
    np.testing.assert_array_equal(graph.predict(IMAGE).ids, whole_image().argmax(0))
    monkeypatch.chdir(tmp_path)  # where a runtime would look for them
    with pytest.raises(IntegrityError):
        opened(tmp_path, runtime, data)
    (tmp_path / "weights.bin").write_bytes(b"0" * 1000)
    with pytest.raises(IntegrityError):
        opened(tmp_path, runtime, data, external=external)


NAN = [numpy_helper.from_array(np.float32(np.nan), "nan")]
CUSTOM = helper.make_node("Magic", ["scores"], ["logits"], domain="com.example")
WRONG: dict[str, tuple[Any, dict[str, Any], int]] = {
    "not ONNX": (b"<!DOCTYPE html>" * 40, {}, 3),
    "empty": (b"", {}, 3),
    "cut": (colours().SerializeToString()[:-40], {}, 3),
    "custom operators": (colours(then=[CUSTOM]), {}, 3),
    "input's name": (colours(), {"input": {"name": "pixels"}}, 2),
    "output's name": (colours(), {"output": {"name": "scores"}}, 2),
    "fixed size": (colours(axes=(1, 3, 24, 24)), {}, 2),
    "size": (colours(axes=(1, 3, 24, 24)), {"input": {"batch": 1, "height": 48, "width": 48}}, 2),
    "dtype": (colours(), {"input": {"dtype": "float16"}}, 2),
    "layout": (colours(), {"input": {"layout": "NHWC"}}, 2),
    "kind": (colours(), {"output": {"kind": "labels"}}, 2),
    "classes": (colours(), {"classes": ["road", "rest"]}, 2),
    "axes": (colours(axes=("b", 3, "n")), {}, 2),
    "huge weights": (colours(weight=WEIGHT[:0]), {}, 3),
}


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("fault", WRONG)
def test_bad_graphs_are_refused(fault: str, runtime: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model, values, code = WRONG[fault]
    if fault == "custom operators":
        model.opset_import.append(helper.make_opsetid("com.example", 1))
    if fault == "huge weights":
        model.graph.initializer[0].dims[:] = [19, 3, 10**5, 10**5]
    with pytest.raises(Dgmn2Error) as caught:
        opened(tmp_path, runtime, model, **values).predict(IMAGE)
    assert caught.value.exit_code == code
    assert capfd.readouterr() == ("", "")


RUNNING: dict[str, tuple[onnx.ModelProto, dict[str, Any], int]] = {
    "NaN": (colours(then=[helper.make_node("Add", ["scores", "nan"], ["logits"])], tensors=NAN), {}, 7),
    "more classes than named": (
        colours(weight=np.concatenate([WEIGHT, 2 * WEIGHT]), then=LABELS, given=TensorProto.INT64, out=("b", "h", "w")),
        {"output": {"kind": "labels"}},
        3,
    ),
    "scores of other classes": (colours(weight=WEIGHT[:5], out=None), {}, 3),
    "another output size": (colours(), {"output": {"height": 24, "width": 12}}, 3),
    "too much memory": (
        colours(
            then=[
                helper.make_node("ConstantOfShape", ["sides"], ["field"]),
                helper.make_node("ReduceMax", ["field"], ["most"], keepdims=0),
                helper.make_node("Add", ["scores", "most"], ["logits"]),
            ],
            tensors=[numpy_helper.from_array(np.array([10**6, 10**6]), "sides")],
        ),
        {},
        5,
    ),
}


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("fault", RUNNING)
def test_graphs_that_misbehave_end_in_one_error(
    fault: str, runtime: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model, values, code = RUNNING[fault]
    with pytest.raises(Dgmn2Error) as caught:
        opened(tmp_path, runtime, model, **values).predict(IMAGE)
    assert caught.value.exit_code == code
    assert isinstance(caught.value, NonFiniteError) == (fault == "NaN")
    assert capfd.readouterr() == ("", "")


def test_the_class_names_are_the_protocols(tmp_path: Path) -> None:
    assert opened(tmp_path / "a").classes.cityscapes
    other = opened(tmp_path / "b", classes=[*CLASSES[:-1], "cargo bike"])
    assert (other.classes.cityscapes, other.classes.names[-1]) == (False, "cargo bike")
    assert len({tuple(colour) for colour in other.classes.palette}) == 19
