"""`dgmn2 benchmark` end to end, on windows small enough to say nothing about speed."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import pytest

from dgmn2cli.bench import baseline, chart
from dgmn2cli.bench.agreement import require
from dgmn2cli.bench.baseline import plain_attention
from dgmn2cli.bench.chart import WIDTH
from dgmn2cli.bench.report import Agreement
from dgmn2cli.cli import main
from dgmn2cli.errors import CheckFailed

SMALL = ("--window", "65", "--iters", "1", "--warmup", "0")


def test_infer_beside_the_plain_design(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "rows.csv"
    plot = tmp_path / "bars.png"
    files = ["--csv", str(table), "--plot", str(plot)]
    code = main(["benchmark", "setr_naive-tiny", *SMALL, "--against", "plain", "--json", *files])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    text = captured.out
    report = json.loads(text)
    assert "plain" in text
    assert "sha256" not in text
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) >= 2
    assert [row["side"] for row in report["rows"]] == ["dgmn2cli", "plain"]
    bars = cv2.imread(str(plot))
    assert bars.shape[1] == WIDTH
    blue, orange = (int((bars == color).all(2).sum()) for color in (chart._TIME, chart._MEMORY))
    assert blue > 500
    assert orange > 500  # two groups: times and memory


@pytest.mark.parametrize("kind", ["op", "e2e", "profile", "train"])
def test_every_kind_of_measurement(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    extra = ["--input", "96x64"] if kind == "e2e" else []
    code = main(["benchmark", "setr_naive-tiny", *SMALL, "--bench", kind, "--against", "plain", "--no-memory", *extra])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert captured.out.strip()


def test_operators_make_no_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "bars.png"
    assert main(["benchmark", "setr_naive-tiny", *SMALL, "--bench", "profile", "--plot", str(plot)]) == 2
    assert "nothing to draw" in capsys.readouterr().err
    assert not plot.exists()


def test_an_impossible_side_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", *SMALL, "--against", "faster"]) == 2
    assert "faster" in capsys.readouterr().err


@pytest.mark.parametrize("difference", [3e-4, float("nan")])
def test_sides_that_disagree_get_no_figures(difference: float) -> None:
    agreement = Agreement("model", "plain", "float32", "logits", difference, 2e-4, "largest absolute")
    with pytest.raises(CheckFailed, match="do not agree"):
        require(agreement)


def test_a_wrong_side_is_found_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(baseline, "plain_attention", lambda *given: 1.01 * right(*given))
    right = plain_attention
    assert main(["benchmark", "setr_naive-tiny", *SMALL, "--against", "plain", "--no-memory"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "do not agree" in captured.err
