"""`dgmn2 demo` as typed: its answer, its JSON, its refusals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from dgmn2cli.cli import main
from dgmn2cli.demo import request
from dgmn2cli.demo.request import DemoRequest

ROOT = Path(__file__).resolve().parents[2]
QUICK = ["--iters", "1", "--scenes", "1", "--device", "cpu"]


def call(capsys, *arguments):
    code = main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_answer_and_the_steps(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(request, "DemoRequest", partial(DemoRequest, size=(128, 64), crop=64, batch_size=2))
    out = tmp_path / "d"
    code, stdout, stderr = call(capsys, "demo", "-o", str(out), *QUICK)
    assert code == 0, stderr
    for number in range(1, 7):
        assert f"[{number}/6] " in stderr
    report = json.loads((out / "report.json").read_text())
    assert f"mIoU {100 * report['single_scale']['mean_iou']:.1f} %" in stderr
    assert f"{100 * report['single_scale']['mean_iou']:.2f} %" in stdout
    assert f"{100 * report['largest_share']:.2f} % of the pixels" in stdout
    assert str(out / "index.html") in stdout
    assert (out / "index.html").is_file()

    code, stdout, stderr = call(capsys, "demo", "-o", str(out), *QUICK)
    assert (code, stdout) == (2, "")
    assert stderr.startswith("Error: a finished demo is here already")
    assert stderr.count("\n") == 1

    code, stdout, stderr = call(capsys, "demo", "-o", str(out), *QUICK, "--resume", "--json", "-q")
    assert (code, stderr) == (0, "")
    document = json.loads(stdout)
    assert document["single_scale"]["mean_iou"] == report["single_scale"]["mean_iou"]
    assert document["resumed"] is True


def test_ctrl_c_ends_it_and_resume_goes_on(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "dgmn2cli", "demo", "-o", "d", *QUICK[2:], "--iters", "10000"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        log, limit = tmp_path / "d" / "run" / "log.jsonl", time.monotonic() + 120
        while not (log.exists() and log.read_bytes()) and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=120)
    assert (process.returncode, stdout) == (130, "")
    lines = stderr.splitlines()
    assert lines[-1] == "Error: interrupted by Ctrl-C."
    assert "`--resume` goes on from there." in lines[-2]
    assert "Traceback" not in stderr
    assert (tmp_path / "d" / "run" / "checkpoints" / "last.pth").is_file()
