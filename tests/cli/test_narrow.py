"""What people see on a terminal of 80 columns without colours: no longer line, and every figure whole."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
import pytest
from networks import stand_ins
from rich.console import Console, RenderableType
from rich.text import Text
from streets import make_tree

from dgmn2cli.checkpoint.weights import write_checkpoint
from dgmn2cli.cli import dgmn2, main, progress, render
from dgmn2cli.cli.options import Session
from dgmn2cli.data.images import write_png
from dgmn2cli.inference.load import build_model
from dgmn2cli.model.filled import filled_state

if TYPE_CHECKING:
    from dgmn2cli.export.check import Parity

WIDTH = 80
FIGURE = re.compile(r"http\S+|(?<![\w./-])[+-]?\d[\d.,]*(?![\w/.-])")
NAME = "a class with a name that is far longer than anybody would like to read in a table, number {}"
SMALL = ["-m", "setr_naive-tiny", "--scale", "96x64", "--window", "64", "--stride", "48"]
TRAIN = ["--scale", "96x64", "--crop", "64", "--window", "64", "--stride", "48", "--batch-size", "2", "--workers", "0"]


def commands() -> Iterator[tuple[str, click.Command, click.Context]]:
    todo: list[tuple[str, click.Command, click.Context | None]] = [("dgmn2", dgmn2, None)]
    while todo:
        name, command, parent = todo.pop()
        context = click.Context(command, info_name=name, parent=parent, terminal_width=WIDTH, max_content_width=WIDTH)
        yield context.command_path, command, context
        if isinstance(command, click.Group):
            below = ((inner, command.get_command(context, inner)) for inner in command.list_commands(context))
            todo += [(inner, found, context) for inner, found in below if found is not None]


def test_help_fits() -> None:
    checked = 0
    for path, command, context in commands():
        long = [line for line in command.get_help(context).splitlines() if len(line) > WIDTH]
        assert not long, (path, long)
        checked += 1
    assert checked >= 30


def test_options_name_what_they_take() -> None:
    checked = 0
    for path, command, context in commands():
        for option in command.params:
            if isinstance(option, click.Option) and not (option.is_flag or option.count or option.hidden):
                named = option.metavar or isinstance(option.type, click.Choice)
                assert named, (path, option.make_metavar(context))
                checked += 1
    assert checked >= 150


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of long names with long-named classes, weights, and what a reader of reports needs."""
    folder = tmp_path_factory.mktemp("narrow")
    rng = np.random.default_rng(0)
    names = [NAME.format(number) for number in range(3)]
    for split in ("train", "val"):
        for number in range(2):
            label = rng.integers(0, 3, (8, 12), np.uint8).repeat(8, 0).repeat(8, 1)
            stem = f"{'an-image-of-a-street-in-some-town-' * 3}{number}"
            write_png(folder / "mine" / "labels" / split / f"{stem}.png", label)
            write_png(folder / "mine" / "images" / split / f"{stem}.png", np.stack([label * 80] * 3, -1))
            write_png(folder / "saved" / f"{stem}.png", (label + number) % 3)
    quoted = ", ".join(f'"{name}"' for name in names)
    (folder / "mine" / "dataset.toml").write_text(
        f'classes = [{quoted}]\nimages = "images/{{split}}"\nlabels = "labels/{{split}}"\nlabel_suffix = ".png"\n'
    )
    write_checkpoint(folder / "w.pth", stand_ins(lambda: build_model("setr_naive-tiny", 3)), {"CLASSES": names})
    write_checkpoint(folder / "published.pth", filled_state(build_model("setr_naive-tiny")), {})
    make_tree(folder / "city", 2, split="test", ids=())
    (folder / "own.toml").write_text(
        'base = ["setr_naive_dgmn2_tiny_4x2_769x769_40k_cityscapes"]\nmodel.num_classes = 3\n'
        f'name = "{"a-configuration-with-a-long-name-" * 3}"\n'
    )
    return folder


CASES = {
    "zoo list": [],
    "zoo list --pareto": [],
    "zoo show": [],
    "zoo verify --all": [],
    "data presets": [],
    "config list": [],
    "doctor --device cpu": [],
    "data check mine": [],
    "eval --from saved --data-root mine --report a.json": [],
    "compare a.json a.json": ["eval --from saved --data-root mine --report a.json"],
    "verify a.json": ["eval --from saved --data-root mine --report a.json"],
    f"infer mine/images/val --checkpoint published.pth -o out {' '.join(SMALL)}": [],
    f"eval own.toml --checkpoint w.pth --data-root mine {' '.join(SMALL[2:])}": [],
    f"explain street.png --checkpoint published.pth --at 5,5 -o graph {' '.join(SMALL)}": [],
    f"train setr_naive-tiny --data-root mine --from scratch --dry-run {' '.join(TRAIN)}": [],
    "info w.pth": [],
    "convert w.pth w.safetensors": [],
    f"submit --checkpoint published.pth --data-root city -o sub {' '.join(SMALL)}": [],
    f"train setr_naive-tiny --data-root mine --from scratch --out run --max-iters 1 {' '.join(TRAIN)}": [],
    f"video drive.mp4 --checkpoint published.pth -o out.mp4 --metrics --to 0.15 {' '.join(SMALL)}": [],
    f"serve --checkpoint published.pth --port 0 {' '.join(SMALL)}": [],
    "export setr_naive-tiny --checkpoint published.pth --window 64 -o graph": [],
    "benchmark setr_naive-tiny --window 65 --iters 1 --warmup 0 --against plain --no-memory": [],
}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, here: Path) -> Callable[[str], None]:
    """Lets a command that serves end at once, gives an export figures without measuring, and a video its frames."""

    def prepare(name: str) -> None:
        if name == "serve":
            run = pytest.importorskip("dgmn2cli.serve.run")
            listening = run.Listening("http://127.0.0.1:54321/", "setr_naive-tiny", token=True)
            monkeypatch.setattr(run, "serve", lambda *given: given[-1](listening))
        elif name == "export":
            pytest.importorskip("onnxruntime")
            monkeypatch.setattr("dgmn2cli.export.folder.compare", lambda *_: measured())
        elif name == "video":
            pytest.importorskip("av")
            from clips import clip, write_clip

            write_clip(here / "drive.mp4", clip(4))

    return prepare


def measured() -> Parity:
    """Figures as an export measures them."""
    from dgmn2cli.export.check import LIMITS, Difference, Parity

    name, way = "the photograph, upright", "whole procedure, with six scales and their mirror images"
    figures = (1.5e-6, 1e-7, 0.99993, 2_100_225, 147, 11.5, (12.34, 10.98))
    found = [Difference(name, (2049, 1025), *figures, way * whole) for whole in range(2)]
    limits = LIMITS["float32"]
    return Parity("onnxruntime", "1.24.1", "network", 16, limits, found[:1], found[1:], 123.4)


@pytest.mark.parametrize("command", CASES, ids=lambda text: " ".join(text.split()[:2]))
def test_answers_fit(
    command: str, here: Path, quick: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(command.split()[0])
    monkeypatch.chdir(tmp_path)
    for file in here.iterdir():
        (tmp_path / file.name).symlink_to(file)
    stem = next((here / "mine" / "images" / "val").iterdir())
    (tmp_path / "street.png").write_bytes(stem.read_bytes())
    for before in CASES[command]:
        assert main(before.split()) == 0
    parts: list[RenderableType] = []
    monkeypatch.setattr(render, "print_to", lambda console, part: parts.append(part))
    assert main(command.split()) == 0
    narrow, wide = drawn(parts, WIDTH), drawn(parts, render.UNBOUNDED)
    long = [line for line in narrow if len(line.rstrip()) > WIDTH]
    assert not long, long
    figures = [FIGURE.findall("\n".join(lines)) for lines in (narrow, wide)]
    assert figures[1] or command in ("zoo verify --all", "data presets"), "there are no figures to look at"
    fitting = [figure for figure in figures[1] if len(figure) < WIDTH - 20]  # a longer address must be broken
    missing = [figure for figure in fitting if figures[0].count(figure) < figures[1].count(figure)]
    assert not missing, (missing, "\n".join(narrow))


def drawn(parts: list[RenderableType], width: int) -> list[str]:
    """What the parts of an answer look like; lists of paths are left to the terminal and not looked at."""
    file = StringIO()
    console = Console(
        file=file, width=width, force_terminal=True, no_color=True, color_system=None, legacy_windows=False
    )
    for part in parts:
        if not (isinstance(part, Text) and part.no_wrap):
            console.print(part)
    return file.getvalue().splitlines()


LONG = "an-image-of-a-street-in-some-town-" * 5


@pytest.mark.parametrize(
    ("task", "unit", "total", "done", "figures"),
    [
        ("segmenting", "", 345_678, 123_456, ["123456/345678"]),
        (LONG, "", 345_678, 123_456, ["123456/345678"]),
        ("fetching setr_naive-medium", "bytes", 226_000_000, 113_000_000, ["113.0/226.0 MB"]),
        ("reading", "", None, 7, ["7/"]),
    ],
)
def test_bars_fit(
    monkeypatch: pytest.MonkeyPatch, task: str, unit: str, total: float | None, done: float, figures: list[str]
) -> None:
    """Of the bar's line the figures stay whole; the task's name is what is cut."""
    clock = iter(range(0, 10_000, 20))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    console = Console(file=StringIO(), width=WIDTH, force_terminal=True, no_color=True, legacy_windows=False)
    monkeypatch.setattr(render, "err", lambda session: console)
    with progress.TerminalObserver(Session()) as observer:
        observer.begin(task, total, unit=unit)
        observer.advance(done=done, detail=LONG)
        assert observer._bar is not None
        drawn = Console(file=StringIO(), width=WIDTH, force_terminal=True, color_system=None, legacy_windows=False)
        drawn.print(observer._bar.get_renderable())
    assert isinstance(drawn.file, StringIO)
    [line] = drawn.file.getvalue().splitlines()
    assert len(line) <= WIDTH
    assert task[:10] in line
    assert all(figure in line for figure in figures)
