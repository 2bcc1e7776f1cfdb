"""The built wheel carries everything: kernels, zoo.json, configurations; it works from another folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = (
    "dgmn2cli",
    "configs",
    "examples",
    "setup.py",
    "setup.cfg",
    "pyproject.toml",
    "zoo.json",
    "README.md",
    "LICENSE",
    "MANIFEST.in",
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked as an installer would; built from a copy without any earlier build product."""
    folder = tmp_path_factory.mktemp("wheel")
    leave = shutil.ignore_patterns("*.so", "__pycache__", "_resources")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / "source" / name, ignore=leave)
        else:
            (folder / "source").mkdir(exist_ok=True)
            shutil.copy2(source, folder / "source" / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    quickly = {**os.environ, "CXXFLAGS": "-O0"}  # the kernels of the checkout are the optimised ones
    subprocess.run([*command, "--wheel-dir", str(folder), str(folder / "source")], check=True, timeout=300, env=quickly)
    [wheel] = folder.glob("*.whl")
    assert "cp311-abi3" in wheel.name, wheel.name
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_WAIT_POLICY": "PASSIVE"}
    return subprocess.run(
        [sys.executable, "-P", *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def test_data_files_travel(installed: Path) -> None:
    resources = installed / "dgmn2cli" / "_resources"
    assert (resources / "zoo.json").read_bytes() == (ROOT / "zoo.json").read_bytes()
    assert len(list((resources / "configs").glob("*.toml"))) == 16
    assert len(list((resources / "configs" / "recipes").glob("*.toml"))) >= 2
    assert (resources / "examples" / "summer_palace.jpg").is_file()
    assert "Creative Commons" in (resources / "examples" / "README.md").read_text(encoding="utf-8")
    assert (installed / "dgmn2cli" / "report" / "templates" / "demo.html").is_file()
    assert len(list((installed / "dgmn2cli" / "data" / "presets").glob("*.toml"))) == 13
    assert not list(installed.rglob("tests")), "tests do not belong in the wheel"


def test_commands_work_from_another_folder(installed: Path, tmp_path: Path) -> None:
    listed = run(installed, tmp_path, "-m", "dgmn2cli", "zoo", "list")
    assert listed.returncode == 0, listed.stderr
    assert "setr_mla-large" in listed.stdout
    code = (
        "import dgmn2cli, dgmn2cli.ops as ops;"
        f"assert dgmn2cli.__file__.startswith({str(installed)!r}), dgmn2cli.__file__;"
        "model = dgmn2cli.build_model('fpn-tiny');"
        "backends = ops.available_backends();"
        "assert backends['native'].usable, backends['native'].reason"
    )
    built = run(installed, tmp_path, "-c", code)
    assert built.returncode == 0, built.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_maker_of_checkpoints_explains_itself(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "examples" / "make_checkpoint.py"
    made = subprocess.run([sys.executable, script, "--help"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "OUT.pth" in made.stdout
    assert not list(tmp_path.iterdir())
