"""Several processes: the identical matrix, one clear line when one dies, and nothing left running."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch.multiprocessing as multiprocessing
from streets import SMALL, Load, Watcher, make_tree, segmenter

import dgmn2cli
from dgmn2cli.data.catalog import open_dataset
from dgmn2cli.distributed import group as grouping
from dgmn2cli.distributed.group import join, require_devices
from dgmn2cli.errors import ConfigError, Dgmn2Error, DistributedError, NonFiniteError, ResourceError
from dgmn2cli.evaluate import evaluate
from dgmn2cli.evaluate.request import EvalRequest
from dgmn2cli.evaluate.run import run

TESTS = Path(__file__).parents[1]
ROOT = Path(dgmn2cli.__file__).parents[1]


def children() -> set[int]:
    """Processes whose parent this is, except multiprocessing's own resource tracker."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name_end = stat.read_text().rpartition(")")[2].split()
            command = (stat.parent / "cmdline").read_bytes()
            if int(name_end[1]) == os.getpid() and b"resource_tracker" not in command and name_end[0] != "Z":
                found.add(int(stat.parent.name))
    return found


def request_on(root: Path, **settings: object) -> EvalRequest:
    return EvalRequest(root, **{"settings": SMALL, "device": "cpu", "workers": 1, **settings})


def test_two_processes_resume_what_one_began(tmp_path: Path) -> None:
    """7 pictures: 2 counted by one process, the other 5 by two; the predictions are all there."""
    root, before = make_tree(tmp_path / "city", 7), children()
    request = request_on(root, report=tmp_path / "r.json", save_preds=tmp_path / "preds")
    whole = run(replace(request, report=None, save_preds=None), Load(), Watcher())
    with pytest.raises(KeyboardInterrupt):
        run(request, Load(), Watcher(stop_after=2))
    watcher = Watcher()
    report = run(replace(request, resume=True, gpus=2), Load(), watcher)
    assert report.confusion == whole.confusion
    assert (report.processes, report.resumed) == (2, 2)
    assert sorted(image.index for image in watcher.images) == [2, 3, 4, 5, 6]
    assert watcher.parts == 5
    assert len(list((tmp_path / "preds" / "labelIds").iterdir())) == 7
    assert children() == before


@pytest.mark.slow
def test_a_process_without_pictures_is_no_trouble(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "city", 1)
    whole = run(request_on(root), Load(), Watcher())
    assert run(request_on(root, gpus=2), Load(), Watcher()).confusion == whole.confusion


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 7, 16])
@pytest.mark.parametrize("world", [2, 3])
def test_identical_matrix_on_real_processes(tmp_path: Path, size: int, world: int) -> None:
    root = make_tree(tmp_path / "city", size)
    whole = run(request_on(root), Load(), Watcher())
    assert run(request_on(root, gpus=world), Load(), Watcher()).confusion == whole.confusion


def test_a_killed_process_ends_the_run(tmp_path: Path) -> None:
    before, root = children(), make_tree(tmp_path / "city", 6)
    began = time.monotonic()
    with pytest.raises(DistributedError, match=r"process [12] of 2 died: ended by SIGKILL") as caught:
        run(request_on(root, gpus=2), Load("killed"), Watcher())
    assert caught.value.exit_code == 8
    assert time.monotonic() - began < 30
    assert children() == before


@pytest.mark.slow
def test_what_a_process_raises_keeps_its_kind(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before, request = children(), request_on(make_tree(tmp_path / "city", 2), gpus=2)
    with pytest.raises(NonFiniteError, match="the weights are not finite"):
        run(request, Load("broken"), Watcher())
    with pytest.raises(NonFiniteError, match=r"_leftImg8bit\.png"):
        run(request, Load("nan"), Watcher())
    with pytest.raises(Dgmn2Error, match=r"unforeseen failure.*something unforeseen"):
        run(request, Load("odd"), Watcher())
    assert children() == before
    assert capfd.readouterr().err == ""


RUN = """
from pathlib import Path
from streets import SMALL, Load, Watcher
from dgmn2cli.evaluate.request import EvalRequest
from dgmn2cli.evaluate.run import run

class Talking(Watcher):
    def result(self, value):
        print(value.index, flush=True)

if __name__ == "__main__":
    request = EvalRequest(
        Path({root!r}), settings=SMALL, device="cpu", gpus={gpus}, report=Path({report!r}), resume=True, workers=1,
        journal_every=0,
    )
    run(request, Load({how!r}), Talking())
    print("done", flush=True)
"""


def start(tmp_path: Path, root: Path, gpus: int, how: str) -> subprocess.Popen[str]:
    script = tmp_path / "script.py"
    script.write_text(RUN.format(root=str(root), gpus=gpus, report=str(tmp_path / "r.json"), how=how))
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{TESTS}"}
    return subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment)


def group_of(process: int) -> set[int]:
    """The process and its descendants that still live."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                parents[int(stat.parent.name)] = int(fields[1])
    found = {process}
    while more := {pid for pid, parent in parents.items() if parent in found and pid not in found}:
        found |= more
    return found


def test_kill_9_leaves_no_orphans_and_the_run_goes_on(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "city", 6)
    whole = run(request_on(root), Load(), Watcher())
    process = start(tmp_path, root, 2, "slow")
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] != ["", ""]
    family = group_of(process.pid)
    assert len(family) >= 3
    process.kill()
    process.wait(10)
    process.stdout.close()
    deadline = time.monotonic() + 20
    while (alive := [pid for pid in family if Path(f"/proc/{pid}/cmdline").exists() and _command(pid)]) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.1)
    assert alive == []
    done = json.loads((tmp_path / "r.json.journal").read_text())["done"]
    assert 1 <= len(done) < 6
    report = run(request_on(root, report=tmp_path / "r.json", resume=True), Load(), Watcher())
    assert report.resumed == len(done)
    assert report.confusion == whole.confusion


def _command(process: int) -> bytes:
    """Its command line; empty for one that is dead."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_bytes()
    return b""


@pytest.mark.slow
def test_killed_again_and_again_the_matrix_is_identical(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "city", 24)
    whole = run(request_on(root), Load(), Watcher())
    kills = 0
    for attempt in range(60):
        process = start(tmp_path, root, 1, "slow")
        assert process.stdout is not None
        if process.stdout.readline() == "done\n":
            break
        time.sleep(0.3 + 0.17 * (attempt % 7))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        rest = process.stdout.read()
        process.stdout.close()
        process.wait(10)
        if "done" in rest:
            break
    assert kills > 3
    assert json.loads((tmp_path / "r.json").read_text())["confusion"] == [list(row) for row in whole.confusion]


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    require_devices("cpu", 3)
    require_devices("auto", 1)
    for count in (0, 1):
        monkeypatch.setattr(grouping.torch.cuda, "is_available", lambda count=count: count > 0)
        monkeypatch.setattr(grouping.torch.cuda, "device_count", lambda count=count: count)
        with pytest.raises(ResourceError, match="not enough GPUs") as caught:
            require_devices("auto", 2)
        assert caught.value.exit_code == 5
    monkeypatch.setattr(grouping.torch.cuda, "device_count", lambda: 4)
    require_devices("auto", 4)
    with pytest.raises(ResourceError, match="this machine has 4 CUDA devices"):
        require_devices("cuda", 5)
    for device in ("cuda:1", "mps"):
        with pytest.raises(ConfigError, match="one device for several"):
            require_devices(device, 2)


# --- within a group of torch.distributed, as training evaluates


def _member(rank: int, folder: str) -> None:
    port = Path(folder, "port").read_text()
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    data, outcomes = open_dataset(Path(folder, "city"), "val"), []
    with join("cpu") as group:
        for how in ("well", "nan"):
            made = Load(how if rank else "well")(device="cpu")
            try:
                report = evaluate(made, data, SMALL, group=group)
                outcomes.append({"confusion": report.confusion, "processes": report.processes})
            except NonFiniteError as error:
                outcomes.append({"error": str(error)})
    Path(folder, f"{rank}.json").write_text(json.dumps(outcomes))


def test_evaluation_within_a_process_group(tmp_path: Path) -> None:
    """All get the report of the whole; where one fails, all raise what it raised."""
    make_tree(tmp_path / "city", 3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        (tmp_path / "port").write_text(str(server.getsockname()[1]))
    multiprocessing.spawn(_member, (str(tmp_path),), nprocs=2)
    outcomes = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert outcomes[0] == outcomes[1]
    alone = evaluate(segmenter(), open_dataset(tmp_path / "city", "val"), SMALL)
    assert outcomes[0][0] == {"confusion": [list(row) for row in alone.confusion], "processes": 2}
    assert "_leftImg8bit.png" in outcomes[0][1]["error"]
