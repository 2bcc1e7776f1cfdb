"""Owns what a setting is: its type, range and documentation, and how a value is checked against them."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, get_args, get_origin, get_type_hints

from dgmn2cli.errors import ConfigError, printable

MAX_TEXT = 4096  # characters of a text setting
MAX_LIST = 4096  # elements of a list setting
MAX_HINTS = 50  # faults with a "did you mean"; finding one takes a while, and files may hold 100,000 wrong keys
_NAMES = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a text"}
_PLURALS = {int: "whole numbers", float: "finite numbers", bool: "truth values", str: "texts"}


@dataclass(frozen=True)
class Fault:
    """One thing wrong: the dotted key, what is the matter with it, and the other keys that have a part in it."""

    key: str
    text: str
    others: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.key}: {self.text}" if self.key else self.text


@dataclass(frozen=True)
class Setting:
    """One setting as documentation shows it.

    Attributes:
        key: dotted, `optim.lr`.
        wanted: type and range in words.
        default: its value where no file says otherwise.
        help: what it does, with its unit.
    """

    key: str
    wanted: str
    default: Any
    help: str


@dataclass(frozen=True)
class Rule:
    """A condition between settings: `holds` is called with the values of `keys` and must be true."""

    keys: tuple[str, ...]
    holds: Callable[..., bool]
    text: str


def setting(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: Sequence[str] = (),
    least: int = 0,
) -> Any:
    """A dataclass field with its documentation and range; ranges hold for every number of a list.

    Args:
        default: the value where nothing is said.
        help: one sentence, with the unit.
        low, high: inclusive bounds.
        above, below: exclusive bounds.
        choices: the allowed texts.
        least: the least number of elements of a list.
    """
    bounds = {"low": low, "high": high, "above": above, "below": below}
    return dataclasses.field(
        default=default, metadata={"help": help, "bounds": bounds, "choices": tuple(choices), "least": least}
    )


@lru_cache(maxsize=32)
def names_of(cls: type) -> tuple[str, ...]:
    """The names of a dataclass's fields, in order."""
    return tuple(field.name for field in dataclasses.fields(cls))


@lru_cache(maxsize=32)
def hints_of(cls: type) -> Mapping[str, Any]:
    """The type of each field of a dataclass."""
    return get_type_hints(cls)


def settings_of(cls: type, section: str) -> Iterator[Setting]:
    """The documented settings of one section's dataclass."""
    hints = hints_of(cls)
    for field in dataclasses.fields(cls):
        if field.metadata:
            yield Setting(
                f"{section}.{field.name}", wanted(hints[field.name], field), field.default, field.metadata["help"]
            )


def wanted(hint: Any, field: dataclasses.Field[Any]) -> str:
    """A setting's type and range in words: `a whole number from 1 to 255`."""
    choices, bounds = field.metadata["choices"], field.metadata["bounds"]
    if choices:
        return "one of " + ", ".join(repr(choice) for choice in choices)
    words = (("from", "low"), ("above", "above"), ("to", "high"), ("below", "below"))
    limits = [f"{word} {bounds[name]}" for word, name in words if bounds[name] is not None]
    if limits == [f"from {bounds['low']}"]:
        limits.append("up")
    return " ".join([_kind(hint, field.metadata["least"]), *limits])


def _kind(hint: Any, least: int = 0) -> str:
    """A type in words."""
    if get_origin(hint) is not tuple:
        return _NAMES[hint]
    element, *others = get_args(hint)
    if others != [...]:
        return f"a list of {1 + len(others)} {_PLURALS[element]}"
    of = _PLURALS.get(element) or "lists" + _kind(element).removeprefix("a list")
    return f"a list of {of}" + (f", at least {least}," if least else "")


class _Mismatch(Exception):  # noqa: N818
    """A value is not of the wanted type."""


def _coerce(value: Any, hint: Any) -> Any:
    """`value` as the type `hint`: whole numbers serve as numbers, lists as tuples, nothing else is converted."""
    if get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)) or len(value) > MAX_LIST:
            raise _Mismatch
        kinds = get_args(hint)
        if kinds[-1] is ...:
            kinds = (kinds[0],) * len(value)
        if len(kinds) != len(value):
            raise _Mismatch
        return tuple(_coerce(item, kind) for item, kind in zip(value, kinds, strict=True))
    if hint is float and type(value) is int and abs(value) < 1e300:
        return float(value)
    if type(value) is not hint:
        raise _Mismatch
    if hint is float and not math.isfinite(value):
        raise _Mismatch
    if hint is str and (len(value) > MAX_TEXT or not value.isprintable()):
        raise _Mismatch
    return value


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _in_range(value: Any, metadata: Mapping[str, Any]) -> bool:
    choices, bounds = metadata["choices"], metadata["bounds"]
    if choices and value not in choices:
        return False
    if isinstance(value, tuple) and len(value) < metadata["least"]:
        return False
    numbers = [leaf for leaf in _leaves(value) if isinstance(leaf, (int, float)) and not isinstance(leaf, bool)]
    return all(
        (bounds["low"] is None or number >= bounds["low"])
        and (bounds["above"] is None or number > bounds["above"])
        and (bounds["high"] is None or number <= bounds["high"])
        and (bounds["below"] is None or number < bounds["below"])
        for number in numbers
    )


def check_values(cls: type, section: str, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[Fault]]:
    """The good ones of a section's values, in their proper types, and what is wrong with the others.

    Args:
        cls: the section's dataclass.
        section: its name, for the keys of the faults.
        values: by field name, as read from a file.
    """
    clean: dict[str, Any] = {}
    faults: list[Fault] = []
    hints = hints_of(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name, value in values.items():
        key = f"{section}.{name}"
        if name not in fields:
            near = near_miss(name, fields) if len(faults) < MAX_HINTS else ""
            faults.append(Fault(key, f"unknown setting{near}"))
            continue
        field = fields[name]
        try:
            proper = _coerce(value, hints[name])
        except _Mismatch:
            proper = None
        if proper is not None and _in_range(proper, field.metadata):
            clean[name] = proper
        else:
            near = near_miss(value, field.metadata["choices"]) if isinstance(value, str) else ""
            faults.append(Fault(key, f"{show(value)}, wanted {wanted(hints[name], field)}{near}"))
    return clean, faults


def check_rules(rules: Sequence[Rule], values: Mapping[str, Any]) -> list[Fault]:
    """The rules that do not hold, among those all of whose keys are in `values`."""
    return [
        Fault(rule.keys[0], f"{show(values[rule.keys[0]])}, {rule.text}", rule.keys[1:])
        for rule in rules
        if all(key in values for key in rule.keys) and not rule.holds(*(values[key] for key in rule.keys))
    ]


def settle(section: Any, name: str, rules: Sequence[Rule]) -> None:
    """Checks a section's dataclass as it is made, and gives its values their proper types (1 -> 1.0, list -> tuple).

    Raises:
        ConfigError: a value of the wrong type or out of range; all of them at once.
    """
    values = {field.name: getattr(section, field.name) for field in dataclasses.fields(section)}
    clean, faults = check_values(type(section), name, values)
    faults += check_rules(rules, {f"{name}.{key}": value for key, value in clean.items()})
    if faults:
        raise_faults([str(fault) for fault in faults], where=f"{name} settings")
    for key, value in clean.items():
        object.__setattr__(section, key, value)  # frozen for everyone else


def raise_faults(faults: Sequence[str], where: object, hint: str = "") -> None:
    """Raises the one error of a configuration with all its faults.

    Raises:
        ConfigError: always.
    """
    why = faults[0] if len(faults) == 1 else f"{len(faults)} faults, listed above"
    raise ConfigError("the configuration is wrong", where=where, why=why, hint=hint, faults=faults)


def near_miss(name: str, known: Mapping[str, Any] | Sequence[str], prefix: str = "") -> str:
    """`; did you mean 'x'?` where a known name is close, else nothing."""
    close = difflib.get_close_matches(name[:80].lower(), list(known), n=1, cutoff=0.6)
    return f"; did you mean '{prefix}{close[0]}'?" if close else ""


def show(value: Any) -> str:
    """A value as a message shows it, short and on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value) if value.bit_length() <= 128 else "an enormous number"
    if isinstance(value, str):
        return f"'{printable(value[:60])}'" + ("..." if len(value) > 60 else "")
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, (list, tuple)):
        plain = all(isinstance(item, (int, float, str)) for item in value)
        if len(value) <= 4 and plain:
            return "[" + ", ".join(show(item) for item in value) + "]"
        return f"a list of {len(value)}"
    return "none" if value is None else printable(str(value)[:60])
