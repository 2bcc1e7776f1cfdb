"""Raw calls of `torch.ops.dgmn2.*`: right, or refused before an address is formed; in processes that may die."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import fuzz_operators
import pytest
import torch

from dgmn2cli.errors import ConfigError

FOLDER = Path(__file__).parent
CASES = 600


def run(code: str) -> subprocess.CompletedProcess[str]:
    """`code` in a process of its own whose freed and fresh memory is filled with a pattern."""
    path = os.pathsep.join([str(FOLDER), *sys.path])
    environment = {**os.environ, "MALLOC_PERTURB_": "165", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


def test_every_operator_is_fuzzed(native: str) -> None:
    registered = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("dgmn2::")}
    assert {f"dgmn2::{name}" for name in fuzz_operators.OPERATORS} == {
        name for name in registered if "triton" not in name
    }
    assert len(fuzz_operators.OPERATORS) == 5


def test_random_calls_are_right_or_refused(native: str) -> None:
    done = run(f"import fuzz_operators; print(fuzz_operators.run({CASES}, 3))")
    assert done.returncode == 0, done.stderr[-3000:]
    counts = {name: int(count) for name, count in re.findall(r"'([\w ]+)': (\d+)", done.stdout)}
    assert sum(counts.values()) == CASES
    assert len(counts) == 2 * len(fuzz_operators.OPERATORS)
    assert min(counts.values()) > 10


def test_without_the_checks_the_calls_do_harm(native: str) -> None:
    """Negative control."""
    done = run(
        "import fuzz_operators; from dgmn2cli.ops import operators;"
        "operators.Operator._require = lambda self, arguments: None;"
        f"fuzz_operators.run({CASES}, 3)"
    )
    assert done.returncode != 0


WRONG = {
    "tables of another map": lambda t: [*t[:2], torch.zeros(72, 64), torch.zeros(72, 64), 64, 64],
    "fewer tokens": lambda t: [t[0][:, :3], *t[1:]],
    "a negative size": lambda t: [*t[:4], -2, -2],
    "a size whose product overflows": lambda t: [*t[:4], 2**62, 4],
    "whole numbers": lambda t: [t[0].long(), *t[1:]],
    "half precision": lambda t: [t[0].half(), *t[1:]],
    "another device": lambda t: [t[0], t[1].to("meta"), *t[2:]],
    "freed memory": lambda t: [t[0], fuzz_operators.freed(t[1]), *t[2:]],
    "nothing": lambda t: [t[0], None, *t[2:]],
}


@pytest.mark.parametrize("name", WRONG)
def test_refusals(native: str, name: str) -> None:
    given = [torch.zeros(1, 4, 3, 1, 64), torch.zeros(1, 4, 1, 18), torch.zeros(10, 64), torch.zeros(10, 64), 2, 2]
    assert torch.ops.dgmn2.attention(*given).shape == (1, 4, 64)
    spoilt = WRONG[name](given)
    with pytest.raises(ConfigError, match=r"cannot run (deform_)?attention"):
        torch.ops.dgmn2.attention(*spoilt)
    with pytest.raises(ConfigError, match=r"cannot run (deform_)?attention"):
        torch.ops.dgmn2.attention_backward(torch.zeros(1, 4, 64), *spoilt)


@pytest.mark.parametrize("shape", [(1, 4, 63), (1, 3, 64), (4, 64), (0,)])
def test_a_gradient_of_another_shape_is_refused(native: str, shape: tuple[int, ...]) -> None:
    given = [torch.zeros(1, 4, 3, 1, 64), torch.zeros(1, 4, 1, 18), torch.zeros(10, 64), torch.zeros(10, 64), 2, 2]
    with pytest.raises(ConfigError, match="grad"):
        torch.ops.dgmn2.attention_backward(torch.zeros(shape), *given)
    with pytest.raises(ConfigError, match="grad"):
        torch.ops.dgmn2.unfold_backward(
            torch.zeros(shape), torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 3), [1, 1, 1, 1, 0, 0, 1, 1, 1]
        )


def test_the_ring_of_an_enlarged_convolution_must_hold_what_a_step_reads(native: str) -> None:
    products, bias = torch.zeros(2 * 4, 9 * 16), torch.zeros(16)
    ring, out = torch.zeros(2, 8, 3, 16), torch.zeros(2, 8, 16)
    torch.ops.dgmn2.upsampled_rows(products, ring, out, bias, 4, 4, 8, 0, 0)
    for changed in (
        (products, ring[:1], out, bias, 4, 4, 8, 0, 0),  # fewer rows than the step needs
        (products, ring, out, bias, 4, 4, 8, 0, 5),  # rows of the result that come later
        (products, ring, out, bias, 4, 4, 8, 3, 0),  # source rows beyond the map
        (products, ring, out.mT.contiguous().mT, bias, 4, 4, 8, 0, 0),
        (products.double(), ring, out, bias, 4, 4, 8, 0, 0),
    ):
        with pytest.raises(ConfigError, match="upsampled_rows"):
            torch.ops.dgmn2.upsampled_rows(*changed)
    with pytest.raises(ConfigError, match="no derivative"):
        torch.ops.dgmn2.upsampled_rows(products.requires_grad_(), ring, out, bias, 4, 4, 8, 0, 0)
