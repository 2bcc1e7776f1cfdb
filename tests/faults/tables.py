"""The tables of docs/faults.md: `python -m faults.tables build/faults.json` prints them from a report."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def kinds_table(report: dict[str, Any]) -> list[str]:
    """A line for each kind, and their sum."""
    names = ("refused", "right", "unseeable", "skipped")
    head = "| kind | faults | refused | taken rightly | cannot be noticed | not possible here | violations |"
    lines, sums = [head, "| --- " + "| --: " * 6 + "|"], [0] * 6
    for kind in report["kinds"]:
        outcomes = kind["outcomes"]
        counts = [sum(n for outcome, n in outcomes.items() if outcome.split()[0] == name) for name in names]
        row = [kind["run"], *counts, kind["violations"]]
        sums = [total + value for total, value in zip(sums, row, strict=True)]
        lines.append(f"| {kind['kind']} | " + " | ".join(f"{value:,}" for value in row) + " |")
    return [*lines, "| **all** | " + " | ".join(f"**{value:,}**" for value in sums) + " |"]


def controls_table(report: dict[str, Any]) -> list[str]:
    """A line for each control."""
    lines = ["| weakened | kind of faults | run | violations |", "| --- | --- | --: | --: |"]
    return lines + [f"| {c['control']} | {c['kind']} | {c['run']} | {c['violations']} |" for c in report["controls"]]


if __name__ == "__main__":
    found = json.loads(Path(sys.argv[1]).read_text())
    sys.stdout.write("\n".join([*kinds_table(found), "", *controls_table(found)]) + "\n")
