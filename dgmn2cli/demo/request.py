"""What a demonstration is asked for: its recipe, its folder, and whether it may begin or go on there."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, fields, replace
from math import ceil
from pathlib import Path
from typing import Any

from dgmn2cli.config import Config, load_config
from dgmn2cli.errors import ConfigError, printable
from dgmn2cli.files import atomic_write, local_write_errors, to_json, to_plain

MODEL = "setr_naive-tiny"
CONFIG = "setr_naive_dgmn2_tiny_4x2_769x769_40k_cityscapes"
PHOTOGRAPH_SCALE = 2  # the photograph is fitted into this many times the scenes' size
FREE = ("out", "image", "overwrite", "resume", "device", "backend", "threads")  # what the identity leaves out
# the longer recipe
LONG: dict[str, Any] = {
    "iters": 400,
    "crop": 128,
    "batch_size": 4,
    "lr": 5e-4,
    "betas": (0.9, 0.999),
    "loss": "ce",
    "warmup": 0.0,
    "evaluations": 6,
    "ratios": (0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
}


@dataclass(frozen=True)
class DemoRequest:
    """What the user asked for. The defaults are a recipe that takes minutes on two cores; `LONG` has another."""

    out: Path = Path("dgmn2-demo")  # the folder for everything
    iters: int | None = None  # steps of the training; None: as many as its time allows on this machine, measured
    scenes: int = 64  # to train on; a quarter as many more are held out
    seed: int = 0  # of the scenes and of the training
    image: Path | None = None  # the photograph to segment; None: the one that came with the package
    overwrite: bool = False  # begin anew where a demonstration lies already
    resume: bool = False  # go on with it
    device: str = "auto"
    backend: str = "auto"
    threads: int | None = None
    size: tuple[int, int] = (256, 128)  # (width, height) of a scene, in pixels
    crop: int = 64
    batch_size: int = 8
    lr: float = 5e-4
    betas: tuple[float, float] = (0.9, 0.98)
    loss: str = "ce+dice"
    warmup: float = 0.1  # share of the steps in which the learning rate rises
    evaluations: int = 2  # during the training, the last one at its end
    ratios: tuple[float, ...] = (0.75, 1.0, 1.25)  # of the scales that ms+flip averages

    @property
    def held_out(self) -> int:
        """Scenes to evaluate on."""
        return max(1, self.scenes // 4)

    @property
    def folder(self) -> DemoFolder:
        """Where the demonstration keeps what."""
        return DemoFolder(self.out)

    def config(self, iters: int) -> Config:
        """The configuration of a training of `iters` steps: the published one, but small and from scratch.

        Raises:
            ConfigError: an impossible number; all are named.
        """
        size, window = list(self.size), ceil(max(self.ratios) * max(self.size))
        settings = {
            "name": f"{MODEL}_demo",
            "data.workers": 0,  # the scenes are small: reading them costs less than handing them over
            "augment.scale": size,
            "augment.crop": self.crop,
            "augment.ratio": [1.0, 1.0],
            "augment.photometric": False,  # the drawings vary enough by themselves
            "inference.scale": size,
            "inference.window": window,  # an image in one piece, at every scale
            "inference.stride": window,
            "inference.ratios": list(self.ratios),
            "optim.lr": self.lr,
            "optim.betas": list(self.betas),
            "loss.kind": self.loss,
            "optim.warmup": int(self.warmup * iters),
            "train.iters": iters,
            "train.batch_size": self.batch_size,
            "train.recipe_batch": self.batch_size,
            "train.seed": self.seed,
            "train.init": "scratch",
            "train.class_weights_from": "auto",  # without them thin and rare classes come last
            "train.val_every": -(-iters // self.evaluations),
            "train.save_every": 0,
        }
        config = load_config(CONFIG, values=settings)
        return replace(config, data=replace(config.data, root=str(self.folder.data)))

    def identity(self) -> dict[str, Any]:
        """What the result depends on, by the names a user knows."""
        names = [field.name for field in fields(self) if field.name not in FREE]
        plain: dict[str, Any] = to_plain({name: getattr(self, name) for name in names})
        return plain


class DemoFolder:
    """Where a demonstration keeps what.

    Attributes:
        path: the folder.
        mark: what the demonstration was begun with; only a folder with it is one of ours.
        report, page, sheet: the result, the page for a browser, the contact sheet.
        data, drawn: the data set, and the file written when it is complete.
        run: the training's run folder.
        images: the images segmented in the end.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.mark, self.report = path / "demo.json", path / "report.json"
        self.page, self.sheet = path / "index.html", path / "contact_sheet.png"
        self.data, self.run, self.images = path / "data", path / "run", path / "images"
        self.drawn = self.data / "synth.json"

    def evaluation(self, name: str) -> Path:
        """The report of one evaluation."""
        return self.path / "evaluation" / f"{name}.json"

    def evaluation_page(self, name: str) -> Path:
        """The page of one evaluation."""
        return self.path / "evaluation" / f"{name}.html"

    def predictions(self, name: str) -> Path:
        """The predictions of one evaluation."""
        return self.path / "evaluation" / name

    def clear(self) -> None:
        """Removes a demonstration, and nothing that it did not make; the mark goes last.

        Raises:
            ResourceError: something cannot be removed.
        """
        with local_write_errors(self.path):
            for folder in (self.data, self.run, self.images, self.path / "evaluation"):
                if folder.is_dir():
                    shutil.rmtree(folder)
            for file in (self.report, self.page, self.sheet, self.mark):
                file.unlink(missing_ok=True)


def refuse_folder(request: DemoRequest) -> None:
    """Makes sure that the demonstration may begin, or go on, in its folder; changes nothing.

    Raises:
        ConfigError: there is another one and neither --overwrite nor --resume was asked for; it cannot be resumed with
            these settings; or the folder holds something else.
    """
    folder = request.folder
    if request.overwrite and request.resume:
        raise ConfigError("--overwrite and --resume contradict each other", hint="Give one of them.")
    if not folder.mark.is_file():
        if folder.path.exists() and not folder.path.is_dir():
            raise ConfigError(
                "the demo needs a folder", where=folder.path, why="this is no folder", hint="Choose another with -o."
            )
        if folder.path.is_dir() and any(path.name != "lock" for path in folder.path.iterdir()):
            why = "it is not empty, and what is in it is no demo"
            raise ConfigError("the folder is taken", where=folder.path, why=why, hint="Choose another one with -o.")
        if request.resume:
            raise ConfigError("there is no demo to go on with", where=folder.path, hint="Leave out --resume.")
        return
    if request.resume:
        differences = _differences(folder.mark, request.identity())
        if differences:
            hint = "Give the same settings, or start anew with --overwrite."
            why = "it was begun with other settings"
            raise ConfigError("the demo cannot go on", where=folder.path, why=why, faults=differences, hint=hint)
    elif not request.overwrite:
        if folder.report.is_file():
            why, hint = f"its result is in {folder.page}", "Make it anew with --overwrite, or choose another -o."
            raise ConfigError("a finished demo is here already", where=folder.path, why=why, hint=hint)
        hint = "Go on with --resume, begin anew with --overwrite, or choose another -o."
        raise ConfigError("an unfinished demo is here", where=folder.path, hint=hint)


def _differences(mark: Path, wanted: dict[str, Any]) -> list[str]:
    """The settings in which the demonstration that wrote `mark` differs, a line each."""
    try:
        begun = json.loads(mark.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = printable(error)[:200]
        raise ConfigError("the demo's own record is damaged", where=mark, why=why, hint="Use --overwrite.") from error
    if not isinstance(begun, dict):
        begun = {}
    return [f"{name}: {begun.get(name)} -> {value}" for name, value in wanted.items() if begun.get(name) != value]


def write_mark(request: DemoRequest) -> None:
    """Marks the folder as a demonstration's.

    Raises:
        ResourceError: it cannot be written.
    """
    atomic_write(request.folder.mark, to_json(request.identity()) + "\n")
