"""`dgmn2 export`: the folder, its self-check, and the runner without torch beside the command."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from streets import predict_files

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import dgmn2cli
from dgmn2cli import zoo
from dgmn2cli.checkpoint.weights import write_checkpoint
from dgmn2cli.cli import main
from dgmn2cli.config import config_to_toml
from dgmn2cli.errors import CheckFailed, ConfigError
from dgmn2cli.export import folder as exporting
from dgmn2cli.export import graph as graphs
from dgmn2cli.files import hash_file, to_plain
from dgmn2cli.inference.graph import load_graph, read_protocol
from dgmn2cli.inference.load import resolve
from dgmn2cli.inference.plan import Settings
from dgmn2cli.inference.runtimes import open_graph
from dgmn2cli.zoo import cache as caching

FILES = ["Dockerfile", "README.md", "arithmetic.py", "protocol.json", "run.py", "window.onnx"]
SMALL = ["inference.scale=[129, 65]", "inference.window=65", "inference.stride=43"]
NAMES = ["sky", "road", "car", "tree", "person"]
# runs a script as `python SCRIPT ...` does, where importing torch or this package fails
WITHOUT_TORCH = """
import os, runpy, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "dgmn2cli", "onnx"):
            raise ImportError(f"{name} is not to be imported")
sys.meta_path.insert(0, Refuse())
sys.argv = sys.argv[1:]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="session")
def checkpoint(network, tmp_path_factory) -> Path:
    """Five classes with names, as a fine-tuning leaves them."""
    meta = {"CLASSES": NAMES, "PALETTE": [[i, 2 * i, 3 * i] for i in range(5)]}
    path = tmp_path_factory.mktemp("weights") / "fpn.pth"
    return write_checkpoint(path, network("fpn-tiny", 5).state_dict(), meta)


@pytest.fixture(scope="session")
def exported(checkpoint, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("export") / "deep" / "model"
    segmenter = resolve("fpn-tiny", [*SMALL, "model.num_classes=5"])(checkpoint=checkpoint, device="cpu")
    report = dgmn2cli.export(segmenter, target)
    assert report.folder == target
    assert len(repr(replace(report, folder=Path("model")))) < 300, "an interactive session gets a line"
    return target


@pytest.fixture
def images(tmp_path) -> list[Path]:
    """A landscape, a portrait and one narrower than a window at every scale."""
    random, paths = np.random.default_rng(3), []
    for name, size in (("wide", (48, 96, 3)), ("tall", (90, 50, 3)), ("narrow", (70, 9, 3))):
        coarse = random.integers(0, 256, (size[0] // 4 + 1, size[1] // 4 + 1, 3), np.uint8)
        paths.append(tmp_path / f"{name}.png")
        Image.fromarray(coarse).resize(size[1::-1], Image.Resampling.BICUBIC).save(paths[-1])
    return paths


def stored(path: Path) -> tuple[np.ndarray, list[int] | None]:
    """The samples of an image as they are stored, and its palette."""
    with Image.open(path) as image:
        return np.asarray(image), image.getpalette()


def run_without_torch(script: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", WITHOUT_TORCH, str(script), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_folder_holds_what_is_said_of_it(exported, checkpoint):
    assert sorted(os.listdir(exported)) == FILES
    assert os.listdir(exported.parent) == ["model"]
    protocol = read_protocol(exported / "protocol.json")
    assert protocol.graph_sha256 == hash_file(exported / "window.onnx")
    assert protocol.weights_sha256 == hash_file(checkpoint)
    assert (protocol.model, protocol.classes, protocol.palette[2]) == ("fpn-tiny", tuple(NAMES), (2, 4, 6))
    assert (protocol.input.name, protocol.input.height, protocol.input.batch) == ("images", None, None)
    assert (protocol.inference.scale, protocol.inference.window, protocol.inference.stride) == ((129, 65), 65, 43)
    assert protocol.inference.align_corners
    assert (protocol.exporter["opset"], protocol.exporter["dtype"]) == (18, "float32")
    assert len((exported / "run.py").read_text().splitlines()) <= 215


def test_parity_figures_and_their_conditions_are_written(exported):
    parity = json.loads((exported / "protocol.json").read_text())["parity"]
    assert parity["runtime"] == "onnxruntime"
    assert [found["what"] for found in parity["windows"]] == ["a drawn street", "noise", "the photograph"]
    assert max(found["largest"] for found in parity["windows"]) <= parity["limits"]["largest"] == 1e-3
    assert max(found["mean"] for found in parity["windows"]) <= parity["limits"]["mean"] == 1e-5
    assert [found["agreement"] >= 0.9999 for found in parity["images"]] == [True, True]
    assert "6 scales + flip" in parity["images"][1]["procedure"]


@pytest.mark.parametrize(
    ("options", "settings"),
    [([], Settings()), (["--ms-flip", "--batch", "3"], Settings(ms_flip=True, window_batch=3))],
    ids=["single", "ms-flip"],
)
@pytest.mark.parametrize("protocol", ["paper", "native"])
def test_runner_without_torch_gives_the_commands_bytes(exported, images, tmp_path, options, settings, protocol):
    ran = run_without_torch(exported / "run.py", *images, "-o", tmp_path / "theirs", "--protocol", protocol, *options)
    assert (ran.returncode, ran.stderr) == (0, "")
    segmenter = open_graph(load_graph(exported))
    predict_files(segmenter, images, tmp_path / "ours", ["ids"], replace(settings, protocol=protocol))
    for path in images:
        ours, theirs = (stored(tmp_path / side / f"{path.stem}_ids.png") for side in ("ours", "theirs"))
        assert ours[0].shape == stored(path)[0].shape[:2]
        assert np.array_equal(ours[0], theirs[0])
        assert ours[1] == theirs[1]


def test_runner_refuses_a_changed_graph_and_names_bad_images(exported, images, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in FILES:
        (copy / name).write_bytes((exported / name).read_bytes())
    (tmp_path / "no.png").write_bytes(b"no image")
    ran = run_without_torch(copy / "run.py", tmp_path / "no.png", images[2], "-o", tmp_path / "out")
    assert (ran.returncode, "no.png" in ran.stderr) == (6, True)
    assert os.listdir(tmp_path / "out") == ["narrow_ids.png"]
    (tmp_path / "cut.png").write_bytes(images[0].read_bytes()[:300])
    ran = run_without_torch(copy / "run.py", tmp_path / "absent.png", tmp_path / "cut.png", "-o", tmp_path / "out")
    assert (ran.returncode, len(ran.stderr.splitlines())) == (6, 1)
    data = bytearray((copy / "window.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "window.onnx").write_bytes(data)
    ran = run_without_torch(copy / "run.py", images[2], "-o", tmp_path / "out2")
    assert (ran.returncode, len(ran.stderr.splitlines())) == (3, 1)
    assert not (tmp_path / "out2").exists()
    for text in ("{", "[]", '{"graph": "window.onnx"}', None):
        (copy / "protocol.json").unlink() if text is None else (copy / "protocol.json").write_text(text)
        ran = run_without_torch(copy / "run.py", images[2], "-o", tmp_path / "out2")
        assert (ran.returncode, len(ran.stderr.splitlines())) == (3, 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"input": None},
        {"input.layout": "NHWC"},
        {"input.mean": 3},
        {"output.kind": "labels"},
        {"inference.protocol": "whole"},
        {"inference.scale": None},
        {"inference.stride": 0},
        {"palette": []},
    ],
    ids=str,
)
def test_runner_refuses_a_protocol_that_it_cannot_follow(exported, images, tmp_path, changes):
    copy = shutil.copytree(exported, tmp_path / "copy")
    document = json.loads((copy / "protocol.json").read_text())
    for key, value in changes.items():
        part, _, name = key.partition(".")
        document |= {part: {**document[part], name: value} if name else value}
    kept = {key: value for key, value in document.items() if value is not None}
    (copy / "protocol.json").write_text(json.dumps(kept))
    ran = run_without_torch(copy / "run.py", images[2], "-o", tmp_path / "out")
    assert (ran.returncode, len(ran.stderr.splitlines()), ran.stdout) == (2, 1, "")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_runner_says_in_a_line_that_the_runtime_fails(exported, images, tmp_path, runtime):
    pytest.importorskip(runtime)
    copy = shutil.copytree(exported, tmp_path / "copy")
    document = json.loads((copy / "protocol.json").read_text())
    for graph, name in ((b"no graph", "images"), ((copy / "window.onnx").read_bytes(), "other")):
        (copy / "window.onnx").write_bytes(graph)
        document["graph_sha256"], document["input"]["name"] = hash_file(copy / "window.onnx"), name
        (copy / "protocol.json").write_text(json.dumps(document))
        ran = run_without_torch(copy / "run.py", images[2], "-o", tmp_path / "out", "--runtime", runtime)
        assert (ran.returncode, len(ran.stderr.splitlines()), ran.stdout) == (5, 1, "")
        assert runtime in ran.stderr


def test_runner_refuses_animations_as_the_command_does(exported, tmp_path):
    first, second = (Image.new("RGB", (9, 9), color) for color in ("red", "blue"))
    for name in ("a.gif", "b.webp", "c.png", "d.tiff"):
        first.save(tmp_path / name, save_all=True, append_images=[second])
    second.save(tmp_path / "one.gif")
    names = [tmp_path / name for name in ("a.gif", "b.webp", "c.png", "d.tiff", "one.gif")]
    ran = run_without_torch(exported / "run.py", *names, "-o", tmp_path / "out")
    assert (ran.returncode, len(ran.stderr.splitlines())) == (6, 1)
    assert [name in ran.stderr for name in ("a.gif", "b.webp", "c.png", "d.tiff")] == [True, True, True, False]
    assert sorted(os.listdir(tmp_path / "out")) == ["d_ids.png", "one_ids.png"]


def test_runner_names_the_file_that_cannot_be_written(exported, images, tmp_path):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)); "  # bytes, below any mask's
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    runner = f"{limit}{WITHOUT_TORCH}"
    command = [sys.executable, "-c", runner, exported / "run.py", images[0], "-o", tmp_path / "out"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert (ran.returncode, "wide_ids.png" in ran.stderr, len(ran.stderr.splitlines())) == (5, True, 1)
    assert os.listdir(tmp_path / "out") == []


def test_runner_ends_quietly_where_nobody_reads_on(exported, images, tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, exported / "run.py", images[2], "-o", tmp_path]
    ran = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=300)
    os.close(writing)
    assert (ran.returncode, ran.stderr) == (141, "")


def test_runner_refuses_what_it_cannot_do(exported, images, tmp_path):
    (tmp_path / "file").write_text("")
    over = tmp_path / "narrow_ids.png"
    over.write_bytes(images[0].read_bytes())
    os.mkfifo(tmp_path / "pipe.png")
    for arguments, code in (
        ([images[2], over, "-o", tmp_path], 2),
        ([tmp_path / "pipe.png", "-o", tmp_path / "out"], 6),
        ([images[2], "-o", tmp_path / "file"], 5),
        ([images[2], "-o", tmp_path / "out", "--batch", "0"], 2),
        ([images[2], "-o", tmp_path / "out", "--threads", "100000"], 2),
        ([images[2], tmp_path / "elsewhere" / images[2].name, "-o", tmp_path / "out"], 2),
    ):
        ran = run_without_torch(exported / "run.py", *arguments)
        assert (ran.returncode, "Traceback" in ran.stderr, ran.stdout) == (code, False, "")
    assert over.read_bytes() == images[0].read_bytes()


def test_a_graph_that_disagrees_leaves_nothing(checkpoint, tmp_path, monkeypatch):
    build = graphs.build_graph

    def changed(model, **options):
        model.decode_head.conv_seg.bias.data[3] += 0.002
        try:
            return build(model, **options)
        finally:
            model.decode_head.conv_seg.bias.data[3] -= 0.002

    monkeypatch.setattr(graphs, "build_graph", changed)
    segmenter = resolve("fpn-tiny", [*SMALL, "model.num_classes=5"])(
        checkpoint=checkpoint, device="cpu", exact_algebra=False
    )
    with pytest.raises(CheckFailed) as caught:
        dgmn2cli.export(segmenter, tmp_path / "model")
    assert caught.value.exit_code == 1
    assert caught.value.faults
    assert os.listdir(tmp_path) == []


def test_folders_that_hold_other_files_are_left_alone(tmp_path):
    (tmp_path / "protocol.json").write_text("{}")
    with pytest.raises(ConfigError):
        exporting.require_place(tmp_path, overwrite=False)
    exporting.require_place(tmp_path, overwrite=True)
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ConfigError) as caught:
        exporting.require_place(tmp_path, overwrite=True)
    assert "thesis.tex" in caught.value.why


@pytest.mark.parametrize("arguments", [["--window", "20"], ["--batch", "0"], ["--batch", "many"], ["--format", "jit"]])
def test_impossible_options_are_refused(arguments, tmp_path, capsys):
    assert main(["export", "fpn-tiny", "-o", str(tmp_path / "x"), *arguments]) == 2
    assert not (tmp_path / "x").exists()
    assert capsys.readouterr().err.count("\n") == 1


def test_command_writes_over_an_earlier_export(checkpoint, tmp_path, capsys):
    config = tmp_path / "mine.toml"
    config.write_text(
        '[model]\nbackbone = "tiny"\nhead = "fpn"\nnum_classes = 5\n[inference]\nwindow = 65\nstride = 43\n'
    )
    target = tmp_path / "model"
    target.mkdir()
    (target / "window.onnx").write_bytes(b"an earlier one")
    command = ["export", str(config), "--checkpoint", str(checkpoint), "-o", str(target), "--batch", "2", "--json"]
    assert main(command) == 2
    assert main([*command, "--overwrite"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert sorted(report["files"]) == sorted(os.listdir(target)) == FILES
    assert report["protocol"]["model"] == "mine"
    assert report["protocol"]["input"]["batch"] == 2


def test_the_default_folder_has_the_models_key(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("fpn-tiny-onnx").mkdir()
    Path("fpn-tiny-onnx", "somebodys").touch()
    config = zoo.find("fpn-tiny").config  # the name that a run's configuration keeps
    Path("config.toml").write_text(config_to_toml(resolve(config).config))
    assert main(["export", "config.toml", "--checkpoint", "absent.pth"]) == 2
    assert "fpn-tiny-onnx" in capsys.readouterr().err


def test_licence_is_the_zoo_entrys_wherever_the_cache_is(network, tmp_path):
    entry, state = zoo.find("fpn-tiny"), network("fpn-tiny").state_dict()
    given = write_checkpoint(tmp_path / "given.pth", state, {})
    sha256 = hash_file(given)
    cached = caching.file_path(tmp_path / "cache", sha256)
    cached.parent.mkdir(parents=True)
    cached.write_bytes(given.read_bytes())
    caching.record(entry, tmp_path / "cache", sha256=sha256, size=1, source="here")
    for checkpoint, licence in ((None, "Apache-2.0"), (given, None)):
        segmenter = dgmn2cli.load("fpn-tiny", checkpoint, device="cpu", offline=True, cache=tmp_path / "cache")
        twin = exporting.published_form(segmenter)
        assert exporting.describe(twin, "onnx", False, None, None, segmenter.info.licence).licence == licence
        assert "licence" not in to_plain(segmenter.info)


def test_describe_drafts_what_the_command_can_load(exported, tmp_path, capsys):
    graph = tmp_path / "theirs.onnx"
    graph.write_bytes((exported / "window.onnx").read_bytes())
    assert main(["export", "--describe", str(graph)]) == 0
    drafted = capsys.readouterr()
    assert drafted.out.strip() == str(tmp_path / "protocol.json")
    assert "guessed: inference.protocol" in drafted.err
    assert load_graph(graph).protocol.graph_sha256 == hash_file(graph)
    assert main(["export", "--describe", str(graph)]) == 2
    capsys.readouterr()
    assert main(["export", "--describe", str(exported / "run.py")]) == 3
    assert "Name an .onnx file." in capsys.readouterr().err
    assert main(["export", "--describe", str(graph), "--overwrite"]) == 0
    for other in (["fpn-tiny"], ["-m", "fpn-tiny"], ["--half"], ["--format", "onnx"], ["-o", str(tmp_path / "x")]):
        capsys.readouterr()
        assert main(["export", "--describe", str(graph), "--overwrite", *other]) == 2
        assert capsys.readouterr().err.count("\n") == 1
