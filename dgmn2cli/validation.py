"""Checking what a file says against a declared model: every fault at once, by its key, in plain words.

The models are pydantic's; this turns what pydantic finds into `ConfigError`, and its JSON schema into words.
"""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, NoReturn, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, StrictInt, StrictStr, TypeAdapter, ValidationError

from dgmn2cli.errors import ConfigError, is_utf8, printable

T = TypeVar("T")

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
MAX_DOTS = 400  # per line: the TOML reader takes quadratic time over a dotted key
MAX_HINTS = 50  # faults with a "did you mean"; finding one takes a while, and files may hold 100,000 wrong keys
_KINDS = {
    "integer": ("a whole number", "whole numbers"),
    "number": ("a finite number", "finite numbers"),
    "boolean": ("true or false", "truth values"),
    "string": ("a text", "texts"),
    "object": ("a table", "tables"),
    "null": ("null", "nulls"),
}
_BOUNDS = (("from", "minimum"), ("above", "exclusiveMinimum"), ("to", "maximum"), ("below", "exclusiveMaximum"))
_UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden", "invalid_key")


def must(holds: Callable[[Any], object], wanted: str) -> AfterValidator:
    """A condition on a value of the right type; `wanted` is what a message says where it does not hold."""

    def checked(value: Any) -> Any:
        if not holds(value):
            raise ValueError(wanted)
        return value

    return AfterValidator(checked)


Printable = Annotated[
    StrictStr,
    must(is_utf8, "wanted UTF-8; rename what has this name, or make a link of another name to it"),
    must(lambda text: text.isprintable() or not is_utf8(text), "wanted a text without control characters"),
]
Byte = Annotated[StrictInt, Field(ge=0, le=255)]


@dataclass(frozen=True)
class Fault:
    """One thing wrong: the dotted key, what is the matter with it, and the other keys that have a part in it."""

    key: str
    text: str
    others: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.key}: {self.text}" if self.key else self.text


def check(adapter: TypeAdapter[T], document: Any, context: Any = None) -> T | list[Fault]:
    """The record that `document` is under a model, or what is wrong with it; `context` is for its validators."""
    try:
        return adapter.validate_python(document, context=context)
    except ValidationError as error:
        return faults_of(error, schema_of(adapter), document)


@lru_cache(maxsize=32)
def schema_of(adapter: TypeAdapter[Any]) -> dict[str, Any]:
    """The JSON schema of a declared model."""
    schema = adapter.json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def faults_of(error: ValidationError, schema: dict[str, Any], document: Any) -> list[Fault]:
    """What pydantic found, one fault for each key: the value seen and the value wanted, in words."""
    faults: dict[str, Fault] = {}
    for found in error.errors(include_url=False, include_context=True):
        if found["type"] == "too_short" and len(found["input"]) >= found["ctx"]["min_length"]:
            continue  # pydantic counts only the good elements; the others have faults of their own
        key, node, value, unknown = _locate(schema, document, found["loc"])
        if key in faults:  # of a list of numbers each wrong element is an error of its own
            continue
        if found["type"] in _UNKNOWN or unknown:
            known = node.get("properties", ())
            text = "unknown key" + (near_miss(unknown, known) if len(faults) < MAX_HINTS else "")
        elif found["type"].startswith("union_tag"):
            tag, choices = node["discriminator"]["propertyName"], node["discriminator"]["mapping"]
            key, node = f"{key}.{tag}", {"enum": list(choices)}
            text = f"{show(value.get(tag))}, wanted {in_words(node, schema)}"
        elif found["type"] == "missing" and value is _ABSENT:
            text = f"missing, wanted {in_words(node, schema)}"
        elif found["type"] == "value_error":
            text = f"{show(value)}, {found['ctx']['error']}"
        else:
            text = f"{show(value)}, wanted {in_words(node, schema)}"
            if isinstance(value, str) and len(faults) < MAX_HINTS:
                text += near_miss(value, node.get("enum", ()))
        faults[key] = Fault(key, text)
    return list(faults.values())


_ABSENT: Any = object()


def _locate(
    schema: dict[str, Any], document: Any, place: tuple[int | str, ...]
) -> tuple[str, dict[str, Any], Any, str]:
    """The key of the setting at a place, its schema, its value, and the key's last part where nothing declares it.

    A place within a list of numbers or texts belongs to the whole list.
    """
    node, value, key = _resolved(schema, schema), document, ""
    for part in place:
        if "discriminator" in node and isinstance(value, dict):
            tag = node["discriminator"]["mapping"].get(part)
            if tag is not None:
                node = _resolved({"$ref": tag}, schema)
                continue
        if "items" in node and isinstance(part, int):
            inner = _resolved(node["items"], schema)
            if not inner.keys() & {"properties", "discriminator"}:
                break
            node, key, value = inner, f"{key}[{part}]", value[part]
        elif isinstance(value, dict) and (isinstance(part, str) or part in value) and node.get("type") == "object":
            if "properties" not in node:
                break
            name = str(part)
            key = f"{key}.{short(name)}" if key else short(name)
            if name not in node["properties"]:
                return key, node, value.get(part), name
            node, value = _resolved(node["properties"][name], schema), value.get(part, _ABSENT)
        else:
            break
    return key, node, value, ""


def _resolved(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    reference = node.get("$ref")
    return schema["$defs"][reference.rpartition("/")[2]] if reference else node


def in_words(node: dict[str, Any], schema: dict[str, Any], *, plural: bool = False) -> str:
    """What a node of a JSON schema allows: `a whole number from 1 to 255`."""
    node = _resolved(node, schema)
    if "$comment" in node:
        return str(node["$comment"])
    if "const" in node:
        return show(node["const"])
    if "enum" in node:
        return "one of " + ", ".join(show(choice) for choice in node["enum"])
    if "anyOf" in node:
        return " or ".join(in_words(kind, schema) for kind in node["anyOf"])
    if node.get("type") == "array":
        items = node.get("prefixItems") or [node["items"]]
        count = f"{len(items)} " if "prefixItems" in node else ""
        least = f", at least {node['minItems']}" if node.get("minItems") and not count else ""
        most = f", at most {node['maxItems']}" if "maxItems" in node and not count else ""
        what = "lists" if plural else "a list"
        return f"{what} of {count}{in_words(items[0], schema, plural=True)}{least}{most}"
    if "discriminator" in node or "type" not in node:
        return _KINDS["object"][plural]
    limits = [f"{word} {node[bound]}" for word, bound in _BOUNDS if bound in node]
    if len(limits) == 1 and "minimum" in node:
        limits.append("up")
    if "maxLength" in node:
        least = f"{node['minLength']} to" if "minLength" in node else "at most"
        limits.append(f"of {least} {node['maxLength']} characters")
    return " ".join([_KINDS[node["type"]][plural], *limits])


def raise_faults(what: str, faults: Sequence[str], where: object, hint: str = "") -> NoReturn:
    """Raises one error with all its faults."""
    why = faults[0] if len(faults) == 1 else f"{len(faults)} faults, listed above"
    raise ConfigError(what, where=where, why=why, hint=hint, faults=faults)


def parse_toml(text: str) -> dict[str, Any]:
    """The document in a TOML text; a ValueError says what is wrong and where."""
    import tomllib  # the zoo, whose manifest is JSON, need not wait for it

    if dotted := next((number for number, line in enumerate(text.split("\n"), 1) if line.count(".") > MAX_DOTS), 0):
        raise ValueError(f"line {dotted} has more than {MAX_DOTS} dots")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError as error:  # TOMLDecodeError, and an integer of thousands of digits
        raise ValueError(f"not TOML: {error}") from error


def parse_json(text: str) -> tuple[Any, list[Fault]]:
    """The document in a JSON text, and the keys that an object gives twice; a ValueError says what is wrong."""
    try:
        document = json.loads(text, object_pairs_hook=_Object)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError as error:  # JSONDecodeError, and an integer of thousands of digits
        raise ValueError(f"not JSON: {error}") from error
    return document, [Fault(key, "is given twice") for key in _repeated(document, "")]


class _Object(dict[str, Any]):
    """A JSON object that remembers which keys it was given twice."""

    def __init__(self, pairs: Sequence[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.repeated: list[str] = []
        if len(self) < len(pairs):
            counts = Counter(name for name, _ in pairs)
            self.repeated = [name for name, count in counts.items() if count > 1]


def _repeated(value: Any, key: str) -> Iterator[str]:
    if isinstance(value, _Object):
        dot = f"{key}." if key else ""
        yield from (f"{dot}{short(name)}" for name in value.repeated)
        for name, item in value.items():
            yield from _repeated(item, f"{dot}{short(name)}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _repeated(item, f"{key}[{index}]")


def near_miss(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` where a known name is close, else nothing."""
    close = difflib.get_close_matches(name[:80].lower(), list(known), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


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
        if len(value) <= 4 and all(isinstance(item, (int, float, str)) for item in value):
            return "[" + ", ".join(show(item) for item in value) + "]"
        return f"a list of {len(value)}"
    return "none" if value is None else printable(str(value)[:60])


def short(key: str) -> str:
    """A key as a message shows it."""
    return key if len(key) <= 60 else key[:60] + "..."
