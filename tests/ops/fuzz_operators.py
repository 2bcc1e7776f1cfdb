"""Calls every registered operator raw, with arguments that fit and arguments that do not; run as a program.

`python fuzz_operators.py CASES SEED`. Each call equals the definition or raises an error of PyTorch's or of ours; a
kernel that trusted an argument ends the process (run it with MALLOC_PERTURB_ or under a sanitizer to see more).
Prints one line: cases, those that ran and those refused, by operator.
"""

from __future__ import annotations

import contextlib
import math
import random
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import dgmn2cli.ops.upsampled  # noqa: F401  # registers its operator
from dgmn2cli.errors import Dgmn2Error
from dgmn2cli.ops import native
from dgmn2cli.ops.contract import output_size
from dgmn2cli.ops.resample import source_rows

REFUSALS = (Dgmn2Error, RuntimeError, ValueError, TypeError, IndexError, OverflowError, NotImplementedError)
NUMBERS = (0, -1, 1, 2, 3, 64, -(2**31), 2**31 - 1, 2**31, 2**32 + 1, 2**62, -(2**63), 2**63 - 1, 2**63)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ODD_DTYPES = (torch.int64, torch.bool, torch.complex64, torch.uint8, torch.float8_e4m3fn)
TOLERANCE = {torch.bfloat16: 5e-2, torch.float16: 5e-3, torch.float32: 1e-4, torch.float64: 1e-10}  # coarsest first


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def attention_arguments(random: random.Random) -> list[Any]:
    batch, height, width, heads, depth = (random.randint(low, high) for low, high in ((0, 3), *([(1, 6)] * 4)))
    count = height * width
    tensors = drawn(batch, count, 3, heads, depth), drawn(batch, count, heads, 18) * 2
    return [*tensors, drawn(height + 8, depth), drawn(width + 8, depth), height, width]


def unfold_arguments(random: random.Random) -> list[Any]:
    batch, groups, height, width = (
        random.randint(0, 2),
        random.randint(1, 3),
        random.randint(1, 7),
        random.randint(1, 7),
    )
    geometry = [random.randint(1, 3) for _ in range(4)] + [random.randint(0, 2) for _ in range(2)]
    geometry = [*geometry, random.randint(1, 2), random.randint(1, 2)]
    out = output_size((height, width), geometry)
    channels = groups * random.randint(1, 2)
    offset = drawn(batch, groups * 2 * geometry[0] * geometry[1], max(out[0], 0), max(out[1], 0)) * 2
    return [drawn(batch, channels, height, width), offset, [*geometry, groups]]


def upsampled_arguments(random: random.Random) -> list[Any]:
    """The one step in which a whole small map is multiplied."""
    height, width, channels = random.randint(1, 5), random.randint(1, 5), random.randint(1, 20)
    out_height, out_width = random.randint(1, 12), random.randint(1, 12)
    tensors = drawn(height * width, 9 * channels), drawn(height, out_width, 3, channels), drawn(channels)
    out = drawn(out_height, out_width, channels)
    return [tensors[0], tensors[1], out, tensors[2], height, width, out_height, 0, 0, random.random() < 0.5]


def with_gradient(make: Callable[[random.Random], list[Any]], name: str) -> Callable[[random.Random], list[Any]]:
    def made(random: random.Random) -> list[Any]:
        arguments = make(random)
        return [drawn(*native_operator(name).outputs(*arguments)[0][0]), *arguments]

    return made


def native_operator(name: str) -> Any:
    return getattr(native, name)


def in_double(arguments: list[Any]) -> list[Any]:
    return [argument.double() if isinstance(argument, Tensor) else argument for argument in arguments]


def define(name: str) -> Callable[..., tuple[Tensor, ...]]:
    definition = native_operator(name).definition
    return lambda *arguments: (definition(*in_double(list(arguments))),)


def define_backward(name: str) -> Callable[..., tuple[Tensor, ...]]:
    operator = native_operator(name)

    def defined(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        count = len(operator.tensors)
        leaves = [argument.detach().requires_grad_() for argument in in_double(list(arguments[:count]))]
        return torch.autograd.grad(operator.definition(*leaves, *arguments[count:]), leaves, grad.double())

    return defined


def define_upsampled(
    products: Tensor, ring: Tensor, out: Tensor, bias: Tensor, height: int, width: int, out_height: int, *rest: Any
) -> tuple[Tensor, ...] | None:
    """Of a step that makes the whole map; a part of it is only known to stay within its arguments."""
    *step, relu = rest
    if step != [0, 0] or products.shape[0] != height * width or out.shape[0] != out_height:
        return None
    out_width, channels = ring.shape[1], bias.shape[0]
    taps = products.double().view(height, width, 3, 3, channels)
    rows, columns = matrix(height, out_height), matrix(width, out_width)
    large = torch.einsum("yh,xw,hwijc->yxijc", rows, columns, taps)
    padded = F.pad(large, (0, 0, 0, 0, 0, 0, 1, 1, 1, 1))
    total = sum(padded[i : i + out_height, j : j + out_width, i, j] for i in range(3) for j in range(3))
    total = total + bias.double()
    return (total.relu() if relu else total,)


def matrix(length: int, target: int) -> Tensor:
    upper, lower, weight = source_rows(length, target)
    made = torch.zeros(target, length, dtype=torch.float64)
    place = torch.arange(target)
    made.index_put_((place, upper), 1 - weight.double(), accumulate=True)
    made.index_put_((place, lower), weight.double(), accumulate=True)
    return made


OPERATORS: dict[str, tuple[Callable[[random.Random], list[Any]], Callable[..., tuple[Tensor, ...] | None]]] = {
    "attention": (attention_arguments, define("attention")),
    "attention_backward": (with_gradient(attention_arguments, "attention"), define_backward("attention")),
    "unfold": (unfold_arguments, define("unfold")),
    "unfold_backward": (with_gradient(unfold_arguments, "unfold"), define_backward("unfold")),
    "upsampled_rows": (upsampled_arguments, define_upsampled),
}


def strided(tensor: Tensor, random: random.Random) -> Tensor:
    """The same numbers, otherwise laid out."""
    if tensor.dim() < 2:
        return torch.stack([tensor, tensor], -1)[..., 0]
    first, second = random.sample(range(tensor.dim()), 2)
    return tensor.transpose(first, second).contiguous().transpose(first, second)


def reshaped(tensor: Tensor, random: random.Random) -> Tensor:
    shape = list(tensor.shape)
    change = random.randrange(6)
    if change == 0 or not shape:
        return drawn(*shape, 1).to(tensor.dtype)
    place = random.randrange(len(shape))
    if change == 1:
        return tensor.narrow(place, 0, max(0, shape[place] - 1))
    if change == 2:
        return torch.cat([tensor, tensor], place)
    if change == 3:  # huge, with no memory behind it
        shape[place] = random.choice((2**20, 2**31, 2**40))
        return torch.zeros((), dtype=tensor.dtype).expand(shape) if math.prod(shape) < 2**60 else tensor[..., :0]
    if change == 4:
        return tensor.flatten()
    shape[place] = 0
    return tensor.new_empty(shape)


def freed(tensor: Tensor) -> Tensor:
    tensor = tensor.clone()
    tensor.untyped_storage().resize_(0)
    return tensor


def lost(tensor: Tensor) -> bool:
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not torch._is_zerotensor(tensor)
    return plain and tensor.numel() > 0 and tensor.untyped_storage().nbytes() == 0


def spoil(arguments: list[Any], random: random.Random) -> list[Any]:
    """One argument made into something else."""
    arguments = list(arguments)
    place = random.randrange(len(arguments))
    value = arguments[place]
    if value == [] or any(isinstance(argument, Tensor) and lost(argument) for argument in arguments):
        return arguments
    if isinstance(value, Tensor):
        changes: list[Callable[[], Any]] = [
            lambda: value.to(random.choice(ODD_DTYPES)),
            lambda: value.to(random.choice(DTYPES)),
            lambda: strided(value, random),
            lambda: reshaped(value, random),
            lambda: value.to("meta"),
            lambda: value.to_sparse() if value.is_contiguous() else value.mT,
            lambda: freed(value) if value.is_contiguous() else value,
            lambda: torch._efficientzerotensor(value.shape, dtype=value.dtype),
            lambda: None,
        ]
    elif isinstance(value, list):
        changed = list(value)
        changed[random.randrange(len(value))] = random.choice(NUMBERS)
        changes = [lambda: changed, lambda: value[:-1], lambda: [*value, 1], lambda: []]
    else:
        changes = [lambda: random.choice(NUMBERS), lambda: value + random.choice((-1, 1)), lambda: 2.5]
    arguments[place] = random.choice(changes)()
    return arguments


def displaced(name: str, arguments: list[Any], random: random.Random) -> list[Any]:
    """Some offsets far outside the map, or not finite."""
    arguments, place = list(arguments), 2 if name.endswith("_backward") else 1
    if name == "upsampled_rows" or not arguments[place].numel():
        return arguments
    values = [1e30, -1e30, 2.0**31, -(2.0**63)] + ([math.nan, math.inf] if place == 1 else [])
    arguments[place] = arguments[place].clone()
    arguments[place].view(-1)[:: random.randint(1, 50)] = random.choice(values)
    return arguments


def agrees(ours: Any, expected: tuple[Tensor, ...], dtype: torch.dtype, spreads: bool = False) -> bool:
    """Whether each result is finite where the expected one is, and near it; `spreads`: more of it may be NaN."""
    results = ours if isinstance(ours, tuple) else (ours,)
    for one, other in zip(results, expected, strict=True):
        if one.device.type == "meta":
            continue
        if one.shape != other.shape:
            return False
        known = other.isfinite()
        if spreads:
            known &= one.isfinite()
        if not torch.equal(one.isfinite() & known, known):
            return False
        allowed = TOLERANCE[dtype] * (1 + other[known].abs().max().item() if known.any() else 1)
        if known.any() and (one.double() - other)[known].abs().max() > allowed:
            return False
    return True


def draw(chance: random.Random) -> tuple[str, list[Any]]:
    """An operator and arguments for it; most do not fit."""
    name = chance.choice(sorted(OPERATORS))
    dtype = torch.float32 if name == "upsampled_rows" else chance.choice(DTYPES[:3])
    arguments = [a.to(dtype) if isinstance(a, Tensor) else a for a in OPERATORS[name][0](chance)]
    if chance.random() < 0.3:
        arguments = displaced(name, arguments, chance)
    for _ in range(chance.choice((0, 1, 1, 1, 2))):
        with contextlib.suppress(*REFUSALS):  # what was spoilt before cannot always be spoilt again
            arguments = spoil(arguments, chance)
    return name, arguments


def described(arguments: list[Any]) -> str:
    """Shapes and dtypes of tensors, other arguments as they are."""
    return str([f"{tuple(a.shape)} {a.dtype}" if isinstance(a, Tensor) else a for a in arguments])


def call(name: str, arguments: list[Any]) -> str:
    """Calls the operator: "refused", "ran", or what it did that is wrong."""
    try:
        result = getattr(torch.ops.dgmn2, name)(*arguments)
    except REFUSALS:
        return "refused"
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    sizes = arguments[:-1] if name == "upsampled_rows" else arguments  # its last one is yes or no
    numbers = [number for value in sizes for number in (value if isinstance(value, list) else [value])]
    if any(isinstance(number, int) and number < 0 for number in numbers):
        return "a negative size was answered"
    if any(tensor.device.type == "meta" for tensor in tensors):
        return "ran"
    if any(lost(tensor) for tensor in tensors):
        return "memory that is no more was read"
    if name == "upsampled_rows":
        result = arguments[2]
    expected = OPERATORS[name][1](*arguments)
    # one offset that is not finite, as 1e30 in float16, makes the gradients of its neighbours NaN, too
    spreads = name.endswith("_backward") and not all(tensor.isfinite().all() for tensor in tensors)
    coarsest = next(known for known in TOLERANCE if any(tensor.dtype == known for tensor in tensors))
    return "ran" if expected is None or agrees(result, expected, coarsest, spreads) else "the result is wrong"


def run(cases: int, seed: int) -> Counter[str]:
    chance, counts = random.Random(seed), Counter[str]()
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    for number in range(cases):
        name, arguments = draw(chance)
        outcome = call(name, arguments)
        if outcome not in ("ran", "refused"):
            raise SystemExit(f"case {number} of seed {seed}: {name} {described(arguments)}: {outcome}")
        counts[f"{name} {outcome}"] += 1
    return counts


if __name__ == "__main__":
    found = run(int(sys.argv[1]), int(sys.argv[2]))
    print(f"cases: {sum(found.values())}", dict(sorted(found.items())))  # noqa: T201
