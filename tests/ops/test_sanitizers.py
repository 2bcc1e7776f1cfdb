"""The CPU kernels under the sanitizers; compiling them so takes minutes, hence opt-in (`-m slow`, `make sanitize`)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLAGS = ["-std=c++17", "-O1", "-g", "-pthread", "-fsanitize=address,undefined,float-cast-overflow"]


def build(folder: Path, headers: Path) -> Path:
    program = folder / "fuzz_kernels"
    source = ROOT / "tests" / "ops" / "fuzz_kernels.cpp"
    command = ["g++", *FLAGS, "-fno-sanitize-recover=all", "-I", str(headers), str(source), "-o", str(program)]
    subprocess.run(command, check=True, timeout=1200)
    return program


@pytest.mark.slow
def test_random_cases_under_the_sanitizers(tmp_path: Path) -> None:
    program = build(tmp_path, ROOT / "dgmn2cli" / "ops" / "csrc")
    done = subprocess.run([str(program), "100000", "7"], capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "cases: 100000" in done.stdout


@pytest.mark.slow
def test_kernels_without_their_guard_are_caught(tmp_path: Path) -> None:
    """Negative control: the open-box guard taken out, the trial must fail."""
    headers = tmp_path / "csrc"
    shutil.copytree(ROOT / "dgmn2cli" / "ops" / "csrc", headers)
    taps = headers / "taps.h"
    guard = "(y > A(-1)) & (x > A(-1)) & (y < A(rows)) & (x < A(columns))"
    assert guard in taps.read_text()
    taps.write_text(taps.read_text().replace(guard, "(y == y) & (x == x)"))
    done = subprocess.run([str(build(tmp_path, headers)), "3000", "7"], capture_output=True, timeout=3000)
    assert done.returncode != 0
