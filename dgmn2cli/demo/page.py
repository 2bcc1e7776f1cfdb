"""Owns the page that shows a demonstration: one HTML file that needs no network and no other file."""

from __future__ import annotations

import base64
import math
import os
import shlex
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from urllib.parse import quote

from dgmn2cli.demo.pictures import ShownScene
from dgmn2cli.demo.report import ClassFigures, DemoReport, duration
from dgmn2cli.files import atomic_write

_KINDS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp", ".bmp": "bmp"}


def write_page(report: DemoReport, scenes: Sequence[ShownScene], photograph: Path, credit: str) -> Path:
    """Writes `report.page`. Pictures are part of it; links lead to files beside it.

    Args:
        report: what to show.
        scenes: the held-out scenes to show.
        photograph: the picture that was segmented.
        credit: who made it; empty for a picture of the user's.

    Raises:
        ResourceError: a picture is gone, or the page cannot be written.
    """
    template = Template(files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    return atomic_write(report.page, template.substitute(_parts(report, scenes, photograph, credit)))


def percent(fraction: float) -> str:
    """`58.5`, or `n/a`."""
    return "n/a" if math.isnan(fraction) else f"{100 * fraction:.1f}"


def commands(report: DemoReport) -> str:
    """What to type next, a command a line."""
    config, weights = (shlex.quote(str(path)) for path in (report.run / "config.toml", report.training.checkpoint))
    scale = "x".join(str(2 * side) for side in report.size)
    root = shlex.quote(str(report.data))
    return (
        f"# the same evaluation, with every figure\n"
        f"dgmn2 eval {config} --checkpoint {weights} --data-root {root}\n"
        f"# pictures of yours\n"
        f"dgmn2 infer picture.jpg -m {config} --checkpoint {weights} --scale {scale}\n"
        f"# the same training again, twice as long\n"
        f"dgmn2 train {config} --max-iters {2 * report.training.iterations} --out longer"
    )


def _parts(report: DemoReport, scenes: Sequence[ShownScene], photograph: Path, credit: str) -> dict[str, str]:
    """What stands in the template's places, as HTML."""
    trained, picture = report.training, report.photograph
    overlay = picture.outputs["overlay"]
    passes = trained.iterations * report.batch_size / report.train_scenes
    largest = ", ".join(f"{escape(share.name)} ({percent(share.share)} %)" for share in picture.classes[:3])
    return {
        "miou": percent(report.single_scale.mean_iou),
        "miou_ms": percent(report.ms_flip.mean_iou),
        "accuracy": percent(report.single_scale.pixel_accuracy),
        "largest": escape(report.largest),
        "largest_share": percent(report.largest_share),
        "constant": percent(report.constant_mean_iou),
        "val_scenes": str(report.val_scenes),
        "heading": "A network learns to see streets" + ("" if report.resumed else f" in {duration(trained.seconds)}"),
        "intro": (
            f"{trained.model}, the smallest of the published designs, started here from fresh weights and saw "
            f"{report.train_scenes} drawn street scenes of {report.size[0]} &times; {report.size[1]} pixels. The "
            f"figures below are measured on {report.val_scenes} other drawings. They show that the whole workflow "
            f"runs on this machine; they say nothing about the published models on real streets."
        ),
        "scenes": "\n".join(_scene(scene, report.out) for scene in scenes),
        "classes": "\n".join(_class_row(entry) for entry in sorted(report.classes, key=lambda entry: -entry.share)),
        "recipe": (
            f"{trained.iterations} steps of {report.batch_size} crops of {report.crop} &times; {report.crop} "
            f"pixels ({passes:.0f} passes over the scenes, mirrored at random), AdamW, learning rate {report.lr:g} "
            f"falling to 0, rare classes weighted up, seed {report.seed}. The mean IoU is that of the held-out scenes; "
            f"the last step&rsquo;s weights are used, none were picked by it."
        ),
        "curves": _embedded(report.curves),
        "curves_link": _link(report.curves, report.out),
        "photograph": _embedded(photograph),
        "photograph_note": (
            f"The same network on a photograph: {largest} ... It has seen nothing but a few drawings, so expect "
            f"little; the published weights are made for such pictures."
        ),
        "credit": escape(credit or photograph.name),
        "overlay": _embedded(overlay),
        "overlay_link": _link(overlay, report.out),
        "steps": "\n".join(_step_row(report, number) for number in range(len(report.steps))),
        "machine": (
            f"On {escape(report.device)}."
            + (" An interrupted run did a part of it; the times are those of the last run." if report.resumed else "")
        ),
        "sheet_link": _link(report.sheet, report.out),
        "single_link": _link(report.single_scale.report, report.out),
        "ms_link": _link(report.ms_flip.report, report.out),
        "commands": escape(commands(report)),
    }


def _scene(scene: ShownScene, out: Path) -> str:
    tiles = [(scene.picture, "", scene.name), (scene.truth, "map", "truth"), (scene.prediction, "map", "prediction")]
    figures = "".join(
        f'<figure><a href="{_link(path, out)}"><img class="{kind}" src="{_embedded(path)}" '
        f'alt="{escape(scene.name)}: {escape(text)}"></a><figcaption>{escape(text)}</figcaption></figure>'
        for path, kind, text in tiles
    )
    return f'<div class="row">{figures}</div>'


def _class_row(entry: ClassFigures) -> str:
    color = "rgb({}, {}, {})".format(*entry.color)
    width = 0 if math.isnan(entry.iou) else 100 * entry.iou
    return (
        f'<tr><td><span class="swatch" style="background: {color}"></span>{escape(entry.name)}</td>'
        f'<td class="n">{percent(entry.share)} %</td><td class="n">{percent(entry.iou)}</td>'
        f'<td class="n">{percent(entry.iou_ms_flip)}</td>'
        f'<td class="bar"><i style="width: {width:.1f}%"></i></td></tr>'
    )


def _step_row(report: DemoReport, number: int) -> str:
    step = report.steps[number]
    link = f'<a href="{_link(step.where, report.out)}">{escape(_relative(step.where, report.out))}</a>'
    return (
        f'<tr><td>{escape(step.what)}</td><td class="n">{duration(step.seconds)}</td>'
        f"<td>{escape(step.found)}</td><td>{link}</td></tr>"
    )


def _relative(path: Path, out: Path) -> str:
    return Path(os.path.relpath(path, out)).as_posix()


def _link(path: Path, out: Path) -> str:
    return quote(_relative(path, out))


def _embedded(path: Path) -> str:
    """The picture as a `data:` address."""
    return f"data:image/{_KINDS[path.suffix.lower()]};base64,{base64.b64encode(path.read_bytes()).decode()}"
