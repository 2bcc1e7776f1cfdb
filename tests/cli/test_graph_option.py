"""`--graph` and `--runtime` as a user meets them: answers, reports, exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")
from graphs import colours, write_graph
from onnx import TensorProto, helper
from PIL import Image
from streets import make_tree

from dgmn2cli.cli import main
from dgmn2cli.data.images import read_label

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(tmp_path)
    make_tree(tmp_path / "data", 2)
    write_graph(tmp_path / "graph", model="colours")

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(list(arguments))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_reports_name_the_runtime_and_the_graph(run: Run, runtime: str, tmp_path: Path) -> None:
    known = json.loads((tmp_path / "graph" / "protocol.json").read_text())["graph_sha256"]
    options = ("--graph", "graph", "--runtime", runtime, "--json")
    for command in (
        ("eval", "--data-root", "data"), ("infer", "data/leftImg8bit"),
        ("submit", "--data-root", "data", "--split", "val"),
    ):  # fmt: skip
        code, out, err = run(*command, *options)
        assert (code, err) == (0, "")
        about = json.loads(out)["run"]
        facts = [about[key] for key in ("model", "runtime", "precision", "graph_sha256", "form")]
        assert facts == ["colours", runtime, "float32", known, "graph"]
    code, out, _ = run("eval", "--data-root", "data", "--graph", "graph/window.onnx", "--runtime", runtime)
    assert code == 0
    assert runtime in out
    assert known[:12] in out


def test_a_report_is_verified_with_its_graph(run: Run, tmp_path: Path) -> None:
    assert run("eval", "--data-root", "data", "--graph", "graph", "--report", "report.json")[0] == 0
    assert run("verify", "report.json")[0] == 0
    write_graph(tmp_path / "graph", colours(weight=np.ones((19, 3, 1, 1), np.float32)), model="colours")
    assert run("verify", "report.json")[0] == 1


def test_processes_share_an_evaluation(run: Run) -> None:
    matrices = [
        json.loads(run("eval", "--data-root", "data", "--graph", "graph", "--json", "--gpus", str(count))[1])
        for count in (1, 2)
    ]
    assert matrices[0]["confusion"] == matrices[1]["confusion"]
    assert [report["processes"] for report in matrices] == [1, 2]


USAGE = [
    ("--runtime", "onnxruntime"),
    ("--runtime", "torch", "--graph", "graph"),
    ("--graph", "graph", "--dtype", "float16"),
    ("--graph", "graph", "--backend", "native"),
    ("--graph", "graph", "--device", "cuda"),
    ("--graph", "graph", "--checkpoint", "x.pth"),
    ("--graph", "graph", "--ema"),
    ("--graph", "graph", "--compile"),
    ("--graph", "graph", "-m", "fpn-tiny"),
    ("--graph", "nowhere"),
    ("--graph", "data"),
]


@pytest.mark.parametrize("options", USAGE, ids=" ".join)
def test_what_does_not_go_together_is_refused(run: Run, options: tuple[str, ...]) -> None:
    code, out, err = run("eval", "--data-root", "data", *options)
    assert (code, out) == (2, "")
    assert err.startswith("Error: ")


def test_a_graph_without_protocol_is_refused_with_what_drafts_one(run: Run, tmp_path: Path) -> None:
    (tmp_path / "graph" / "protocol.json").unlink()
    code, _, err = run("infer", "data", "--graph", "graph/window.onnx")
    assert code == 2
    assert "dgmn2 export --describe graph/window.onnx" in err


def test_a_changed_graph_is_refused(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "graph" / "window.onnx"
    model = colours()
    model.graph.input[0].name = model.graph.node[0].input[0] = "pixels"
    attribute = colours()
    attribute.graph.node[0].attribute.append(helper.make_attribute("strides", [1, 1]))
    weights = colours()
    weights.graph.initializer[0].raw_data = bytes(len(weights.graph.initializer[0].raw_data))
    for changed in (model, attribute, weights):
        path.write_bytes(changed.SerializeToString())
        assert run("infer", "data/leftImg8bit", "--graph", "graph")[0] == 3
    path.write_bytes(colours().SerializeToString() + b"\x00\x00")
    assert run("eval", "--data-root", "data", "--graph", "graph")[0] == 3
    path.unlink()
    assert run("eval", "--data-root", "data", "--graph", "graph")[0] == 5


def test_a_window_that_a_fixed_graph_does_not_take_is_refused(run: Run, tmp_path: Path) -> None:
    write_graph(tmp_path / "fixed", colours(axes=("b", 3, 24, 24)), input={"height": 24, "width": 24})
    options = ("infer", "data/leftImg8bit", "--graph", "fixed", "--save", "ids")
    assert run(*options)[0] == 0
    code, _, err = run(*options, "--ms-flip", "--overwrite")
    assert code == 6
    assert "20x12" in err
    code, _, err = run("eval", "--data-root", "data", "--graph", "fixed", "--ms-flip")
    assert code == 6
    assert "leftImg8bit.png" in err
    assert run(*options, "--ms-flip", "--overwrite", "--protocol", "native")[0] == 0


def test_images_that_a_fixed_graph_does_not_take_do_not_keep_others_back(run: Run, tmp_path: Path) -> None:
    write_graph(tmp_path / "fixed", colours(axes=("b", 3, 24, 24)), input={"height": 24, "width": 24})
    Image.new("RGB", (90, 4)).save(tmp_path / "a_strip.png")
    Image.new("RGB", (90, 45)).save(tmp_path / "street.png")
    command = ("infer", "a_strip.png", "street.png", "--graph", "fixed", "--save", "ids", "-o", "out", "--json")
    code, out, err = run(*command)
    assert code == 6
    assert "a_strip.png" in err
    assert [failure["path"] for failure in json.loads(out)["failures"]] == ["a_strip.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["results.jsonl", "street_ids.png"]


def test_numbers_that_are_none_end_with_code_7(run: Run, tmp_path: Path) -> None:
    write_graph(tmp_path / "nan", colours(weight=np.full((19, 3, 1, 1), np.nan, np.float32)))
    assert run("eval", "--data-root", "data", "--graph", "nan")[0] == 7


def test_a_graph_of_labels_is_evaluated(run: Run, tmp_path: Path) -> None:
    last = helper.make_node("ArgMax", ["scores"], ["logits"], axis=1, keepdims=0)
    model = colours(then=[last], given=TensorProto.INT64, out=("b", "h", "w"))
    whole = {"protocol": "whole", "scale": None, "align_corners": False}
    write_graph(tmp_path / "labels", model, output={"kind": "labels"}, inference=whole)
    write_graph(tmp_path / "scores", inference=whole)
    image = next((tmp_path / "data").rglob("*_leftImg8bit.png"))
    for name in ("labels", "scores"):
        assert run("infer", str(image), "--graph", name, "--save", "ids", "-o", f"{name}-out")[0] == 0
    masks = [read_label(tmp_path / f"{name}-out" / f"{image.stem}_ids.png") for name in ("labels", "scores")]
    np.testing.assert_array_equal(*masks)


def test_a_graph_is_measured_alone(run: Run) -> None:
    code, out, _ = run("benchmark", "--graph", "graph", "--iters", "2", "--threads", "2", "--json")
    assert code == 0
    report = json.loads(out)
    assert [(row["implementation"], row["dtype"], row["width"], row["runs"]) for row in report["rows"]] == [
        ("onnxruntime", "float32", 24, 2),
        ("openvino", "float32", 24, 2),
    ]
    assert [found["implementation"] for found in report["agreements"]] == ["openvino"]
    code, out, _ = run("benchmark", "--graph", "graph", "--runtime", "openvino", "--window", "40", "--json")
    assert [(row["implementation"], row["height"]) for row in json.loads(out)["rows"]] == [("openvino", 40)]
    assert run("benchmark", "fpn-tiny", "--graph", "graph")[0] == 2
    assert run("benchmark", "--runtime", "openvino")[0] == 2
