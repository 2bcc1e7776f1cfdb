"""What a benchmark reports: whole in JSON and CSV, readable as tables, nothing invented where a figure is missing."""

from __future__ import annotations

import csv
import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from dgmn2cli.bench import RATIO_HEADING
from dgmn2cli.bench.implementations import Agreement, Implementation, compare
from dgmn2cli.bench.report import Machine, PartRow, Report, Row, describe_machine, write_csv
from dgmn2cli.bench.tables import bar_groups, footer, tables
from dgmn2cli.bench.timing import Rate
from dgmn2cli.files import to_json

OURS = Implementation("dgmn2cli", "cpu", "float32", "native", "fused")
PLAIN = Implementation("plain", "cpu", "float32", "native", "published")


def row(name: str = "setr_pup-tiny", implementation: str = "dgmn2cli", **changes: object) -> Row:
    values: dict[str, object] = {
        "name": name, "task": "infer", "implementation": implementation, "form": "fused", "backend": "native",
        "dtype": "float32",
        "compiled": False, "batch": 1, "height": 769, "width": 768, "runs": 5, "median": 2.5, "p10": 2.25, "p90": 2.75,
        "per_second": 0.4, "times_as_fast": 3.25, "macs": 250 * 10**9, "parameters": 13_954_947,
    }  # fmt: skip
    return Row(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture
def report() -> Report:
    rows = [row(), row(implementation="plain", peak=1_600_000_000, memory_share=0.2), row("fpn-small")]
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
    assert (lines[1]["implementation"], lines[1]["median"], lines[1]["peak"]) == ("plain", "2.5", "1600000000")
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
    assert first[0] == "setr_pup-tiny, infer: 1 x 3 x 769 x 768, 13.95 M parameters, 250.0 G multiply-accumulates"
    assert second[0].startswith("fpn-small")
    assert [cells[RATIO_HEADING] for cells in first[1]] == ["3.25x as fast"] * 2
    assert [cells["peak MB"] for cells in first[1]] == ["-", "1600"]


def test_other_rows_have_tables_too(report: Report, tmp_path: Path) -> None:
    decode = PartRow("m", "decode", 0.001, 0.25, "file to mask", 0.002)
    whole = PartRow("m", "wall", 0.004, 1.0, "file to mask", 0.004, per_second=250.0)
    cells = {"part": "decode", "seconds": "0.001", "share": "25.0 %", "p95": "0.002", "per second": "-"}
    last = {"part": "wall", "seconds": "0.004", "share": "100.0 %", "p95": "0.004", "per second": "250"}
    stages = Report("e2e", report.machine, [decode, whole])
    assert tables(stages) == [("m, of file to mask", [cells, last])]
    assert [bar.label for group in bar_groups(stages) for bar in group.bars] == ["decode"]
    operator = PartRow("m", "aten::mm", 0.5, 0.75, "all operators", calls=3)
    profile = Report("profile", report.machine, [operator, PartRow("m", "backbone", 0.75, 0.5, "all parts")])
    first, second = tables(profile)
    assert first == ("m, of all operators", [{"part": "aten::mm", "seconds": "0.5", "share": "75.0 %", "calls": "3"}])
    assert second == ("m, of all parts", [{"part": "backbone", "seconds": "0.75", "share": "50.0 %"}])
    with write_csv(profile, tmp_path / "p.csv").open(newline="") as file:
        assert [line["part"] for line in csv.DictReader(file)] == ["aten::mm", "backbone"]


def test_a_decoders_table_says_how_long_it_takes(report: Report) -> None:
    decoded = Report("decode", report.machine, [row("JPEG", task="decode", times_as_fast=1), row("JPEG", "opencv")])
    [(title, rows)] = tables(decoded)
    assert title == "JPEG, 768 x 769"
    assert [cells["dgmn2cli takes"] for cells in rows] == ["1.00x as long", "0.31x as long"]
    assert "Weights" not in "".join(footer(decoded))


def test_the_footer_names_machine_rates_checks_and_gaps(report: Report) -> None:
    text = "\n".join(footer(report))
    for said in (
        f"PyTorch {torch.__version__}", f"{torch.get_num_threads()} thread", "load ",
        "float32: 3x3 convolution 224 GFLOP/s, copy 20 GB/s", "2 comparisons agree", "4.0e-02 of 5e-02",
        "Left out: the baseline cannot run", "stand-ins",
    ):  # fmt: skip
        assert said in text


def test_a_note_is_taken_once(report: Report) -> None:
    report.note("no GPU")
    report.note("no GPU")
    assert report.notes == ["the baseline cannot run", "no GPU"]


def test_how_answers_are_compared() -> None:
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5])
    logits = compare("m", PLAIN, "logits", OURS, [a], [b])
    assert (logits.difference, logits.limit) == (0.5, 2e-4)
    gradients = compare("m", PLAIN, "gradients", OURS, [a, a], [a, b])
    assert gradients.difference == pytest.approx((0.25 / 10) ** 0.5)
    half = compare("m", Implementation("plain", "cpu", "bfloat16", "native", "published"), "logits", OURS, [a], [b])
    assert half.difference == pytest.approx((0.25 / 5) ** 0.5)
    assert half.limit > gradients.limit
    broken = compare("m", PLAIN, "logits", OURS, [a, a], [a, torch.tensor([torch.nan, 0.0])])
    assert not broken.difference <= broken.limit
