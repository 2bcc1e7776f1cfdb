"""A look through a pickle before it is read: what it refers to, and whether reading it would ever end.

The restricted reader executes nothing, but it hashes: a tuple that holds one tuple twice, fifty levels deep, takes
2^50 steps as a dictionary's key, and one nested a million levels deep ends the process. The scan follows the reader's
own instructions and nothing else; where it meets one the reader does not know it stops, as the reader will.
"""

from __future__ import annotations

from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from dataclasses import dataclass, field
from typing import IO

MAX_STEPS = 3_000_000  # instructions; a checkpoint with an optimiser has some 100 thousand
MAX_HASHED = 20_000_000  # values that hashing shared containers may visit in all
MAX_DEPTH = 200  # levels of tuples
_TEXT_LIMIT = 1 << 26  # bytes of one text
_NAME_LIMIT = 300  # bytes of a module's or function's name

_ARGUMENT = {b"\x80": 1, b"J": 4, b"K": 1, b"M": 2, b"G": 8, b"h": 1, b"j": 4, b"q": 1, b"r": 4}
_PLAIN = frozenset((b"N", b"\x88", b"\x89", b")", b"]", b"}", b"\x8f", b"J", b"K", b"M", b"G"))
_BYTES = frozenset(("_codecs.encode", "builtins.bytes"))  # by whose calls protocol 2 carries bytes
_TUPLES = {b"\x85": 1, b"\x86": 2, b"\x87": 3}


class Unfit(Exception):  # noqa: N818
    """Why a file is not read as a checkpoint; its caller says which file."""


@dataclass
class References:
    """What pickles refer to."""

    names: set[str] = field(default_factory=set)  # classes and functions, as `module.name`
    # like_dicts, like_lists: those of them whose objects are filled item by item
    like_dicts: set[str] = field(default_factory=set)
    like_lists: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Value:
    """What matters of a value on the stack."""

    cost: int = 1  # how many values hashing it visits
    depth: int = 0  # how deep its tuples go
    name: str = ""  # the class or function that it is, or whose call gave it
    of_bytes: bool = False  # it is a tuple of nothing but bytes, as calls carry them


@dataclass
class _Machine:
    """The reader's stack and memo, with costs in place of values."""

    stack: list[_Value] = field(default_factory=list)
    outer: list[list[_Value]] = field(default_factory=list)
    memo: dict[int, _Value] = field(default_factory=dict)
    hashed: int = 0
    references: References = field(default_factory=References)

    def since_mark(self) -> list[_Value]:
        items, self.stack = self.stack, self.outer.pop()
        return items

    def push(self, parts: list[_Value]) -> None:
        """A tuple of `parts`, or what a call makes of them."""
        depth = 1 + max((part.depth for part in parts), default=0)
        if depth > MAX_DEPTH:
            raise Unfit(f"its tuples are nested more than {MAX_DEPTH} levels deep")
        of_bytes = all(part.name in _BYTES for part in parts)
        self.stack.append(_Value(1 + sum(part.cost for part in parts), depth, of_bytes=of_bytes))

    def use_again(self, value: _Value) -> None:
        self.hashed += value.cost
        if self.hashed > MAX_HASHED:
            raise Unfit("a few of its values repeat themselves without end")
        self.stack.append(value)


def scan(file: IO[bytes], count: int = 1) -> References:
    """Follows the next `count` pickles of `file`, and says what they refer to.

    Raises:
        Unfit: reading them would take too long or overflow the stack.
    """
    steps, references = MAX_STEPS, References()
    for _ in range(count):
        steps = _follow(file, steps, references)
        if steps < 0:
            break
    return references


def _follow(file: IO[bytes], steps: int, references: References) -> int:
    """One pickle; the steps left, or -1 where the reader will stop with an error of its own."""
    machine = _Machine(references=references)
    while steps:
        steps -= 1
        code = file.read(1)
        if code == b".":
            return steps
        try:
            if not _step(machine, code, file):
                return -1
        except (IndexError, KeyError):  # taken from an empty stack or memo: the reader fails there, too
            return -1
    raise Unfit(f"it has more than {MAX_STEPS:,} instructions")


def _step(machine: _Machine, code: bytes, file: IO[bytes]) -> bool:
    """One instruction; False if the reader does not know it."""
    argument = file.read(_ARGUMENT.get(code, 0))
    stack = machine.stack
    if code in _PLAIN:
        stack.append(_Value(of_bytes=code == b")"))
    elif code in (b"X", b"U", b"\x8a"):
        _skip_text(file, code)
        stack.append(_Value())
    elif code == b"c":
        name = _read_name(file)
        machine.references.names.add(name)
        stack.append(_Value(name=name))
    elif code == b"(":
        machine.outer.append(stack)
        machine.stack = []
    elif code == b"t":
        machine.push(machine.since_mark())
    elif code in _TUPLES:
        parts = [stack.pop() for _ in range(_TUPLES[code])]
        machine.push(parts)
    elif code in (b"q", b"r"):
        machine.memo[int.from_bytes(argument, "little")] = stack[-1]
    elif code in (b"h", b"j"):
        machine.use_again(machine.memo[int.from_bytes(argument, "little")])
    elif code in (b"R", b"\x81"):
        arguments, called = stack.pop(), stack.pop()
        if called.name == "builtins.bytearray" and not (arguments.of_bytes and code == b"R"):
            raise Unfit("it holds a bytearray that is not made of bytes")  # a number would be its length
        machine.use_again(_Value(arguments.cost + 1, name=called.name))
    elif code in (b"a", b"e", b"s", b"u"):
        _fill(machine, code)
    elif code == b"b":
        stack.pop()
    elif code == b"Q":
        stack[-1] = _Value()
    else:
        return code == b"\x80"
    return True


def _fill(machine: _Machine, code: bytes) -> None:
    """Items go into a list or dictionary; neither is hashable, but a call may make a tuple of a list."""
    if code in (b"a", b"s"):
        items = [machine.stack.pop() for _ in range(1 if code == b"a" else 2)]
    else:
        items = machine.since_mark()
    target, like_list = machine.stack[-1], code in (b"a", b"e")
    target.cost += sum(item.cost for item in items) if like_list else 0
    if target.name:
        references = machine.references
        (references.like_lists if like_list else references.like_dicts).add(target.name)


def _read_name(file: IO[bytes]) -> str:
    """A module and a name, as Python 3 calls them; the reader takes quadratic time over long ones."""
    lines = [file.readline(_NAME_LIMIT + 1) for _ in range(2)]
    if any(len(line) > _NAME_LIMIT for line in lines):
        raise Unfit(f"it names something in more than {_NAME_LIMIT} characters")
    module, name = (line.removesuffix(b"\n").decode("utf-8", "replace") for line in lines)
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return f"{module}.{name}"


def _skip_text(file: IO[bytes], code: bytes) -> None:
    length = int.from_bytes(file.read(4 if code == b"X" else 1), "little")
    if length > _TEXT_LIMIT:
        raise Unfit(f"it claims a text of {length:,} bytes")
    file.read(length)
