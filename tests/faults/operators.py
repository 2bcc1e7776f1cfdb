"""Raw calls of the registered operators with arguments that do not fit, in processes of their own."""

from __future__ import annotations

import ctypes
import importlib
import random
import sys
from pathlib import Path

import torch
from ops import fuzz_operators

from faults.verdicts import REFUSED, RIGHT, Faults, Kind, Violation, in_child

_PERTURB = -6  # of mallopt: fresh and freed memory is filled with a pattern
CALLS = 10  # in each process


def _calls(seed: int) -> int:
    """The calls; what came of the last one goes to stdout, what was called before to stderr."""
    ctypes.CDLL(None).mallopt(_PERTURB, 165)
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    chance, outcomes = random.Random(seed), set()
    for _ in range(CALLS):
        name, arguments = fuzz_operators.draw(chance)
        sys.stderr.write(f"{name} {fuzz_operators.described(arguments)}\n")
        sys.stderr.flush()
        outcomes.add(fuzz_operators.call(name, arguments))
        if not outcomes <= {"ran", "refused"}:
            break
    sys.stdout.write(",".join(sorted(outcomes)))
    return 0


def raw_calls(rng: random.Random, folder: Path, count: int) -> Faults:
    """Each gives what the definition gives or an error; negative sizes an error; the process lives on."""
    importlib.import_module("torch._dynamo")  # as the definition does: here once, not in every process
    for index in range(count):
        seed = rng.randrange(1 << 30)

        def judge(seed: int = seed) -> str:
            code, out, err = in_child(lambda: _calls(seed))
            last = err.strip().splitlines()[-1:]
            if code or not set(out.split(",")) <= {"ran", "refused"}:
                raise Violation(f"exit code {code}, {out or 'no answer'}: {last[0][:300] if last else ''}")
            return RIGHT if "ran" in out else REFUSED

        yield f"{index} {CALLS} calls, seed {seed}", judge


KINDS = (Kind("raw call of an operator", raw_calls, 500, 12, forks=True),)
