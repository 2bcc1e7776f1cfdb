"""The whole way of a new user: download, infer; then offline; then from a bundle on a machine without network."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pretend_hosts import Host

import dgmn2cli
from dgmn2cli.data.images import write_png
from dgmn2cli.model.filled import filled_state
from dgmn2cli.model.segmentor import Segmentor
from dgmn2cli.model.weights import write_checkpoint

ROOT = Path(dgmn2cli.__file__).parents[1]
PROGRAM = """
import sys
from dgmn2cli.zoo import drive
from dgmn2cli.cli import main
drive.FILE_ADDRESS = sys.argv[1]
sys.exit(main(sys.argv[2:]))"""


@pytest.mark.slow
def test_download_infer_offline_and_from_a_bundle_without_network(tmp_path):
    import numpy as np

    picture = np.random.default_rng(1).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    write_png(tmp_path / "photo.png", picture)
    weights = write_checkpoint(tmp_path / "model.pth", filled_state(Segmentor("tiny", "setr_pup")), {})
    host = Host(weights.read_bytes())
    address = f"{host.base}/uc?id=form&real={{id}}"

    def dgmn2(*arguments, cache="cache", before=()):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "DGMN2_CACHE": str(tmp_path / cache)}
        command = [*before, sys.executable, "-c", PROGRAM, address, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, cwd=tmp_path)

    def mask(done, out):
        assert done.returncode == 0, done.stderr
        (path,) = (tmp_path / out).glob("*ids*")
        return path.read_bytes()

    infer = ("infer", "photo.png", "--protocol", "native", "--save", "ids", "-o")
    try:
        done = dgmn2("download", "setr_pup-tiny")
        assert (done.returncode, done.stderr) == (0, "")
        online = mask(dgmn2(*infer, "online"), "online")
        asked = host.asked.total()
        assert mask(dgmn2(*infer, "offline", "--offline"), "offline") == online
        assert dgmn2("download", "setr_pup-tiny", "--offline", "--bundle", "bundle.tar").returncode == 0
        assert host.asked.total() == asked
    finally:
        host.stop()
    unshare = shutil.which("unshare")
    if not unshare or subprocess.run([unshare, "-Urn", "true"], capture_output=True, check=False).returncode:
        pytest.skip("a private network namespace is not permitted here; the rest was tested")
    alone = (unshare, "-Urn")
    refused = dgmn2(*infer, "refused", "--json", cache="elsewhere", before=alone)
    assert (refused.returncode, refused.stdout) == (4, "")
    adopted = dgmn2("download", "--from", "bundle.tar", "--json", cache="elsewhere", before=alone)
    assert [file["key"] for file in json.loads(adopted.stdout)["files"]] == ["setr_pup-tiny"]
    assert mask(dgmn2(*infer, "alone", cache="elsewhere", before=alone), "alone") == online
