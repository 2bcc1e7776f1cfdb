"""`dgmn2 info` and `dgmn2 convert` as a user meets them."""

import json
import subprocess
import sys

import pytest
import torch

from dgmn2cli.checkpoint.weights import read_checkpoint, write_checkpoint
from dgmn2cli.cli import main
from dgmn2cli.model.backbone import Backbone, Classifier
from dgmn2cli.training.state import TrainState, save_state


@pytest.fixture
def call(capsys):
    def call(*arguments):
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    meta = {"iter": 300, "config": "model = dict(", "note\x1b": "\x1b[31mred\nsecond"}
    path = tmp_path_factory.mktemp("files") / "tiny.pth"
    return write_checkpoint(path, Classifier("tiny").state_dict(), meta, {"optimizer": {"state": {}}})


def test_info_says_what_it_is(call, published):
    code, out, err = call("info", published)
    assert (code, err) == (0, "")
    assert out.splitlines()[0].split() == ["model", "dgmn2_tiny"]
    assert "\x1b" not in out
    for words in ("300", "unknown: no file of the zoo", "not understood: ", "state of 0 parameters"):
        assert words in out
    document = json.loads(call("info", published, "--json")[1])
    assert (document["model"], document["exact"], document["hash_state"]) == ("dgmn2_tiny", True, "unknown")
    assert document["training_config"]["language"] == "MMSegmentation"
    assert call("info", published, "--config")[1] == "model = dict(\n"


def test_info_leaves_the_compiler_alone(published):
    """`torch._dynamo` takes a second to import; the network is built for its names and shapes only."""
    code = "import sys; from dgmn2cli.cli import main; code = main(sys.argv[1:]); print('torch._dynamo' in sys.modules)"
    command = [sys.executable, "-c", code, "info", str(published)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0].split() == ["model", "dgmn2_tiny"]
    assert done.stdout.splitlines()[-1] == "False"


def test_a_damaged_training_state_is_exit_3(call, tmp_path):
    path = save_state(tmp_path / "x.pth", TrainState(1, Backbone("tiny").state_dict(), {"state": {}}), {})
    assert "own digest" in call("info", path)[1]
    read = read_checkpoint(path)
    write_checkpoint(path, {key: value + 1 for key, value in read.state.items()}, read.meta, read.rest)
    code, out, err = call("info", path)
    assert (code, "does not hold" in out, err.count("\n")) == (3, True, 1)


def test_convert_lists_every_entry(call, published, tmp_path):
    out_file = tmp_path / "tiny.safetensors"
    code, out, err = call("convert", published, out_file)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[-1] == str(out_file)
    count = len(Classifier("tiny").state_dict())
    assert sum("kept" in line for line in lines[:-3]) == count + 3
    assert lines[-3].startswith(f"{count + 3} kept, 1 dropped; ")
    code, out, _ = call("info", out_file)
    assert (code, "safetensors, nothing but weights" in out) == (0, True)
    code, out, err = call("convert", published, out_file)
    assert (code, out) == (2, "")
    assert (
        err == f"Error: the file is not converted ({out_file}): it exists. Add --overwrite, or choose another name.\n"
    )


@pytest.mark.parametrize("command", ["info", "convert"])
def test_hostile_and_foreign_files(call, tmp_path, command):
    class Hostile:
        def __reduce__(self):
            return (__import__("os").mkdir, (str(tmp_path / "executed"),))

    torch.save({"state_dict": Hostile()}, tmp_path / "hostile.pth")
    torch.save({"a": torch.tensor(float("inf"))}, tmp_path / "inf.pth")
    (tmp_path / "page.pth").write_bytes(b"<!DOCTYPE html>")
    target = [tmp_path / "out.safetensors"] if command == "convert" else []
    for name, code, words in (
        ("hostile.pth", 3, "mkdir"), ("inf.pth", 7, "NaN or infinite"), ("page.pth", 3, "web page"),
        ("none.pth", 5, "no such file"), (".", 3, "a folder"),
    ):  # fmt: skip
        seen, out, err = call(command, tmp_path / name, *target)
        assert (seen, out, err.count("\n")) == (code, "", 1)
        assert words in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hostile.pth", "inf.pth", "page.pth"]
