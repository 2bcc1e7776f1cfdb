"""Draws the picture at README's head. Use, after `dgmn2 demo -o DIR`: python docs/street_picture.py DIR [NUMBER] [X,Y]

A drawn street that the demo held out of its training, the mask of the network trained on the others, and what the
network's last block attended to at one pixel.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import matplotlib
import numpy as np

import dgmn2cli
from dgmn2cli.data.images import read_image
from dgmn2cli.inference.graph_figure import HEADS, dimmed

SHOWN = 44  # pixels to either side of the one that is explained
OUT = Path(__file__).with_name("street.png")


def main(demo: Path, number: int, at: tuple[float, float]) -> None:
    """Writes `street.png` beside this file."""
    matplotlib.use("agg")
    from matplotlib import pyplot

    [path] = (demo / "data" / "leftImg8bit" / "val").rglob(f"*_{number:06d}_000019_leftImg8bit.png")
    segmenter = dgmn2cli.load(str(demo / "run" / "config.toml"), demo / "run" / "checkpoints" / "best.pth")
    image = read_image(path)
    mask = np.array(segmenter.classes.palette, np.uint8)[segmenter.predict(path).ids][:, :, ::-1]
    block = segmenter.explain(path, *at).blocks[-1]
    figure, axes = pyplot.subplots(1, 3, figsize=(12, 2.1), dpi=100)
    colors = [cv2.cvtColor(np.ascontiguousarray(shown), cv2.COLOR_BGR2RGB) for shown in (image, mask)]
    for axis, shown in zip(axes, (*colors, dimmed(image)), strict=True):
        axis.imshow(shown, interpolation="nearest")
        axis.set_axis_off()
    for head, color in zip(block.heads, HEADS, strict=False):
        for x, y, weight in head.nodes:
            axes[2].plot([at[0], x], [at[1], y], color=color, linewidth=0.4 + 2 * weight, alpha=0.8)
            axes[2].scatter([x], [y], s=10 + 160 * weight, color=color, edgecolors="black", linewidths=0.4, zorder=3)
    axes[2].plot(*at, marker="+", color="white", markersize=11, markeredgewidth=2, zorder=4)
    axes[2].set_xlim(at[0] - SHOWN, at[0] + SHOWN)
    axes[2].set_ylim(at[1] + SHOWN / 2, at[1] - SHOWN / 2)
    figure.subplots_adjust(0, 0, 1, 1, wspace=0.02)
    figure.savefig(OUT, transparent=True)


if __name__ == "__main__":
    x, y = (sys.argv[3] if len(sys.argv) > 3 else "120,80").split(",")
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 2, (float(x), float(y)))
