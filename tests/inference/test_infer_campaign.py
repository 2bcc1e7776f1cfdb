"""80 images by torchrun's processes or Ray's actors, one of them killed: every image once, bytes as of one process."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from networks import stand_ins
from streets import scene

import dgmn2cli
from dgmn2cli.checkpoint.weights import write_checkpoint
from dgmn2cli.data.images import read_label, write_png
from dgmn2cli.inference.load import build_model
from dgmn2cli.inference.plan import Settings

COUNT, KILLS = 80, 30
SMALL = ("-m", "setr_naive-tiny", "--scale", "64x64", "--window", "64", "--stride", "48", "--threads", "1")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images, the weights, and what one process makes of them."""
    made = tmp_path_factory.mktemp("campaign")
    for index in range(COUNT):
        write_png(made / "in" / f"{index:02}.png", scene(index)[0])
    write_checkpoint(made / "w.pth", stand_ins(lambda: build_model("setr_naive-tiny")), {})
    done = start(made, "-m", "dgmn2cli", "infer", *options(made, made / "whole"))
    assert done.wait(600) == 0
    assert len(contents(made / "whole")) == 2 * COUNT
    return made


def options(folder: Path, out: Path) -> list[str]:
    return [str(folder / "in"), "--checkpoint", str(folder / "w.pth"), "-o", str(out), "--device", "cpu", *SMALL]


def start(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(Path(dgmn2cli.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("ab") as log:
        return subprocess.Popen([sys.executable, *arguments], stdout=log, stderr=log, env=environment, cwd=folder)


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*") if path.name != "results.jsonl"}


def noted(out: Path) -> list[str]:
    """The names of the whole lines."""
    names = []
    for line in (out / "results.jsonl").read_bytes().splitlines() if (out / "results.jsonl").exists() else []:
        with contextlib.suppress(ValueError):
            names.append(json.loads(line)["name"])
    return names


def members(top: int, words: bytes) -> list[int]:
    """The processes below `top` whose command line has `words`."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    family = {top}
    while more := {pid for pid, parent in parents.items() if parent in family and pid not in family}:
        family |= more
    found = []
    for pid in family - {top}:
        with contextlib.suppress(OSError):
            if words in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return sorted(found)


def kill_one(job: subprocess.Popen[bytes], out: Path, words: bytes, dice: random.Random) -> None:
    """Kills one of the processes once a random number of images is noted."""
    wanted = dice.randrange(1, COUNT // 2)
    while len(noted(out)) < wanted and job.poll() is None:
        time.sleep(0.05)
    if found := members(job.pid, words):
        os.kill(dice.choice(found), signal.SIGKILL)


def require_all_once(folder: Path, out: Path) -> None:
    assert Counter(noted(out)) == Counter(f"{index:02}" for index in range(COUNT))
    assert contents(out) == contents(folder / "whole")


@pytest.mark.parametrize("seed", range(KILLS))
def test_torchrun_killed_and_resumed(folder: Path, tmp_path: Path, seed: int) -> None:
    dice, out = random.Random(seed), tmp_path / "out"
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4", "-m", "dgmn2cli", "infer"]
    job = start(folder, *command, *options(folder, out), "--resume")
    kill_one(job, out, b"dgmn2cli", dice)
    assert job.wait(300) != 0
    before = len(noted(out))
    assert 1 <= before < COUNT
    assert start(folder, *command, *options(folder, out), "--resume").wait(300) == 0
    require_all_once(folder, out)
    assert start(folder, "-m", "dgmn2cli", "infer", *options(folder, out), "--resume", "--stride", "32").wait(100) == 2


def test_ray_with_an_actor_killed(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    out = tmp_path / "out"
    job = start(folder, "-m", "dgmn2cli", "infer", *options(folder, out), "--ray", "local", "--gpus", "2")
    kill_one(job, out, b"ray::", random.Random(0))
    assert job.wait(400) == 0
    require_all_once(folder, out)


def test_two_nodes_as_the_docs_print_it(folder: Path, tmp_path: Path) -> None:
    """`torchrun --nnodes 2` twice on this machine, each launcher with its own `--node-rank`."""
    out, port = tmp_path / "out", free_port()
    launch = ("-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1")
    jobs = [
        start(folder, *launch, "--master-port", str(port), "--node-rank", str(rank), "-m", "dgmn2cli", "infer",
              *options(folder, out), "--resume")
        for rank in (0, 1)
    ]  # fmt: skip
    assert [job.wait(400) for job in jobs] == [0, 0]
    require_all_once(folder, out)


@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_batches_of_a_ray_data_set(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two actors, images as `read_images` and as `read_binary_files` give them: masks as of `infer`."""
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    from dgmn2cli.ray import SegmentBatch

    monkeypatch.setenv("PYTHONPATH", str(Path(dgmn2cli.__file__).parents[1]))
    given = {
        "model": "setr_naive-tiny",
        "checkpoint": folder / "w.pth",
        "device": "cpu",
        "settings": Settings(scale=(64, 64), window=64, stride=48),
    }
    wanted = {f"{index:02}": read_label(folder / "whole" / f"{index:02}_ids.png") for index in range(10)}
    files = [str(folder / "in" / f"{name}.png") for name in wanted]
    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        for read in (ray.data.read_images, ray.data.read_binary_files):
            masks = read(files, include_paths=True).map_batches(
                SegmentBatch,
                fn_constructor_kwargs=given,
                batch_size=4,
                compute=ray.data.ActorPoolStrategy(size=2),
            )
            rows = {Path(row["path"]).stem: row for row in masks.iter_rows()}
            assert rows.keys() == wanted.keys()
            for name, row in rows.items():
                np.testing.assert_array_equal(row["ids"], wanted[name])
                assert 0 < row["doubt"] < 1
                assert "bytes" not in row
    finally:
        ray.shutdown()
