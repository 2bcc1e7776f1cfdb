"""Forms in which people keep weights, put together at random: read into the right names, or refused by name."""

from __future__ import annotations

import argparse
import collections
import datetime
import functools
import json
import os
import pathlib
import random
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dgmn2cli.checkpoint.describe import describe
from dgmn2cli.checkpoint.unwrap import AVERAGES, WEIGHTS, class_names
from dgmn2cli.checkpoint.weights import load_weights, read_checkpoint
from dgmn2cli.errors import Dgmn2Error
from faults import canary, models
from faults.verdicts import RIGHT, Faults, Kind, Violation, judged, refusal


def network() -> nn.Module:
    """A small network with names such as DGMN2's."""
    backbone = models.network()
    return nn.ModuleDict({"backbone": backbone, "decode_head": nn.Conv2d(16, 2, 1)})


STATE = {key: value.clone() for key, value in network().state_dict().items()}
AVERAGED = {key: value + 1 for key, value in STATE.items()}
PREFIXES = ("module.", "_orig_mod.", "model.")
OTHERS = ("segmentor.net.", "student.", "a.b.c.", "encoder_decoder.")  # of programs that are not known


class History:
    """Of another program; it must not come to life."""

    def __init__(self, *arguments: Any) -> None:
        self.values, self.length = np.array([1.0, 2.0]), 10

    def __setstate__(self, state: Any) -> None:
        canary.fire()


class AttributeDict(dict):  # type: ignore[type-arg]
    """Of another program."""


class Records(list):  # type: ignore[type-arg]
    """Of another program."""

    def append(self, item: Any) -> None:
        canary.fire()


class Reducing:
    """An object that asks for a call when it is read."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


OTHER_PROGRAM = types.ModuleType("otherprogram.history")
for kind in (History, AttributeDict, Records):
    kind.__module__, kind.__qualname__ = OTHER_PROGRAM.__name__, kind.__name__
    setattr(OTHER_PROGRAM, kind.__name__, kind)
sys.modules.update({"otherprogram": types.ModuleType("otherprogram"), "otherprogram.history": OTHER_PROGRAM})

SIDE: dict[str, Callable[[], Any]] = {
    "args": lambda: argparse.Namespace(lr=1e-4, model="x", deep=argparse.Namespace(a=[1])),
    "best": lambda: np.float64(77.2), "curve": lambda: np.arange(12.0).reshape(3, 4), "names": lambda: np.array(["a"]),
    "columns": lambda: np.asfortranarray(np.ones((2, 3))), "objects": lambda: np.array([{}, None], dtype=object),
    "rng": lambda: np.random.RandomState(3).get_state(), "torch_rng": torch.get_rng_state,
    "hub": lambda: {"log": History(), "runtime": {"history": [History()]}}, "records": lambda: Records([1, 2]),
    "settings": lambda: AttributeDict(a=1, b=AttributeDict()), "counts": lambda: collections.defaultdict(int, a=1),
    "last": lambda: collections.deque([1, 2], 5), "counter": lambda: collections.Counter("aab"),
    "when": lambda: datetime.datetime(2024, 1, 2), "work_dir": lambda: pathlib.PurePosixPath("/x"),
    "ids": lambda: {1, 2}, "space": lambda: types.SimpleNamespace(a=1), "dtype": lambda: torch.float16,
    "size": lambda: torch.Size([1, 2]), "complex": lambda: 1 + 2j, "none": lambda: None, "raw": lambda: b"\0\xff",
    "optimizer": lambda: {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
    "epoch": lambda: 3, "buffer": lambda: bytearray(b"\0\xff"), "empty": bytearray, "error": lambda: ValueError("x", 1),
    "failed": lambda: json.JSONDecodeError("x", "y", 0),
}  # fmt: skip
ACTING: dict[str, Callable[[], Any]] = {
    "faults.canary.fire": lambda: Reducing(canary.fire, "x"),
    "functools.partial": lambda: functools.partial(os.system, "true"),
    "eval": lambda: Reducing(eval, "1"), "getattr": lambda: Reducing(getattr, "x", "upper"),
}  # fmt: skip
CLASSES: dict[str, tuple[Callable[[], dict[str, Any]], tuple[str, ...] | None]] = {
    "none": (dict, None), "CLASSES": (lambda: {"CLASSES": ("a", "b")}, ("a", "b")),
    "a list": (lambda: {"CLASSES": ["b", "a"], "PALETTE": np.eye(2, 3)}, ("b", "a")),
    "dataset_meta": (lambda: {"dataset_meta": {"classes": ("sky", "road"), "palette": [[1] * 3] * 2}}, ("sky", "road")),
    "both": (lambda: {"CLASSES": ("x", "y"), "dataset_meta": AttributeDict(classes=["x", "y"])}, ("x", "y")),
    "a number": (lambda: {"CLASSES": 3}, None),
}  # fmt: skip


@dataclass
class Form:
    """One way of keeping `STATE`.

    Attributes:
        content: what is saved.
        wanted: what must be loaded; None: it must be refused.
        culprits: one of these the refusal must name.
        ema: whether the averaged copy is asked for.
        classes: the names that the file says.
        label: what was drawn.
    """

    content: Any = None
    wanted: dict[str, Tensor] | None = field(default_factory=lambda: dict(STATE))
    culprits: tuple[str, ...] = ()
    ema: bool = False
    classes: tuple[str, ...] | None = None
    label: list[str] = field(default_factory=list)


def draw(chance: random.Random) -> Form:
    """A form at random."""
    form = Form()
    state = _values(form, chance)
    flaw = chance.choice((*[""] * 9, "missing", "shape", "extra", "no tensor", "sparse", "complex", "twice", "several"))
    if flaw:
        _spoil(form, state, flaw, chance)
    entries = _named(form, state, chance)
    names = form.culprits
    wrapper = chance.choice(("", "state_dict", "state_dict", "odd", "nested", *WEIGHTS))
    form.content = entries
    if wrapper:
        _wrap(form, entries, wrapper, chance)
    if flaw == "sparse":  # that file is not read at all
        form.wanted, form.culprits = None, (*form.culprits, *names)
    form.label += [wrapper or "bare", flaw or "whole"]
    return form


def _values(form: Form, chance: random.Random) -> dict[str, Any]:
    """The tensors in some dtype, some of the counters left out."""
    dtype = chance.choice((torch.float32, torch.float32, torch.float16, torch.bfloat16, torch.float64))
    counters = chance.choice((1.0, 1.0, 0.0, 0.5))
    state: dict[str, Any] = {}
    for key, value in STATE.items():
        if value.is_floating_point():
            state[key] = value.to(dtype)
            form.wanted[key] = state[key].float()  # type: ignore[index]
            state[key] = nn.Parameter(state[key]) if chance.random() < 0.2 else state[key]
        elif chance.random() < counters:
            state[key] = value.clone()
    form.label.append(str(dtype).removeprefix("torch."))
    return state


def _spoil(form: Form, state: dict[str, Any], flaw: str, chance: random.Random) -> None:
    """Makes the state one that no network may be given."""
    key = chance.choice([name for name in state if not name.endswith("num_batches_tracked")])
    value = state[key].detach()
    form.wanted, form.culprits = None, (key,)
    if flaw == "missing":
        del state[key]
    elif flaw == "extra":
        form.culprits = ("backbone.extra",)
        state["backbone.extra"] = torch.ones(1)
    elif flaw == "several":
        form.culprits = ("ema_model.",)
        state |= {f"ema_model.{name}": value.detach().clone() for name, value in state.items()}
    elif flaw == "twice":
        state[f"module.{key}"] = value + 1
    else:
        state[key] = {
            "shape": lambda: value[:1] if value.shape[0] > 1 else value.unsqueeze(0),
            "no tensor": lambda: chance.choice((1.0, "x", None, [value], History(), np.ones(2))),
            "sparse": lambda: value.float().to_sparse(), "complex": lambda: value.to(torch.complex64),
        }[flaw]()  # fmt: skip


def _named(form: Form, state: dict[str, Any], chance: random.Random) -> Any:
    """The state under the names that wrappers give, in some kind of dictionary."""
    prefix = "".join(chance.choice(PREFIXES) for _ in range(chance.choice((0, 0, 1, 2, 4))))
    other = chance.choice(OTHERS) if chance.random() < 0.15 and "module." not in "".join(state) else ""
    place = chance.randrange(len(prefix.split(".")))
    parts = [part + "." for part in prefix.split(".") if part]
    prefix = "".join([*parts[:place], other, *parts[place:]])
    compiled = chance.random() < 0.15
    named = {prefix + (key.replace("backbone.", "backbone._orig_mod.", 1) if compiled else key): value
             for key, value in state.items()}  # fmt: skip
    form.culprits = tuple({*form.culprits, *(key.replace("backbone.", "backbone._orig_mod.") for key in form.culprits)})
    form.label.append(prefix or "no prefix")
    make = chance.choice((dict, collections.OrderedDict, lambda entries: collections.defaultdict(list, entries),
                          AttributeDict))  # fmt: skip
    return make(named)


def _wrap(form: Form, entries: Any, wrapper: str, chance: random.Random) -> None:
    """Puts the state into a file with other things beside it."""
    names, classes = CLASSES[chance.choice(sorted(CLASSES))]
    content: dict[Any, Any] = {"meta": names()}
    form.classes = classes
    if wrapper == "odd":
        content[chance.choice(("student", "my weights", 5, (1, 2), b"raw", None))] = entries
    elif wrapper == "nested":
        content["checkpoint"] = {"state_dict": entries}
    else:
        content[wrapper] = entries
    if chance.random() < 0.3:
        average = chance.choice(AVERAGES)
        prefix = chance.choice(("", "module."))
        content[average] = {f"{prefix}{key}": value for key, value in AVERAGED.items()} | {
            "n_averaged": torch.tensor(5)
        }
        form.ema = chance.random() < 0.5
        if form.ema:
            form.wanted, form.culprits = dict(AVERAGED), ()
    elif chance.random() < 0.05:
        form.ema, form.wanted, form.culprits = True, None, ("--ema",)
    if wrapper == "odd" and chance.random() < 0.2:
        content["teacher"] = {key: value * 2 for key, value in STATE.items()}
        if not form.ema:
            form.wanted, form.culprits = None, ("teacher",)
    for name in chance.sample(sorted(SIDE), chance.choice((0, 1, 3, 8))):
        content[name] = SIDE[name]()
        if chance.random() < 0.2:
            content["meta"][name] = SIDE[name]()
    if chance.random() < 0.05:
        name = chance.choice(sorted(ACTING))
        content[chance.choice(("hook", "meta2"))] = ACTING[name]()
        form.wanted, form.culprits = None, (name,)
    form.content = dict(chance.sample(list(content.items()), len(content)))


def save(form: Form, path: Path, chance: random.Random) -> None:
    """Writes the file in one of the formats that can hold it."""
    flat = all(type(value) is Tensor and value.layout == torch.strided for value in form.content.values())
    if flat and chance.random() < 0.5:
        save_file(dict(form.content), path)
        form.label.append("safetensors")
    else:
        torch.save(form.content, path, _use_new_zipfile_serialization=chance.random() < 0.7)


def check(form: Form, path: Path) -> str:
    """Reads the file as `infer` and `info` do."""
    model = network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    try:
        read = read_checkpoint(path, ema=form.ema)
        load_weights(model, read)
    except Dgmn2Error as error:
        said = "\n".join([str(error), *error.fault_lines()])
        if form.wanted is not None:
            raise Violation(f"refused: {said}") from error
        if not any(name in said for name in form.culprits):
            raise Violation(f"the refusal names none of {form.culprits}: {said[:300]}") from error
        if not models.equal(model.state_dict(), before):
            raise Violation("a refused file changed the network") from error
        return refusal(error, {3})
    if form.wanted is None:
        raise Violation("a file with wrong weights was loaded")
    if not models.equal(model.state_dict(), form.wanted):
        raise Violation("other weights were loaded")
    if class_names(read.meta)[0] != form.classes:
        raise Violation(f"the classes are {class_names(read.meta)[0]}, wanted {form.classes}")
    judged(lambda: describe(path, ()), {3}, lambda found: True)
    return RIGHT


def forms(rng: random.Random, folder: Path, count: int) -> Faults:
    """As said above; nothing in a file is executed."""
    target, trace = folder / "form.pth", folder / "trace"
    for index in range(count):
        seed = rng.randrange(1 << 30)
        form = draw(random.Random(seed))

        def judge(form: Form = form, seed: int = seed) -> str:
            save(form, target, random.Random(seed))
            canary.trace_to(trace)
            try:
                outcome = check(form, target)
                if trace.exists():
                    raise Violation("code in the file was executed")
            finally:
                trace.unlink(missing_ok=True)
            return outcome

        yield f"{index} {', '.join(form.label)}, seed {seed}", judge


KINDS = (Kind("form of a checkpoint", forms, 2000, 80),)
