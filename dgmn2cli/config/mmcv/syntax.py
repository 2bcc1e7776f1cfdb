"""The mmcv config language: Python text to plain values through the syntax tree. Nothing is ever executed."""

from __future__ import annotations

import ast
import math
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dgmn2cli.validation import MAX_HINTS, show

MAX_DEPTH = 50  # of brackets, and of values in values
MAX_VALUES = 200_000  # counted as if every name were written out
MAX_NUMBER = 2**63
MAX_STRING = 100_000  # characters of a text put together with +
MAX_RANGE = 4096
_EXECUTES_NOTHING = "this reader executes nothing; wanted names, literals and dict(...)"
_TEMPLATE = re.compile(r"\{\{\s*[A-Za-z_][\w.]*\s*\}\}")
_READ_BASE = re.compile(r"^[ \t]*with\s+read_base\s*\(", re.MULTILINE)
_PYTHON_STYLE = (
    "this is MMSegmentation's 1.x format in MMEngine's Python style, whose imports would have to be run; wanted the "
    "style with _base_ = [...], which MMEngine's Config.dump writes"
)
_CALLS = ("dict", "list", "tuple", "range")
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.FloorDiv: lambda a, b: a // b,
    ast.Mod: lambda a, b: a % b,
}


@dataclass
class MmcvDocument:
    """An mmcv-style configuration: what one text says, or the text with its bases merged under it."""

    values: dict[str, Any] = field(default_factory=dict)  # of the top-level names, nothing but plain values
    used: set[str] = field(default_factory=set)  # names that serve other lines of their file, such as `norm_cfg`
    notes: list[str] = field(default_factory=list)  # what was odd
    absent: list[str] = field(default_factory=list)  # base files supplied from knowledge of the published ones
    faults: list[str] = field(default_factory=list)  # what could not be read; none in a document that is handed out

    def add(self, other: MmcvDocument) -> None:
        """Takes in all but the values of another document."""
        self.used |= other.used
        self.notes += other.notes
        self.absent += other.absent
        self.faults += other.faults


class _Refused(Exception):  # noqa: N818
    """An expression this reader does not take."""

    def __init__(self, node: ast.AST, text: str) -> None:
        super().__init__(text)
        self.line = getattr(node, "lineno", 0)


def parse(text: str, label: str) -> MmcvDocument:
    """Reads a configuration in the mmcv language; never raises, whatever the text; messages call it `label`."""
    parsed = MmcvDocument()
    if found := _unfit(text):
        parsed.faults.append(f"{label}:{found}")
        return parsed
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd escapes in the user's texts
            tree = ast.parse(text)
    except SyntaxError as error:
        parsed.faults.append(f"{label}:{error.lineno or 1}: not Python: {error.msg}")
    except (RecursionError, MemoryError):
        parsed.faults.append(f"{label}: it is nested too deeply")
    except ValueError as error:
        parsed.faults.append(f"{label}: not Python: {error}")
    else:
        reader = _Reader(parsed, label, text)
        for statement in tree.body:
            reader.statement(statement)
    return parsed


def _unfit(text: str) -> str:
    """What bars a text from being parsed at all, as `line: reason`; empty if nothing does."""
    if style := _READ_BASE.search(text):
        return f"{text.count(chr(10), 0, style.start()) + 1}: {_PYTHON_STYLE}"
    depth = 0
    for number, line in enumerate(text.split("\n"), 1):
        if match := _TEMPLATE.search(line):
            return f"{number}: the template {match[0]} is not read; write out its value"
        for character in line.partition("#")[0]:
            depth += (character in "([{") - (character in ")]}")
            if depth > MAX_DEPTH:
                return f"{number}: more than {MAX_DEPTH} brackets in brackets"
    return ""


class _Reader:
    def __init__(self, parsed: MmcvDocument, label: str, text: str) -> None:
        self.parsed, self.label, self.text = parsed, label, text.split("\n")
        self.assigned: dict[str, tuple[int, int, int]] = {}  # line, values and depth as if written out
        self.broken: set[str] = set()
        self.count = self.deepest = 0

    def statement(self, node: ast.stmt) -> None:
        """Takes an assignment; anything else is a fault, a docstring excepted."""
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            return
        if not isinstance(node, ast.Assign):
            self.fault(node.lineno, f"{self.code(node)} is not read: {_EXECUTES_NOTHING}")
            return
        names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        if len(names) != len(node.targets) or set(names) & set(_CALLS):
            self.fault(node.lineno, f"{self.code(node)} is not read: it assigns to no plain name")
            return
        before, self.deepest = self.count, 0
        try:
            value = self.value(node.value, 0)
        except _Refused as refused:
            self.broken.update(names)
            self.fault(refused.line or node.lineno, str(refused))
            return
        for name in names:
            if name in self.assigned:
                again = f"{name} is assigned again (line {self.assigned[name][0]}); this holds"
                self.parsed.notes.append(f"{self.label}:{node.lineno}: {again}")
            self.assigned[name] = (node.lineno, self.count - before, self.deepest)
            self.parsed.values[name] = value

    def fault(self, line: int, text: str) -> None:
        self.parsed.faults.append(f"{self.label}:{line}: {text}")

    def code(self, node: ast.stmt | ast.expr) -> str:
        """A piece of the text as a message shows it."""
        if len(self.parsed.faults) >= MAX_HINTS:  # finding it takes a while in long lines
            return "this"
        line = self.text[node.lineno - 1].encode("utf-8", "replace")[node.col_offset :]
        return show(line[:200].decode("utf-8", "replace"))

    def value(self, node: ast.expr, level: int) -> Any:
        """The value of an expression `level` brackets deep."""
        self.grow(node, 1, level)
        if isinstance(node, ast.Constant):
            if node.value is None or isinstance(node.value, (str, int, float)):
                return self.number(node, node.value)
            raise _Refused(node, f"{self.code(node)} is not read; wanted a text, a number, True, False or None")
        if isinstance(node, ast.Name):
            return self.name(node, level)
        if isinstance(node, (ast.List, ast.Tuple)):
            items = [self.value(item, level + 1) for item in node.elts]
            return items if isinstance(node, ast.List) else tuple(items)
        if isinstance(node, ast.Dict):
            return self.display(node, level)
        if isinstance(node, ast.Call):
            return self.call(node, level)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
            operand = self.value(node.operand, level + 1)
            if _is_number(operand):
                return -operand if isinstance(node.op, ast.USub) else operand
        if isinstance(node, ast.BinOp):
            return self.arithmetic(node, level)
        raise _Refused(node, f"{self.code(node)} is not read: {_EXECUTES_NOTHING}")

    def grow(self, node: ast.expr, size: int, depth: int) -> None:
        """Counts values and depth, so that a few lines cannot stand for a billion values."""
        self.count += size
        self.deepest = max(self.deepest, depth)
        if self.count > MAX_VALUES:
            raise _Refused(node, f"more than {MAX_VALUES} values")
        if self.deepest > MAX_DEPTH:
            raise _Refused(node, f"values more than {MAX_DEPTH} deep")

    def name(self, node: ast.Name, level: int) -> Any:
        """The value of a name assigned above."""
        if node.id in self.parsed.values:
            self.parsed.used.add(node.id)
            _, size, depth = self.assigned[node.id]
            self.grow(node, size, level + depth)
            return self.parsed.values[node.id]
        if node.id in self.broken:
            raise _Refused(node, f"'{node.id}' could not be read (above)")
        raise _Refused(node, f"'{node.id}' is not assigned above; names of base files are not seen here")

    def display(self, node: ast.Dict, level: int) -> dict[Any, Any]:
        """A `{key: value}`; `**` takes in another dict."""
        result: dict[Any, Any] = {}
        own: set[Any] = set()
        for key_node, value_node in zip(node.keys, node.values, strict=True):
            value = self.value(value_node, level + 1)
            if key_node is None:
                result.update(self.table(value_node, value))
                continue
            key = self.value(key_node, level + 1)
            if not isinstance(key, (str, int)):
                raise _Refused(key_node, f"the key {show(key)} is not read; wanted a text or a whole number")
            if key in own:
                raise _Refused(key_node, f"the key {show(key)} is given twice")
            own.add(key)
            result[key] = value
        return result

    def call(self, node: ast.Call, level: int) -> Any:
        """`dict(...)`, `list(...)`, `tuple(...)`, `range(...)`; no other call."""
        if not isinstance(node.func, ast.Name) or node.func.id not in _CALLS:
            raise _Refused(node, f"{self.code(node)} is not read: {_EXECUTES_NOTHING}")
        given = [self.value(item, level + 1) for item in node.args]
        if node.func.id == "dict":
            if given:
                raise _Refused(node, "dict(...) is read with keywords only")
            return self.keywords(node, level)
        if node.keywords:
            raise _Refused(node, f"{node.func.id}(...) is read without keywords")
        if node.func.id == "range":
            return self.range(node, given)
        if len(given) > 1 or not all(isinstance(item, (list, tuple)) for item in given):
            raise _Refused(node, f"{node.func.id}(...) is read with one list or tuple")
        return (list if node.func.id == "list" else tuple)(given[0] if given else ())

    def keywords(self, node: ast.Call, level: int) -> dict[Any, Any]:
        """The dict of a `dict(key=value, **other)`."""
        result: dict[Any, Any] = {}
        for keyword in node.keywords:
            value = self.value(keyword.value, level + 1)
            addition = self.table(keyword, value) if keyword.arg is None else {keyword.arg: value}
            if twice := result.keys() & addition.keys():
                raise _Refused(keyword, f"the key {show(sorted(map(str, twice))[0])} is given twice")
            result.update(addition)
        return result

    def table(self, node: ast.AST, value: Any) -> dict[Any, Any]:
        if not isinstance(value, dict):
            raise _Refused(node, f"** before {show(value)}, wanted a dict")
        return value

    def range(self, node: ast.Call, given: list[Any]) -> list[int]:
        """The numbers of a Python range, as a list; training logs leave one behind, as `gpu_ids`."""
        if not 1 <= len(given) <= 3 or not all(type(item) is int for item in given) or given[2:] == [0]:
            raise _Refused(node, "range(...) is read with one to three whole numbers")
        numbers = range(*given)
        if numbers and max(abs(numbers[0]), abs(numbers[-1])) > MAX_RANGE:
            raise _Refused(node, f"range(...) is read up to {MAX_RANGE}")
        return list(numbers)

    def arithmetic(self, node: ast.BinOp, level: int) -> Any:
        """Sums, products and powers of numbers; `+` joins texts and lists, too."""
        left, right = self.value(node.left, level + 1), self.value(node.right, level + 1)
        joinable = isinstance(left, (str, list, tuple)) and type(left) is type(right)
        if isinstance(node.op, ast.Add) and joinable:
            if len(left) + len(right) > MAX_STRING:
                raise _Refused(node, f"a sum longer than {MAX_STRING}")
            self.grow(node, 0 if isinstance(left, str) else len(left) + len(right), level)
            return left + right
        if not _is_number(left) or not _is_number(right):
            raise _Refused(node, f"arithmetic with {show(left)} and {show(right)} is not read; wanted numbers")
        try:
            if isinstance(node.op, ast.Pow):
                return self.number(node, _power(left, right))
            if type(node.op) in _ARITHMETIC:
                return self.number(node, _ARITHMETIC[type(node.op)](left, right))
        except ArithmeticError as error:
            raise _Refused(node, f"the sum cannot be done: {error}") from error
        raise _Refused(node, f"the operator in {self.code(node)} is not read")

    def number(self, node: ast.expr, value: Any) -> Any:
        """`value`, refused if it is a number out of all proportion."""
        if isinstance(value, complex) or (isinstance(value, float) and not math.isfinite(value)):
            raise _Refused(node, f"{show(value)}, wanted a finite number")
        if isinstance(value, int) and abs(value) > MAX_NUMBER:
            raise _Refused(node, "an enormous number")
        return value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _power(base: Any, exponent: Any) -> Any:
    """`base ** exponent`, never a number of a million digits."""
    if isinstance(base, int) and isinstance(exponent, int) and abs(exponent) > 64:
        raise OverflowError("a power of more than 64")
    return base**exponent
