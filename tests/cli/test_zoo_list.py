"""`dgmn2 zoo list`: which models its conditions leave, and in which order."""

from __future__ import annotations

import json

import pytest

from dgmn2cli.cli import main


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, float | str]]:
    capsys.readouterr()
    assert main(["zoo", "list", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)["models"]


def test_conditions_and_order(capsys: pytest.CaptureFixture[str]) -> None:
    everything = listed(capsys)
    assert len(everything) == 16
    chosen = listed(capsys, "--min-miou", "80", "--max-gmacs", "300", "--sort", "miou")
    expected = [m for m in everything if m["miou"] >= 80 and m["macs_769"] <= 300e9]
    assert 0 < len(expected) < 16
    assert chosen == sorted(expected, key=lambda m: -m["miou"])
    for name, key in (("key", "key"), ("params", "params"), ("gmacs", "macs_769")):
        values = [m[key] for m in listed(capsys, "--sort", name)]
        assert values == sorted(values)
    flipped = [m["miou_ms_flip"] for m in listed(capsys, "--sort", "ms-flip")]
    assert flipped == sorted(flipped, reverse=True)


def test_the_pareto_front_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    everything = listed(capsys)
    front = {
        a["key"]
        for a in everything
        if not any(
            (b["miou"] >= a["miou"] and b["macs_769"] < a["macs_769"])
            or (b["miou"] > a["miou"] and b["macs_769"] <= a["macs_769"])
            for b in everything
        )
    }
    assert {m["key"] for m in listed(capsys, "--pareto")} == front
    assert 1 < len(front) < 16
    assert {m["key"] for m in listed(capsys, "setr_pup", "--pareto")} >= {"setr_pup-tiny"}


def test_nothing_left_and_nonsense(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zoo", "list", "--min-miou", "99"]) == 2
    assert "none fulfils all conditions" in capsys.readouterr().err
    for wrong in (["--min-miou", "nan"], ["--max-gmacs", "-1"], ["--sort", "beauty"]):
        assert main(["zoo", "list", *wrong]) == 2
