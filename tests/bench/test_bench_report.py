"""What a benchmark reports: whole in JSON and CSV, readable as tables, nothing invented where a figure is missing."""

from __future__ import annotations

import csv
import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from dgmn2cli.bench.agreement import compare
from dgmn2cli.bench.machine import Machine, describe_machine
from dgmn2cli.bench.names import RATIO_HEADING
from dgmn2cli.bench.rates import Rate
from dgmn2cli.bench.report import Agreement, Findings, OperatorRow, PartRow, Report, Row, StageRow, write_csv
from dgmn2cli.bench.sides import Side
from dgmn2cli.bench.tables import footer, tables
from dgmn2cli.files import to_json

OURS = Side("dgmn2cli", "cpu", "float32", "native", "fused")
PLAIN = Side("plain", "cpu", "float32", "native", "published")


def row(subject: str = "setr_pup-tiny", side: str = "dgmn2cli", **changes: object) -> Row:
    values: dict[str, object] = {
        "subject": subject, "task": "infer", "side": side, "form": "fused", "backend": "native", "dtype": "float32",
        "compiled": False, "batch": 1, "height": 769, "width": 768, "runs": 5, "median": 2.5, "p10": 2.25, "p90": 2.75,
        "per_second": 0.4, "times_as_fast": 3.25, "macs": 250 * 10**9, "parameters": 13_954_947,
    }  # fmt: skip
    return Row(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture
def report() -> Report:
    rows = [row(), row(side="plain", peak=1_600_000_000, memory_share=0.2), row("fpn-small")]
    agreements = [
        Agreement("setr_pup-tiny", "plain", "float32", "logits", 1e-5, 2e-4, "largest absolute"),
        Agreement("setr_pup-tiny", "plain", "bfloat16", "logits", 4e-2, 5e-2, "relative root mean square"),
    ]
    rates = [Rate("float32", "3x3 convolution", 224.4), Rate("float32", "copy", None, 20.1)]
    return Report("infer", describe_machine(torch.device("cpu")), rows, rates, agreements, ["the baseline cannot run"])


def test_csv_holds_every_field_and_the_machine(report: Report, tmp_path: Path) -> None:
    with write_csv(report, tmp_path / "rows.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 3
    machine = [f"machine_{field.name}" for field in fields(Machine)]
    assert list(lines[0]) == ["bench", *(field.name for field in fields(Row)), *machine]
    assert (lines[1]["side"], lines[1]["median"], lines[1]["peak"]) == ("plain", "2.5", "1600000000")
    assert lines[0]["peak"] == ""
    assert lines[2]["machine_threads"] == str(torch.get_num_threads())


def test_json_says_null_where_there_is_no_figure(report: Report) -> None:
    read = json.loads(to_json(report))
    assert read["rows"][0]["peak"] is None
    assert read["rows"][1]["peak"] == 1_600_000_000
    assert read["rates"][1] == {"dtype": "float32", "kind": "copy", "gflops": None, "gbytes": 20.1}
    assert "stand-ins" in read["weights"]


def test_one_table_per_model(report: Report) -> None:
    first, second = tables(report)
    assert first.title == "setr_pup-tiny, infer: 1 x 3 x 769 x 768, 13.95 M parameters, 250.0 G multiply-accumulates"
    assert second.title.startswith("fpn-small")
    ratio, peak = first.headings.index(RATIO_HEADING), first.headings.index("peak MB")
    assert [cells[ratio] for cells in first.rows] == ["3.25x as fast"] * 2
    assert [cells[peak] for cells in first.rows] == ["-", "1600"]
    assert set(first.numbers) < set(first.headings)


def test_other_rows_have_tables_too(report: Report) -> None:
    stages = Report("e2e", report.machine, [StageRow("m", "decode", 0.001, 0.002, 0.25, None)])
    operators = Report("profile", report.machine, [OperatorRow("m", "aten::mm", 3, 0.5, 0.75)])
    assert tables(stages)[0].rows == [("decode", "1.0", "2.0", "25.0 %", "-")]
    assert tables(operators)[0].rows == [("aten::mm", "3", "0.500", "75.0 %")]
    parts = Report("profile", report.machine, [PartRow("m", "backbone", 0.75, 0.5, "all parts")])
    assert tables(parts)[0].rows == [("backbone", "0.750", "50.0 %", "all parts")]


def test_the_footer_names_machine_rates_checks_and_gaps(report: Report) -> None:
    text = "\n".join(footer(report))
    for said in (
        f"PyTorch {torch.__version__}", f"{torch.get_num_threads()} threads", "load ",
        "float32: 3x3 convolution 224 GFLOP/s, copy 20 GB/s", "2 comparisons agree", "4.0e-02 of 5e-02",
        "Left out: the baseline cannot run", "stand-ins",
    ):  # fmt: skip
        assert said in text


def test_a_note_is_taken_once() -> None:
    findings = Findings()
    findings.note("no GPU")
    findings.note("no GPU")
    assert findings.notes == ["no GPU"]


def test_how_answers_are_compared() -> None:
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5])
    logits = compare("m", PLAIN, "logits", OURS, [a], [b])
    assert (logits.difference, logits.limit) == (0.5, 2e-4)
    gradients = compare("m", PLAIN, "gradients", OURS, [a, a], [a, b])
    assert gradients.difference == pytest.approx((0.25 / 10) ** 0.5)
    half = compare("m", Side("plain", "cpu", "bfloat16", "native", "published"), "logits", OURS, [a], [b])
    assert half.difference == pytest.approx((0.25 / 5) ** 0.5)
    assert half.limit > gradients.limit
    broken = compare("m", PLAIN, "logits", OURS, [a, a], [a, torch.tensor([torch.nan, 0.0])])
    assert not broken.difference <= broken.limit
