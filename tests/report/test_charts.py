"""Charts: what is drawn is the data, on any machine, whatever the names are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
import pytest

from dgmn2cli.errors import ResourceError
from dgmn2cli.plotting import BLUE, ORANGE
from dgmn2cli.report import charts
from dgmn2cli.report.charts import Bar, BarGroup, bar_chart, training_curves

STEPS: list[dict[str, Any]] = [
    {"iter": i, "loss": 3 / i, "acc": None if i == 7 else 50 + i / 10, "lr": 1e-4} for i in range(1, 101)
]
EVALUATIONS: list[dict[str, Any]] = [
    {"iter": 50, "miou": 0.25, "aacc": 0.5}, {"iter": 75, "miou": None}, {"iter": 100, "miou": 0.5, "aacc": 0.6},
]  # fmt: skip


def painted(path: Path, color: str) -> np.ndarray:
    """Where the image has a color, `(N, 2)` rows and columns."""
    wanted = [int(color[i : i + 2], 16) for i in (5, 3, 1)]
    return np.argwhere((cv2.imread(str(path)) == wanted).all(2))


def test_curves_show_the_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, np.ndarray] = {}
    save = charts.save_figure

    def note(figure: Any, path: Path) -> Path:
        seen.update({axes.get_title(loc="left"): axes.lines[-1].get_xydata() for axes in figure.axes if axes.lines})
        return save(figure, path)

    monkeypatch.setattr(charts, "save_figure", note)
    image = cv2.imread(str(training_curves(iter(STEPS + EVALUATIONS), tmp_path / "curves.png", "fpn_$tiny$ 街")))
    assert image.shape == (860, 1280, 3)
    assert list(seen) == ["loss", "accuracy in % of all pixels", "learning rate", "mean IoU in %"]
    assert seen["mean IoU in %"].tolist() == [[50, 25], [100, 50]]
    means = [3, *((3 / i + 3 / (i - 1)) / 2 for i in range(2, 101))]  # of a fortieth of the steps, two
    assert np.allclose(seen["loss"][:, 1], means)
    assert len(seen["accuracy in % of all pixels"]) == 99
    assert len(painted(tmp_path / "curves.png", BLUE)) > 500


@pytest.mark.parametrize("records", [[], STEPS[:1], EVALUATIONS[1:2]])
def test_the_first_steps_and_none_can_be_drawn(records: list[dict[str, Any]], tmp_path: Path) -> None:
    assert cv2.imread(str(training_curves(records, tmp_path / "c.png"))) is not None


def test_svg_is_the_same_twice_and_needs_no_fonts(tmp_path: Path) -> None:
    first, second = (training_curves(STEPS, tmp_path / name, "a & b").read_text() for name in ("a.svg", "b.svg"))
    assert first == second
    assert "<svg" in first
    assert "<text" not in first


def test_bars_are_as_long_as_their_values(tmp_path: Path) -> None:
    groups = [
        BarGroup("time", [Bar("ours", 1, "1.00 x"), Bar("theirs", 4, "4.00 x")]),
        BarGroup("memory", [Bar("one$", 5, "5 $MB$")], ORANGE),
    ]
    path = bar_chart(groups, tmp_path / "bars.png", "title", "machine")
    blue, orange = painted(path, BLUE), painted(path, ORANGE)
    rows = np.unique(blue[:, 0])
    upper, lower = (
        blue[np.isin(blue[:, 0], part)] for part in np.split(rows, np.flatnonzero(np.diff(rows) > 3) + 1)
    )  # the two bars
    assert np.ptp(lower[:, 1]) / np.ptp(upper[:, 1]) == pytest.approx(4, rel=0.03)
    assert orange[:, 0].min() > lower[:, 0].max()


def test_without_display_and_home_nothing_is_said(tmp_path: Path) -> None:
    """And the user's own matplotlib settings change nothing."""
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nbackend: TkAgg\n")
    code = "from dgmn2cli.report.charts import training_curves; training_curves([], 'c.png', 'x_y')"
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "HOME")}
    environment |= {"MATPLOTLIBRC": str(tmp_path / "matplotlibrc"), "MPLCONFIGDIR": "/proc/nowhere"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "c.png").is_file()


def test_the_callers_own_style_stays(tmp_path: Path) -> None:
    with matplotlib.rc_context({"font.size": 23}):
        training_curves(STEPS, tmp_path / "c.png")
        assert matplotlib.rcParams["font.size"] == 23


def test_a_folder_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.png").mkdir()
    with pytest.raises(ResourceError):
        training_curves(STEPS, tmp_path / "c.png")
