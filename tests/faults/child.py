"""Running one kind of faults in a process of its own: a line before each fault and a line after it."""

from __future__ import annotations

import json
import logging
import random
import sys
import time
from pathlib import Path

from faults import controls
from faults.catalogue import kind_named
from faults.verdicts import MESSAGES, VIOLATION, die_with_parent, outcome_of, peak_memory


def main(name: str, seed: int, count: int, start: int, folder: Path, control: str) -> None:
    """Runs faults `start` to `count` of a kind, weakened by `control` if one is named."""
    die_with_parent()
    logging.disable(logging.CRITICAL)
    kind = kind_named(name)
    if control:
        controls.CONTROLS[control].weaken()
    for index, (label, judge) in enumerate(kind.faults(random.Random(seed), folder, count)):
        if index < start:
            continue
        say({"index": index, "label": label})
        before, began = peak_memory(), time.monotonic()
        MESSAGES.clear()
        outcome, detail = outcome_of(judge)
        if peak_memory() - before > kind.memory:
            outcome, detail = VIOLATION, f"it took {(peak_memory() - before) / 1e9:.1f} GB ({outcome} {detail})"
        say(
            {
                "index": index,
                "outcome": outcome,
                "detail": detail,
                "seconds": round(time.monotonic() - began, 3),
                "message": MESSAGES[0] if MESSAGES else "",
            }
        )


def say(line: dict[str, object]) -> None:
    """One line of JSON on stdout, at once."""
    sys.__stdout__.write(json.dumps(line) + "\n")  # type: ignore[union-attr]
    sys.__stdout__.flush()  # type: ignore[union-attr]


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]), sys.argv[6])
