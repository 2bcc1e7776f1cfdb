"""The bookkeeping of a mapping: which keys of a foreign configuration were understood, and what became of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dgmn2cli.config.mmcv import DELETE, one_of
from dgmn2cli.validation import MAX_HINTS, near_miss, show

ABSENT: Any = object()


@dataclass
class Mapped:
    """What a foreign configuration means here."""

    values: dict[str, Any] = field(default_factory=dict)  # our settings by dotted key
    origins: dict[str, str] = field(default_factory=dict)  # the foreign key each of them came from
    notes: list[str] = field(default_factory=list)  # what has no counterpart and changes no result
    faults: list[str] = field(default_factory=list)  # what has no counterpart and would change results

    def put(self, key: str, value: Any, origin: str) -> None:
        """One of our settings, and where it came from."""
        self.values[key], self.origins[key] = value, origin

    def put_once(self, key: str, value: Any, origin: str) -> None:
        """A setting that several foreign keys give; they must agree."""
        if key in self.values and self.values[key] != value:
            self.faults.append(f"{origin}: {show(value)}, but {self.origins[key]} says {show(self.values[key])}")
        else:
            self.put(key, value, origin)


class Node:
    """One dict of the foreign configuration: a key nobody asks for within its `with` block is a fault at the end."""

    def __init__(self, value: Any, path: str, mapped: Mapped) -> None:
        self.path, self.mapped = path, mapped
        self.values: dict[Any, Any] = value if isinstance(value, dict) else {}
        self.seen: set[Any] = {DELETE}
        if not isinstance(value, dict):
            self.fault("", f"{show(value)}, wanted a dict")

    def __enter__(self) -> Node:
        return self

    def __exit__(self, *error: object) -> None:
        self.done()

    def place(self, key: str) -> str:
        """The full foreign key."""
        return ".".join(part for part in (self.path, key) if part)

    def fault(self, key: str, text: str) -> None:
        """Something that cannot be mapped."""
        self.mapped.faults.append(f"{self.place(key)}: {text}")

    def note(self, key: str, text: str) -> None:
        """Something worth knowing that changes no result."""
        self.mapped.notes.append(": ".join(part for part in (self.place(key), text) if part))

    def get(self, key: str, default: Any = None) -> Any:
        """A value, which counts as understood."""
        self.seen.add(key)
        return self.values.get(key, default)

    def has(self, key: str) -> bool:
        """Whether the key is given and not None."""
        return self.values.get(key) is not None

    def child(self, key: str) -> Node:
        """The dict under a key; an empty one if it is absent or None."""
        value = self.get(key)
        return Node({} if value is None else value, self.place(key), self.mapped)

    def expect(self, key: str, allowed: Sequence[Any], default: Any = ABSENT) -> Any:
        """A value that must be one of `allowed`; None if it is absent or a fault.

        `default` is what the foreign system takes where the key is absent; without it, absence is all right.
        """
        value = self.get(key, default)
        if value is ABSENT:
            return None
        if one_of(value, allowed):
            return value
        seen = show(value) if key in self.values else f"absent, which means {show(value)}"
        self.fault(key, f"{seen}, wanted {' or '.join(_literal(item) for item in allowed)}")
        return None

    def fixed(self, **wanted: Any) -> None:
        """Keys that must have these values where they are given; an empty list or dict may also be None."""
        for key, value in wanted.items():
            self.expect(key, (value, None) if value in ([], {}) else (value,))

    def required(self, **wanted: Any) -> None:
        """Keys that must be there with these values."""
        for key, value in wanted.items():
            self.expect(key, (value,), default=None)

    def text(self, key: str) -> str | None:
        """A text, None if it is absent or None; anything else is a fault."""
        value = self.get(key)
        if value is None or isinstance(value, str):
            return value
        self.fault(key, f"{show(value)}, wanted a text")
        return None

    def give(self, key: str, ours: str, default: Any = ABSENT) -> None:
        """A value that is our setting `ours` as it stands; `default` is the foreign system's where it is absent."""
        value = self.get(key, default)
        if value is not ABSENT:
            self.mapped.put_once(ours, value, self.place(key if key in self.values else f"{key} (absent)"))

    def two(self, key: str, ours: str) -> None:
        """A list or tuple of two that is our setting `ours`; anything else is a fault."""
        value = self.get(key)
        if isinstance(value, (list, tuple)) and len(value) == 2:
            self.mapped.put(ours, tuple(value), self.place(key))
        else:
            self.fault(key, f"{'absent' if value is None else show(value)}, wanted two numbers")

    def square(self, key: str, ours: str) -> None:
        """The size (height, width) of a square, whose side is our setting `ours`; anything else is a fault."""
        value = self.get(key)
        sides = value if isinstance(value, (list, tuple)) and len(value) == 2 else (None, None)
        if type(sides[0]) is type(sides[1]) is int and sides[0] == sides[1]:
            self.mapped.put_once(ours, sides[0], self.place(key))
        else:
            self.fault(key, f"{'absent' if value is None else show(value)}, wanted a square such as (769, 769)")

    def harmless(self, *keys: str) -> None:
        """Keys that change no result, whatever they say."""
        self.seen.update(keys)

    def done(self) -> None:
        """Names every key nobody asked for."""
        for key in self.values:
            if key not in self.seen:
                few = len(self.mapped.faults) < MAX_HINTS
                near = near_miss(str(key), sorted(str(known) for known in self.seen - {DELETE})) if few else ""
                self.fault(str(key)[:60], f"{show(self.values[key])}: this key has no counterpart here{near}")


def _literal(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_literal(item) for item in value) + "]"
    if isinstance(value, dict):
        return "dict(" + ", ".join(f"{key}={_literal(item)}" for key, item in value.items()) + ")"
    return repr(value)
