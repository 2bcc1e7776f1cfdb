"""Owns a configuration under construction: its values and where each was said, overrides, and the final check."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dgmn2cli.config.fields import Fault, check_rules, check_values, hints_of, names_of, near_miss, raise_faults, show
from dgmn2cli.config.schema import RULES, SECTIONS, Config, name_fault

MAX_DOTS = 400  # per line: the TOML reader takes quadratic time over a dotted key
MAX_OVERRIDE = 100_000  # characters
OVERRIDE = "--set"
_HINT = "The files under configs/ show the published settings."


@dataclass
class Draft:
    """A configuration before it is checked.

    Attributes:
        name: what it is called where no file says.
        values: each setting's last value, by dotted key.
        origins: the file that said it.
        notes: remarks of a reader of another format.
        faults: what is wrong so far.
    """

    name: str
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def put(self, key: str, value: Any, origin: str) -> None:
        """A later value replaces an earlier one."""
        self.values[key], self.origins[key] = value, origin

    def override(self, text: str) -> None:
        """`section.key=value`: the value as in TOML; a text setting takes it as it stands."""
        key, equals, given = (part.strip() for part in text.partition("="))
        section, _, name = key.partition(".")
        if not equals or not key:
            self.faults.append(f"{OVERRIDE}: {show(text)}, wanted SECTION.KEY=VALUE, such as optim.lr=5e-5")
        elif key == "name":
            self.put(key, _plain(given), OVERRIDE)
        elif section not in SECTIONS or name not in names_of(SECTIONS[section]):
            self.faults.append(f"{OVERRIDE}: {short(key)}: unknown setting{_nearest(key)}")
        else:
            is_text = hints_of(SECTIONS[section])[name] is str
            self.put(key, _plain(given) if is_text else _toml_value(given), OVERRIDE)

    def finish(self, overrides: Sequence[str], where: object) -> Config:
        """Applies the overrides, checks everything, and makes the configuration.

        Args:
            overrides: `section.key=value`, the later ones stronger.
            where: the file or name, for the error.

        Raises:
            ConfigError: with a line for every fault.
        """
        for text in overrides:
            self.override(text)
        sections = {section: self._checked(section) for section in SECTIONS}
        flat = {f"{section}.{name}": value for section, values in sections.items() for name, value in values.items()}
        self.faults += [self._line(fault) for fault in check_rules(RULES, flat)]
        name, notes = self.values.get("name", self.name), self.values.get("notes", self.notes)
        if text := name_fault(name):
            self.faults.append(self._line(Fault("name", f"{show(name)}, {text}")))
        if not isinstance(notes, list) or not all(isinstance(note, str) and note.isprintable() for note in notes):
            self.faults.append(self._line(Fault("notes", f"{show(notes)}, wanted a list of texts")))
        if self.faults:
            raise_faults(self.faults, where, _HINT)
        made = {section: SECTIONS[section](**values) for section, values in sections.items()}
        return Config(name=name, notes=tuple(notes), **made)

    def _checked(self, section: str) -> dict[str, Any]:
        """A section's good values, defaults for the settings nobody gave, nothing for the faulty ones."""
        prefix, cls = f"{section}.", SECTIONS[section]
        given = {key.removeprefix(prefix): value for key, value in self.values.items() if key.startswith(prefix)}
        clean, faults = check_values(cls, section, given)
        for fault in faults:
            name = fault.key.removeprefix(prefix)
            lost = name not in names_of(cls) and "did you mean" not in fault.text
            self.faults.append(self._line(Fault(fault.key, fault.text + (home_of(name) if lost else ""))))
        defaults = {name: getattr(cls, name) for name in names_of(cls) if name not in given}
        return {**defaults, **clean}

    def _line(self, fault: Fault) -> str:
        """A fault with the file that said the setting, or one of the settings it clashes with."""
        said = next((self.origins[key] for key in (fault.key, *fault.others) if key in self.origins), "")
        return f"{said}: {short(fault.key)}: {fault.text}" if said else str(fault)


def short(key: str) -> str:
    """A key as a message shows it."""
    return key if len(key) <= 60 else key[:60] + "..."


def home_of(key: str) -> str:
    """Where a setting that stands in the wrong place belongs."""
    homes = [section for section, cls in SECTIONS.items() if key in names_of(cls)]
    return f"; it belongs in [{homes[0]}]" if homes else ""


def _nearest(key: str) -> str:
    """A hint at the setting an unknown dotted key may mean."""
    section, _, name = key.partition(".")
    known = [f"{part}.{setting}" for part, cls in SECTIONS.items() for setting in names_of(cls)]
    exact = [other for other in known if other.partition(".")[2] in (name, key)]
    if exact:
        return f"; did you mean '{exact[0]}'?"
    return near_miss(name, names_of(SECTIONS[section]), f"{section}.") if section in SECTIONS else near_miss(key, known)


def _plain(text: str) -> str:
    """A text setting's value: without the quotes, if it has them."""
    value = _toml_value(text)
    return value if isinstance(value, str) else text


def _toml_value(text: str) -> Any:
    """One TOML value; what is none stays text, which the check of the setting's type then shows."""
    if text.count(".") > MAX_DOTS or len(text) > MAX_OVERRIDE:
        return text
    try:
        document: Mapping[str, Any] = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return document["value"] if list(document) == ["value"] else text
