"""Every `dgmn2` command and Python block in README and docs: its options exist, and, marked slow, it runs.

What runs is what is printed, page by page and in the page's order, in a folder with drawn streets and stand-in weights
(see `small_runs`). What is left out is listed as skipped, with the reason.
"""

from __future__ import annotations

import os
import re
import runpy
import shlex
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from importlib.util import find_spec
from io import StringIO
from multiprocessing import get_context
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image
from streets import make_tree

from dgmn2cli.checkpoint.weights import write_checkpoint
from dgmn2cli.cli import dgmn2
from dgmn2cli.data.images import write_png
from dgmn2cli.inference.load import build_model
from dgmn2cli.model.backbone import Classifier
from dgmn2cli.model.filled import filled_state
from dgmn2cli.resources import example_photograph
from dgmn2cli.zoo import load_zoo

ROOT = Path(__file__).parent.parent
# commands.md is made of the help texts themselves
PAGES = [ROOT / "README.md", *(page for page in sorted((ROOT / "docs").glob("*.md")) if page.stem != "commands")]
PRINTED = re.compile(r"^```(\w*)\n(.*?)^```|`(dgmn2 [^`\n]+)`", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"(\.venv/bin/)?dgmn2( |$)|torchrun ")
NAMES = ("COMMAND", "...", "HOST", "DIR_OF")  # of what stands for something else
MEANT = {
    "FILE": "FILE.pth",
    "CONFIG": "setr_pup-tiny",
    "IMAGES": "photos",
    "DIR": "made",
    "NAME": "acdc",
    "KEY": "fpn-small",
}
MEANT_IN = {"evaluation": {"FILE": "mine/dataset.toml"}, "performance": {"FILE": "fpn-tiny.pth", "769": "64"}}
ADOPTED = ("setr_pup-tiny", "fpn-small", "fpn-tiny", "dgmn2_tiny")
NOT_RUN = {  # a word of the command or block: why
    "--gpus": "needs several processes at full size; tests/distributed, tests/inference",
    "torchrun": "needs several machines",
    "benchmark": "takes minutes to hours at full size; tests/bench runs each kind",
    "demo": "tests/demo",
    "dgmn2-demo/run/config.toml": "needs the demo's run; tests/demo",
    "serve": "does not end; tests/serve",
    "--ray": "needs Ray's processes; tests/inference",
    "ray": "needs Ray's processes; tests/inference",
    "httpx": "needs a server; tests/serve",
    "http://127.0.0.1:8000/drive.mp4": "needs a server; tests/video",
    "RUN": "names a run of the reader's",
    "our-zoo.json": "needs the manifest that the reader writes",
}
LIMIT = 300  # seconds for a command


def found(page: Path) -> Iterator[tuple[str, str]]:
    """Kind and text of what the page prints, in order: `line` of a block, `span` in a sentence, `script`, `python`."""
    for language, block, span in PRINTED.findall(page.read_text(encoding="utf-8")):
        if span:
            yield "span", span
        elif language == "python":
            yield "python", block
        elif language in ("bash", "console", "sh", ""):
            for line in re.sub(r"\\\n\s*", "", block).splitlines():
                command = re.sub(r"\s+#.*", "", line.removeprefix("$ ")).strip()
                if COMMAND.match(command):
                    yield "line", command
                elif command.startswith("python model/"):
                    yield "script", command.removeprefix("python ")


def printed(page: Path) -> list[str]:
    """Every `dgmn2 ...` of a page, in blocks and in running text."""
    commands = [text for kind, text in found(page) if kind in ("line", "span")]
    return [command for command in dict.fromkeys(commands) if not any(name in command for name in NAMES)]


def arguments_of(command: str) -> list[str]:
    words = shlex.split(command.split(" | ")[0].split(" > ")[0])
    start = words.index("dgmn2cli" if "dgmn2cli" in words else next(w for w in words if w.endswith("dgmn2")))
    return words[start + 1 :]


def test_commands_are_found():
    assert sum(len(printed(page)) for page in PAGES) >= 100


def parse(command: str) -> None:
    """Resolves the command and parses its arguments; raises what click raises."""
    arguments, context = arguments_of(command), click.Context(dgmn2)
    named: click.Command | None = dgmn2
    while isinstance(named, click.Group) and arguments and not arguments[0].startswith("-"):
        _, named, arguments = named.resolve_command(context, arguments)
        assert named is not None
    named.make_context("dgmn2", arguments, parent=context)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_printed_commands_have_these_options(page):
    for command in printed(page):
        whole = len(command.split()) > 2
        try:
            parse(command)
        except click.exceptions.Exit:  # --help
            continue
        except click.MissingParameter:
            assert not whole, command  # a bare `dgmn2 eval` only names the command
        except click.ClickException as error:
            if command.split()[-1] == getattr(error, "option_name", None):
                continue  # the text only names the option
            pytest.fail(f"{page.name}: {command}: {error.format_message()}")


def reason_not_to_run(kind: str, text: str) -> str:
    """Why a command or block is not run; empty if it is."""
    words = text.split() if kind != "python" else re.findall(r"[\w.:/-]+", text)
    for word in words:
        if word in NOT_RUN:
            return NOT_RUN[word]
    if "download" in words and "--from" not in words:
        return "needs the network; tests/zoo"
    keys = {entry.key for entry in load_zoo().segmentors} - {*ADOPTED}
    if "infer" in words and keys & {*words}:
        return "there are no stand-in weights of this model"
    if ("video" in words or "av" in words) and not find_spec("av"):
        return "needs the extra `video`"
    if {"export", "dgmn2cli.export", "onnxruntime", "model/run.py"} & {*words} and not find_spec("onnxruntime"):
        return "needs the extra `onnx`"
    return ""


def runs(page: Path) -> list[tuple[str, str, str]]:
    """Kind, text and reason not to run it of all of a page that is whole: bare names of commands and options are not.

    What is in running text counts where it is printed first.
    """
    earlier = {text for other in PAGES[: PAGES.index(page)] for _, text in found(other)}
    whole = []
    for kind, text in found(page):
        if kind != "python" and any(name in text for name in NAMES):
            continue
        if kind == "span" and (len(text.split()) < 3 or text in earlier or not parses(text)):
            continue
        whole.append((kind, text, reason_not_to_run(kind, text)))
    return list(dict.fromkeys(whole))


def parses(command: str) -> bool:
    try:
        with redirect_stdout(StringIO()):
            parse(command)
    except click.exceptions.Exit:  # --help
        return True
    except click.ClickException:
        return False
    return True


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[tuple[Path, Callable[..., int]]]:
    """A folder that holds what the pages name, and what runs a command or block in one."""
    top = tmp_path_factory.mktemp("printed")
    here, context = top / "here", get_context("forkserver")
    context.set_forkserver_preload(["small_runs"])
    environment = {"DGMN2_OFFLINE": "1", "DGMN2_CACHE": str(top / "cache")}

    def run(kind: str, what: object, folder: Path = here) -> int:
        import small_runs

        target = {"python": small_runs.program, "script": small_runs.script}.get(kind, small_runs.command)
        process = context.Process(target=target, args=(what, folder, environment, folder / "log.txt"))
        process.start()
        process.join(LIMIT)
        if process.exitcode is None:
            process.kill()
            process.join()
        return process.exitcode or 0

    here.mkdir()
    for split in ("train", "val", "test"):
        make_tree(here / "data" / "cityscapes", split=split)
    _draw(here)
    _own_images(here / "mine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
        patch.setenv("OMP_NUM_THREADS", "1")
        prepared = [["data", "synth", f"data/{name}", "--layout", name, "--images", "4", "--size", "128x64"]
                    for name in ("acdc", "idd")]  # fmt: skip
        for key in ADOPTED:
            network = Classifier(key.rsplit("_", 1)[-1]) if "_" in key and "-" not in key else build_model(key)
            write_checkpoint(top / f"{key}.pth", filled_state(network), {})
            prepared.append(["download", key, "--from", str(top / f"{key}.pth")])
        os.link(top / "setr_pup-tiny.pth", here / "FILE.pth")
        os.link(top / "fpn-tiny.pth", here / "fpn-tiny.pth")
        prepared.append(["download", *ADOPTED, "--bundle", "weights.tar"])
        prepared.append(["eval", "fpn-tiny", "--report", "b.json", "--save-preds", "predictions"])
        for arguments in prepared:
            assert run("line", arguments) == 0, (arguments, (here / "log.txt").read_text())
        yield here, run


def _draw(here: Path) -> None:
    photograph = Image.open(example_photograph()).convert("RGB")
    for name in ("street.jpg", "image.png", "big.jpg", "huge.jpg", "photo.jpg", "a.jpg", "b.jpg", "photos/a.jpg",
                 "photos/b.png", "examples/summer_palace.jpg"):  # fmt: skip
        (here / name).parent.mkdir(exist_ok=True)
        photograph.resize((96, 64)).save(here / name)
    photograph.resize((2048, 1024)).save(here / "street.png")  # in which pixels are named
    published = runpy.run_path(str(ROOT / "tests" / "config" / "mmcv_samples.py"))["flat_text"]
    (here / "FILE.py").write_text(published())
    (here / "list.txt").write_text("photos/a.jpg\nphotos/b.png\n")
    (here / "shards").mkdir()
    for number in range(4):
        with tarfile.open(here / "shards" / f"{number:04}.tar", "w") as tar:
            tar.add(here / "photos" / "a.jpg", f"{number}.jpg")
    if find_spec("av"):
        from clips import clip, write_clip

        write_clip(here / "drive.mp4", clip(40), sound="aac")


def _own_images(root: Path) -> None:
    """The data set that docs/training.md describes, with the description as printed there."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for number in range(4):
            label = rng.choice(np.array([7, 23, 11], np.uint8), (8, 12)).repeat(8, 0).repeat(8, 1)
            write_png(root / "labels" / split / "a" / f"{number}.png", label)
            write_png(root / "images" / split / "a" / f"{number}.png", np.stack([label * 10] * 3, -1))
    block = re.search(r"```toml\n(.*?)```", (ROOT / "docs" / "training.md").read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    (root / "dataset.toml").write_text(block[1], encoding="utf-8")


def test_pages_have_what_is_run():
    assert sum(not reason for page in PAGES for _, _, reason in runs(page)) >= 60


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "text", "reason"), [run for page in PAGES for run in runs(page) if run[2]])
def test_what_is_not_run(kind, text, reason):
    pytest.skip(f"{text.splitlines()[0]}: {reason}")


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(not run[2] for run in runs(page))], ids=lambda p: p.stem
)
def test_what_is_printed_runs(page, place, tmp_path):
    template, run = place
    here, meant = tmp_path / "here", MEANT | MEANT_IN.get(page.stem, {})
    shutil.copytree(template, here, copy_function=os.link, ignore=shutil.ignore_patterns("log.txt"))
    failed = []
    for kind, text, reason in runs(page):
        if reason:
            continue
        if kind == "span":  # not one after the other
            shutil.rmtree(here / "dgmn2-output", ignore_errors=True)
        what: object = text
        if kind != "python":
            words = shlex.split(text) if kind == "script" else arguments_of(text)
            what = [re.sub("^/data/", "data/", meant.get(word, word)) for word in words]
        if code := run(kind, what, here):
            said = (here / "log.txt").read_text(errors="replace").strip().splitlines()[-3:]
            failed.append(f"{text}\n  {code}: {said}")
    assert not failed, "\n".join(failed)
