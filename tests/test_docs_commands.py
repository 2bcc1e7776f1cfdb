"""Every `dgmn2` command that README and docs print: its options exist, and, marked slow, it runs.

What runs is the command as printed, in a folder with drawn streets and stand-in weights. Only the published test
procedure is replaced by windows of 64 pixels, so that a page takes minutes, not hours.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import click
import pytest
from PIL import Image
from streets import make_tree

from dgmn2cli.checkpoint.weights import write_checkpoint
from dgmn2cli.cli import dgmn2
from dgmn2cli.inference.load import build_model
from dgmn2cli.model.filled import filled_state
from dgmn2cli.resources import example_photograph

ROOT = Path(__file__).parent.parent
# commands.md is made of the help texts themselves
PAGES = [ROOT / "README.md", *(page for page in sorted((ROOT / "docs").glob("*.md")) if page.stem != "commands")]
COMMAND = re.compile(r"(\.venv/bin/)?dgmn2( |$)|torchrun ")
NAMES = ("COMMAND", "...", "HOST", "DIR_OF")  # of what stands for something else
ADOPTED = ("setr_pup-tiny", "fpn-small", "fpn-tiny")
SMALL = """
import sys, dgmn2cli.inference.load as load
resolve, small = load.resolve, ["inference.scale=[128, 64]", "inference.window=64", "inference.stride=48"]
load.resolve = lambda name, sets=(), **more: resolve(name, [*small, *sets], **more)
from dgmn2cli.__main__ import main
sys.exit(main())
"""
NOT_RUN = {  # a word of the command: why
    "--gpus": "needs several GPUs at full size",
    "torchrun": "needs several machines",
    "benchmark": "takes minutes to hours at full size; tests/bench runs each kind",
    "demo": "tests/demo",
    "download": "needs the network; tests/zoo",
    "serve": "does not end; tests/serve",
    "--ray": "tests of Ray are their own",
    "http://127.0.0.1:8000/drive.mp4": "needs a server; tests/video",
}


def blocks(page: Path) -> Iterator[str]:
    """The commands in the page's fenced blocks, a line each, comments and continuations taken out."""
    for _, block in re.findall(r"```(bash|console|sh|)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            yield re.sub(r"\s+#.*", "", line.removeprefix("$ ")).strip()


def printed(page: Path) -> list[str]:
    """Every `dgmn2 ...` of a page, in blocks and in running text."""
    spans = re.findall(
        r"`(dgmn2 [^`\n]+)`", re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    )
    lines = [line for line in blocks(page) if COMMAND.match(line)]
    return [command for command in dict.fromkeys([*lines, *spans]) if not any(name in command for name in NAMES)]


def arguments_of(command: str) -> list[str]:
    words = shlex.split(command.split(" | ")[0].split(" > ")[0])
    start = words.index("dgmn2cli" if "dgmn2cli" in words else next(w for w in words if w.endswith("dgmn2")))
    return words[start + 1 :]


def test_commands_are_found():
    assert sum(len(printed(page)) for page in PAGES) >= 100


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_printed_commands_have_these_options(page):
    for command in printed(page):
        arguments, whole = arguments_of(command), len(command.split()) > 2
        try:
            found: click.Command | None = dgmn2
            context = click.Context(dgmn2)
            while isinstance(found, click.Group) and arguments and not arguments[0].startswith("-"):
                _, found, arguments = found.resolve_command(context, arguments)
                assert found is not None
            found.make_context("dgmn2", arguments, parent=context)
        except click.exceptions.Exit:  # --help
            continue
        except click.MissingParameter:
            assert not whole, command  # a bare `dgmn2 eval` only names the command
        except click.ClickException as error:
            if command.split()[-1] == getattr(error, "option_name", None):
                continue  # the text only names the option
            pytest.fail(f"{page.name}: {command}: {error.format_message()}")


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("weights")
    return {key: write_checkpoint(folder / f"{key}.pth", filled_state(build_model(key)), {}) for key in ADOPTED}


@pytest.fixture
def run(weights, tmp_path, monkeypatch):
    """Runs `dgmn2` in a folder that holds what the pages name."""
    monkeypatch.setenv("DGMN2_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    here = tmp_path / "here"
    for place in ("data/cityscapes", "data/acdc", "mine"):
        (here / place).parent.mkdir(parents=True, exist_ok=True)
    make_tree(here / "data" / "cityscapes")
    photograph = Image.open(example_photograph()).convert("RGB")
    for name in ("street.png", "street.jpg", "image.png", "big.jpg", "huge.jpg", "photos/a.jpg", "photos/b.png"):
        (here / name).parent.mkdir(exist_ok=True)
        photograph.resize((96, 64)).save(here / name)
    shutil.copy(weights["setr_pup-tiny"], here / "FILE.pth")
    if find_spec("av"):
        from clips import clip, write_clip

        write_clip(here / "drive.mp4", clip(40), sound="aac")
    (here / "list.txt").write_text("photos/a.jpg\nphotos/b.png\n")
    (here / "shards").mkdir()
    for number in range(4):
        with tarfile.open(here / "shards" / f"{number:04}.tar", "w") as tar:
            tar.add(here / "photos" / "a.jpg", f"{number}.jpg")

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "ignore", "-c", SMALL, *arguments]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "DGMN2_OFFLINE": "1"}
        return subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, timeout=600)

    for key, file in weights.items():
        assert call("download", key, "--from", str(file)).returncode == 0
    return call


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_printed_commands_run(page, run):
    failed = []
    for command in [line for line in blocks(page) if COMMAND.match(line)]:
        if any(word in NOT_RUN for word in command.split()):
            continue
        done = run(*arguments_of(command))
        if done.returncode:
            failed.append(f"{command}\n  {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
    assert not failed, "\n".join(failed)
