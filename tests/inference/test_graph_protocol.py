"""`protocol.json`: what it may say, every fault at once, and the graph's bytes that it stands for."""

from __future__ import annotations

import copy
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from dgmn2cli.errors import ConfigError, Dgmn2Error, IntegrityError, ResourceError
from dgmn2cli.files import to_json
from dgmn2cli.inference.graph import load_graph, protocol_schema, read_protocol

GRAPH = b"the bytes of a graph"
DOCUMENT: dict[str, Any] = {
    "format_version": 1,
    "model": "setr_pup-tiny",
    "weights_sha256": None,
    "graph": "window.onnx",
    "graph_sha256": hashlib.sha256(GRAPH).hexdigest(),
    "input": {
        "name": "images", "dtype": "float32", "layout": "NCHW", "channels": "RGB", "mean": [123.675, 116.28, 103.53],
        "std": [58.395, 57.12, 57.375], "height": 769, "width": 769, "batch": None,
    },
    "output": {"name": "logits", "kind": "logits", "height": 769, "width": 769, "align_corners": True},
    "inference": {
        "protocol": "paper", "scale": [2049, 1025], "window": 769, "stride": 513, "ratios": [0.5, 1.0], "flip": True,
        "align_corners": True,
    },
    "classes": ["road", "rest"],
    "palette": [[128, 64, 128], [0, 0, 0]],
    "exporter": {"opset": 18},
    "licence": "Apache-2.0",
    "parity": {"largest": 1e-5},
}  # fmt: skip


def folder(path: Path, document: object = DOCUMENT) -> Path:
    path.mkdir(exist_ok=True)
    (path / "protocol.json").write_text(json.dumps(document))
    (path / "window.onnx").write_bytes(GRAPH)
    return path


def changed(**values: Any) -> dict[str, Any]:
    """`DOCUMENT` with other values; `input__height` is that key of the table `input`; `...` removes one."""
    document = copy.deepcopy(DOCUMENT)
    for key, value in values.items():
        *tables, name = key.split("__")
        table = document
        for part in tables:
            table = table[part]
        table.pop(name, None) if value is ... else table.__setitem__(name, value)
    return document


def test_a_protocol_is_read_and_written_back_equal(tmp_path: Path) -> None:
    graph = load_graph(folder(tmp_path / "a"))
    assert graph.protocol.inference.scale == (2049, 1025)
    assert graph.read()[0] == GRAPH
    assert load_graph(tmp_path / "a" / "window.onnx") == graph
    jsonschema.validate(DOCUMENT, protocol_schema())
    again = json.loads(to_json(graph.protocol))
    jsonschema.validate(again, protocol_schema())
    assert load_graph(folder(tmp_path / "b", again)).protocol == graph.protocol


def test_what_has_a_default_may_be_left_out(tmp_path: Path) -> None:
    left = ("model", "weights_sha256", "input", "output", "palette", "exporter", "licence", "parity")
    found = load_graph(folder(tmp_path / "a", changed(**dict.fromkeys(left, ...)))).protocol
    assert (found.input.name, found.output.name, found.palette, found.model) == ("images", "logits", (), "graph")


WRONG = {
    "graph": changed(graph="../window.onnx"),
    "graph_sha256": changed(graph_sha256="AB" * 32),
    "format_version": changed(format_version="1"),
    "inference.align_corners": changed(inference__align_corners=...),
    "inference.stride": changed(inference__stride=770),
    "inference.window": changed(input__height=512, input__width=512),
    "inference.scale": changed(inference__scale=None),
    "input.height": changed(input__height=10**9),
    "input.std": changed(input__std=[0.0, 1.0, 1.0]),
    "input.mean and input.std": changed(input__dtype="uint8"),
    "output.kind": changed(output__kind="logit"),
    "classes": changed(classes=["road", "road"], palette=[]),
    "palette": changed(palette=[[1, 2, 3]]),
    "external": changed(external={"../weights.bin": "ab" * 32}),
    "graph and external": changed(external={"window.onnx": "ab" * 32}),
}


@pytest.mark.parametrize("key", WRONG)
def test_a_wrong_value_is_named(key: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_graph(folder(tmp_path / "a", WRONG[key]))
    assert [fault.split(":")[0] for fault in caught.value.faults] == [key]


def test_a_whole_image_of_another_size_than_the_graphs_is_refused(tmp_path: Path) -> None:
    whole = changed(input__height=512, input__width=1024, inference__protocol="whole", inference__scale=[1024, 512])
    assert load_graph(folder(tmp_path / "a", whole)).protocol.inference.protocol == "whole"
    whole["inference"]["scale"] = None
    with pytest.raises(ConfigError) as caught:
        load_graph(folder(tmp_path / "a", whole))
    assert caught.value.faults[0].startswith("inference.scale: none")


def test_all_faults_are_said_at_once(tmp_path: Path) -> None:
    document = changed(graph="..", clases=[], classes=..., input__std=[0, 0, 0], output__name="")
    with pytest.raises(ConfigError) as caught:
        load_graph(folder(tmp_path / "a", document))
    assert {fault.split(":")[0] for fault in caught.value.faults} == {
        "graph", "clases", "classes", "input.std", "output.name",
    }  # fmt: skip


def test_another_version_is_said_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="format_version is 2"):
        load_graph(folder(tmp_path / "a", {"format_version": 2, "new": 1}))


def test_repeated_keys_and_other_texts_are_refused(tmp_path: Path) -> None:
    text = json.dumps(DOCUMENT)
    for damaged in (text[:-1] + ', "graph": "window.onnx"}', text[:40], "[]", "", "\0"):
        (tmp_path / "protocol.json").write_text(damaged)
        with pytest.raises(ConfigError):
            read_protocol(tmp_path / "protocol.json")


def test_changed_bytes_are_refused(tmp_path: Path) -> None:
    graph = load_graph(folder(tmp_path / "a", changed(external={"weights.bin": hashlib.sha256(b"w").hexdigest()})))
    with pytest.raises(ResourceError):  # the file of tensors is missing
        graph.read()
    (tmp_path / "a" / "weights.bin").write_bytes(b"w")
    assert graph.read()[1] == {"weights.bin": b"w"}
    (tmp_path / "a" / "weights.bin").write_bytes(b"v")
    with pytest.raises(IntegrityError):
        graph.read()
    (tmp_path / "a" / "weights.bin").write_bytes(b"w")
    for damaged in (GRAPH + b"\0", GRAPH[:-1], b"T" + GRAPH[1:], b""):
        graph.path.write_bytes(damaged)
        with pytest.raises(IntegrityError):
            graph.read()
    graph.path.unlink()
    graph.path.mkdir()
    with pytest.raises(IntegrityError):
        graph.read()


def kind(path: Path) -> int:
    with pytest.raises(Dgmn2Error) as caught:
        load_graph(path)
    return caught.value.exit_code


def test_a_graph_without_its_protocol_is_refused(tmp_path: Path) -> None:
    made = folder(tmp_path / "a")
    (made / "other.onnx").write_bytes(GRAPH)
    assert [kind(path) for path in (made / "other.onnx", made / "protocol.json", tmp_path / "none")] == [2, 2, 2]
    (made / "protocol.json").unlink()
    with pytest.raises(ConfigError, match=r"export --describe .*window\.onnx"):
        load_graph(made / "window.onnx")
    assert kind(made) == 2


def test_a_program_of_torch_is_said_to_be_one(tmp_path: Path) -> None:
    made = folder(tmp_path, DOCUMENT | {"graph": "window.pt2"})
    with pytest.raises(ConfigError, match="--format onnx"):
        load_graph(made)


def test_reading_a_protocol_needs_no_torch(tmp_path: Path) -> None:
    folder(tmp_path / "a")
    code = f"import sys; from dgmn2cli.inference.graph import load_graph; load_graph({str(tmp_path / 'a')!r})"
    subprocess.run([sys.executable, "-c", f"{code}; sys.exit('torch' in sys.modules)"], check=True)
