"""The whole way of a new user: download, infer; then offline; then from a bundle on a machine without network."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import cv2
import numpy as np
import pytest
from networks import stand_ins
from pretend_hosts import Host

import dgmn2cli
from dgmn2cli.checkpoint.weights import write_checkpoint
from dgmn2cli.cli import dgmn2
from dgmn2cli.model.segmentor import Segmentor

ROOT = Path(dgmn2cli.__file__).parents[1]
PROGRAM = """
import sys
from dgmn2cli.zoo import http
from dgmn2cli.cli import main
http.DRIVE = sys.argv[1]
sys.exit(main(sys.argv[2:]))"""

# what needs a model's weights: what else it must be told, the exit code, what to do
WITHOUT_WEIGHTS = {
    "infer": (["-m", "fpn-tiny", "a.png"], 4, "dgmn2 download fpn-tiny"),
    "explain": (["-m", "fpn-tiny", "a.png", "--at", "1,1"], 4, "dgmn2 download fpn-tiny"),
    "video": (["-m", "fpn-tiny", "a.mp4", "-o", "b.mp4"], 4, "dgmn2 download fpn-tiny"),
    "serve": (["-m", "fpn-tiny"], 4, "dgmn2 download fpn-tiny"),
    "eval": (["fpn-tiny"], 4, "dgmn2 download fpn-tiny"),
    "submit": (["fpn-tiny"], 4, "dgmn2 download fpn-tiny"),
    "export": (["fpn-tiny"], 4, "dgmn2 download fpn-tiny"),
    "download": (["fpn-tiny"], 4, "dgmn2 download fpn-tiny"),
    "train": (["fpn-tiny"], 5, "dgmn2 download dgmn2_tiny"),  # which never downloads
}
AT_ONCE = """
import sys
from dgmn2cli.cli import main
code = main(sys.argv[1:])
sys.exit(100 if "torch" in sys.modules else code)"""


@pytest.mark.parametrize("command", WITHOUT_WEIGHTS)
def test_missing_weights_are_said_before_torch_is_loaded(command, tmp_path):
    words, code, advice = WITHOUT_WEIGHTS[command]
    environment = {**os.environ, "DGMN2_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    program = [sys.executable, "-c", AT_ONCE, command, *words, "--offline"]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert advice in done.stderr
    assert not [*tmp_path.iterdir()]


def test_every_command_that_takes_a_model_is_among_them():
    """Others take one as well, but no weights of it: `benchmark` measures fresh ones, `verify` those of its report."""
    context = click.Context(dgmn2)
    commands = {name: dgmn2.get_command(context, name) for name in dgmn2.list_commands(context)}
    takes = {name for name, command in commands.items() if command is not None and _takes_a_model(command)}
    assert takes - {"benchmark", "verify"} == {*WITHOUT_WEIGHTS} - {"download"}


def _takes_a_model(command: click.Command) -> bool:
    return any(parameter.name in ("model", "models") for parameter in command.params)


@pytest.mark.slow
def test_download_infer_offline_and_from_a_bundle_without_network(tmp_path):
    """`dgmn2 infer photo.jpg` with no other argument, each time in a folder of its own: the same masks every time."""
    weights = write_checkpoint(tmp_path / "model.pth", stand_ins(lambda: Segmentor("tiny", "setr_pup")), {})
    image = np.random.default_rng(1).integers(0, 256, (60, 20, 3), dtype=np.uint8)  # narrow: two windows
    host = Host(weights.read_bytes())
    address = f"{host.base}/uc?id=form&real={{id}}"

    def dgmn2(*arguments, cache="cache", before=(), where="", **variables):
        folder = tmp_path / where
        folder.mkdir(exist_ok=True)
        assert cv2.imwrite(str(folder / "photo.jpg"), image)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "DGMN2_CACHE": str(tmp_path / cache), **variables}
        command = [*before, sys.executable, "-c", PROGRAM, address, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, cwd=folder)

    def masks(where, **settings):
        done = dgmn2("infer", "photo.jpg", where=where, **settings)
        assert done.returncode == 0, done.stderr
        assert "not on disk" not in done.stderr
        folder = tmp_path / where / "dgmn2-output"
        assert sorted(path.name for path in folder.iterdir()) == ["photo_ids.png", "photo_overlay.png"]
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    try:
        done = dgmn2("download", "setr_pup-tiny")
        assert (done.returncode, done.stderr) == (0, "")
        assert Path(done.stdout.splitlines()[-1]).read_bytes() == weights.read_bytes()
        online = masks("online")
        asked = host.asked.total()
        assert masks("offline", DGMN2_OFFLINE="1") == online
        assert dgmn2("download", "setr_pup-tiny", "--offline", "--bundle", "bundle.tar").returncode == 0
        assert host.asked.total() == asked
    finally:
        host.stop()
    unshare = shutil.which("unshare")
    if not unshare or subprocess.run([unshare, "-Urn", "true"], capture_output=True, check=False).returncode:
        pytest.skip("a private network namespace is not permitted here; the rest was tested")
    alone = {"cache": "elsewhere", "before": (unshare, "-Urn")}
    refused = dgmn2("infer", "photo.jpg", "--json", where="refused", **alone)
    assert (refused.returncode, refused.stdout) == (4, "")
    assert not (tmp_path / "refused" / "dgmn2-output").exists()
    adopted = dgmn2("download", "--from", "bundle.tar", "--json", **alone)
    assert [file["key"] for file in json.loads(adopted.stdout)["files"]] == ["setr_pup-tiny"]
    assert masks("alone", **alone) == online
