"""Random kills and signals: an evaluation says in one line what ended it, and goes on to the identical matrix."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from streets import SMALL, Load, Watcher, make_tree
from test_evaluate_processes import ROOT, TESTS, group_of

from dgmn2cli.evaluate.request import EvalRequest
from dgmn2cli.evaluate.run import run

IMAGES, SEEDS = 16, 30
SCRIPT = """
import sys
from pathlib import Path
from streets import SMALL, Load
from dgmn2cli.cli.boundary import guarded
from dgmn2cli.evaluate.request import EvalRequest
from dgmn2cli.evaluate.run import run
from dgmn2cli.observer import Silent

class Talking(Silent):
    def result(self, value):
        print(value.index, flush=True)

if __name__ == "__main__":
    request = EvalRequest(
        Path(sys.argv[1]), settings=SMALL, device="cpu", gpus=int(sys.argv[2]), report=Path(sys.argv[3]), resume=True,
        workers=1, journal_every=0,
    )
    sys.exit(guarded(lambda: run(request, Load("slow"), Talking())))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images, the script, and the confusion matrix of the unbroken run."""
    made = tmp_path_factory.mktemp("kills")
    make_tree(made / "city", IMAGES)
    (made / "script.py").write_text(SCRIPT)
    whole = run(EvalRequest(made / "city", settings=SMALL, device="cpu"), Load(), Watcher())
    (made / "whole.json").write_text(json.dumps(whole.confusion))
    return made


def start(folder: Path, report: Path, gpus: int) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{TESTS}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(folder / "script.py"), str(folder / "city"), str(gpus), str(report)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment, start_new_session=True)


def strike(child: subprocess.Popen[str], target: str, number: signal.Signals, dice: random.Random) -> bool:
    """Sends the signal; whether it was to one of several processes alone."""
    ranks = [pid for pid in group_of(child.pid) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    if target == "rank" and ranks:
        os.kill(dice.choice(sorted(ranks)), number)
        return True
    if target == "group":
        os.killpg(child.pid, number)
    else:
        child.send_signal(number)
    return False


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(SEEDS))
def test_whatever_ends_it_it_goes_on(folder: Path, tmp_path: Path, seed: int) -> None:
    dice, report = random.Random(seed), tmp_path / "r.json"
    gpus, target = dice.choice([1, 2, 2]), dice.choice(["main", "group", "rank"])
    number = dice.choice([signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
    child = start(folder, report, gpus)
    assert child.stdout is not None
    for _ in range(dice.randrange(IMAGES // 2) + 1):
        assert child.stdout.readline() != "", child.communicate()
    time.sleep(dice.random() / 2)
    family = group_of(child.pid)
    alone = strike(child, target, number, dice)
    began = time.monotonic()
    _, err = child.communicate(timeout=30)
    expected = {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    assert child.returncode in (8 if alone else expected, 0), err
    if child.returncode > 0:
        assert [line.partition(":")[0] for line in err.splitlines()] == ["Error"], err
    while alive := [pid for pid in family if _runs(pid)]:
        assert time.monotonic() - began < 30, alive
        time.sleep(0.1)

    if child.returncode != 0:
        child = start(folder, report, dice.choice([1, 2]))
        out, err = child.communicate(timeout=120)
        assert child.returncode == 0, err
        assert len(out.split()) < IMAGES, "what was counted is not counted again"
    assert json.loads(report.read_text())["confusion"] == json.loads((folder / "whole.json").read_text())
    assert not report.with_name("r.json.journal").exists()


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
