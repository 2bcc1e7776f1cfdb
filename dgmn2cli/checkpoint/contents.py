"""What a checkpoint may hold: plain containers, numbers, texts and whole tensors, made plain and bounded.

The restricted reader lets more through than weights need: dictionaries and tensors whose methods are replaced by data,
a tensor that repeats one number 10^12 times, a list that holds itself. None of it gets past here.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dgmn2cli.checkpoint.pickles import Unfit
from dgmn2cli.checkpoint.standins import Array, Dtype, Inert, InertList

MAX_DEPTH = 60
MAX_VALUES = 3_000_000
SPARE_BYTES = 16 << 20
_NAMED, _LONGEST = 3, 120  # entries that an error names, the innermost ones; characters of one
_TEXT_STEP = 64  # characters that count as one value more
_NUMBERS = "float64 float32 float16 bfloat16 float8_e4m3fn float8_e5m2 int64 int32 int16 int8 uint8 bool"
DTYPES = frozenset(getattr(torch, name) for name in _NUMBERS.split(" "))


def plain(content: Any, size: int) -> Any:
    """A copy of `content` in dicts, lists, tuples, numbers, texts and dense CPU tensors; tensors are not copied.

    Args:
        content: what the restricted reader made of a file.
        size: bytes of the file; its tensors may take twice that and 16 MiB (parts of an archive may be compressed).

    Raises:
        Unfit: another type, tensors beyond their storage or the file, too deep, too many values.
    """
    return _Copy(2 * size + SPARE_BYTES).of(content, 0)


class _Copy:
    """One copying: what may still be used up."""

    def __init__(self, max_bytes: int) -> None:
        self.bytes_left = max_bytes
        self.values = 0
        self.storages: set[int] = set()
        self.within: list[str] = []  # names of the dictionaries' entries that lead to what is copied

    def of(self, value: Any, depth: int) -> Any:
        self.count(1)
        if depth > MAX_DEPTH:
            raise Unfit(f"its containers are nested more than {MAX_DEPTH} levels deep, or hold themselves")
        if isinstance(value, Tensor):
            return self.tensor(value)
        if isinstance(value, dict):
            # its own methods may be replaced by data from the file; those of the type are not
            items = OrderedDict.items(value) if isinstance(value, OrderedDict) else dict.items(value)
            return {self.key(key): self.entry(key, item, depth + 1) for key, item in items}
        if isinstance(value, Array) and value.nested is not None:
            return self.of(value.nested, depth)
        if isinstance(value, InertList):
            return value
        if isinstance(value, (list, set, frozenset)):
            return [self.of(item, depth + 1) for item in value]
        if isinstance(value, tuple):
            return tuple(self.of(item, depth + 1) for item in value)
        return self.atom(value)

    def entry(self, key: Any, value: Any, depth: int) -> Any:
        self.within.append(str(key)[:_LONGEST])
        copied = self.of(value, depth)
        self.within.pop()
        return copied

    def here(self) -> str:
        """What is copied, in words."""
        return f"its entry {'.'.join(self.within[-_NAMED:])!r}" if self.within else "it"

    def count(self, number: int) -> None:
        self.values += number
        if self.values > MAX_VALUES:
            raise Unfit(f"it holds more than {MAX_VALUES:,} values")

    def key(self, key: Any) -> Any:
        if not isinstance(key, (str, bytes, int, float, bool, tuple, type(None))):
            raise Unfit(f"it has a {type(key).__name__} as a key")
        return self.atom(key) if isinstance(key, (str, bytes)) else key

    def atom(self, value: Any) -> Any:
        """A number or text; half a surrogate pair, which no file or terminal takes, is escaped."""
        if isinstance(value, str):
            self.count(len(value) // _TEXT_STEP)
            return value.encode("utf-8", "backslashreplace").decode("utf-8")
        if isinstance(value, (bytes, bytearray)):
            self.count(len(value) // _TEXT_STEP)
            return bytes(value)
        if value is None or isinstance(value, (bool, int, float, complex)):
            return value
        if isinstance(value, (torch.dtype, torch.device, torch.layout)):
            return str(value)
        if isinstance(value, Inert):
            return value
        if isinstance(value, Dtype):
            return str(value.name)
        if isinstance(value, type) and issubclass(value, (Inert, InertList)):
            return value()
        raise Unfit(f"{self.here()} holds a {type(value).__name__}, which no checkpoint needs")

    def tensor(self, value: Tensor) -> Tensor:
        """The bare tensor, once it is known to lie within its storage and the storages within the file."""
        value = Tensor.detach(value)  # a parameter's attributes, which a file may set, stay behind
        if value.layout != torch.strided or value.is_quantized or value.is_nested or value.device.type != "cpu":
            raise Unfit(f"{self.here()} holds a tensor that is sparse, quantized, nested or without data")
        storage = value.untyped_storage()
        if value.numel() * value.element_size() > storage.nbytes():
            shape, room = tuple(value.shape), storage.nbytes()
            raise Unfit(f"{self.here()} holds a tensor of shape {shape} that is said to lie in {room:,} bytes")
        if storage.data_ptr() not in self.storages:
            self.storages.add(storage.data_ptr())
            self.bytes_left -= storage.nbytes()
        if self.bytes_left < 0:
            raise Unfit("its tensors take more room than the file")
        return value


def without_objects(value: Any, found: set[str]) -> Any:
    """`value`, a plain copy, without the entries that are other programs' objects; their classes go into `found`."""
    if isinstance(value, dict):
        return {key: without_objects(item, found) for key, item in value.items() if not _noted(item, found)}
    if isinstance(value, (list, tuple)):
        return type(value)(without_objects(item, found) for item in value if not _noted(item, found))
    return value


def _noted(value: Any, found: set[str]) -> bool:
    if isinstance(value, (Inert, InertList)):
        found.add(value.name)
        return True
    return False


def digest(content: Any) -> str:
    """SHA-256 over nested dicts, lists, numbers, texts and tensors: names, types, shapes and bytes, in order."""
    running = hashlib.sha256()

    def visit(value: Any) -> None:
        if isinstance(value, Tensor):
            array = value.detach().cpu().contiguous()
            running.update(f"T{array.dtype}{tuple(array.shape)}:".encode())
            running.update(array.flatten().view(torch.uint8).numpy().data)
        elif isinstance(value, Mapping):
            running.update(f"D{len(value)}:".encode())
            for key, item in value.items():
                running.update(f"K{key!r}:".encode())
                visit(item)
        elif isinstance(value, (list, tuple)):
            running.update(f"L{len(value)}:".encode())
            for item in value:
                visit(item)
        else:
            running.update(f"V{value!r}:".encode())

    visit(content)
    return running.hexdigest()
