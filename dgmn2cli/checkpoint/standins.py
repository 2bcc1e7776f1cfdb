"""Stand-ins for objects that checkpoints carry beside their weights: numpy numbers, arrays, other programs' classes.

Each name in a pickle is mapped to a class of ours that only keeps data, so that no foreign code is reached from a
file. A name whose use would act, such as `os.system`, gets no stand-in and is refused by PyTorch's restricted reader.
"""

from __future__ import annotations

import builtins
import math
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

MAX_ARRAY = 1_000_000  # numbers of a numpy array beside the weights
_NUMBERS = frozenset(["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"])
_PATHS = "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath"
_DATA = {  # of the standard library and of numpy, what only holds data
    "argparse": "Namespace",
    "array": "_array_reconstructor array",
    "builtins": "object list dict tuple frozenset int float str bool slice range Ellipsis NotImplemented",
    "collections": "ChainMap defaultdict deque",
    "copyreg": "_reconstructor",
    "datetime": "date datetime time timedelta timezone",
    "decimal": "Decimal",
    "fractions": "Fraction",
    "ipaddress": "IPv4Address IPv6Address",
    "numpy": "ndarray",
    "numpy.ma": "MaskedArray",
    "numpy.ma.core": "_mareconstruct MaskedArray",
    "numpy.random._pickle": "__randomstate_ctor __generator_ctor __bit_generator_ctor",
    "numpy.random.bit_generator": "__pyx_unpickle_SeedSequence",
    "pathlib": _PATHS,
    "pathlib._local": _PATHS,
    "random": "Random",
    "re": "_compile",
    "types": "SimpleNamespace",
    "uuid": "UUID",
}
_OWN = ("builtins", "torch", "dgmn2cli", "numpy")  # their functions are never stood in for, their classes where named
_CLASSES = ("torch.optim.", "torch.nn.", "torch.amp.", "torch.cuda.amp.", "torch.torch_version.", "numpy.random.")


class Inert:
    """An object of another program's class: nothing of it was executed, its content was not kept."""

    name = ""

    def __new__(cls, *arguments: Any) -> Inert:
        return object.__new__(cls)

    def __init__(self, *arguments: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


class InertList(list[Any]):
    """As `Inert`, for a class that is filled like a list."""

    name = ""

    def __init__(self, *arguments: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


class DictLike:
    """Makes plain ordered dictionaries: their items are kept, whatever class they were of."""

    def __new__(cls, *arguments: Any) -> Any:
        return OrderedDict()


class Dtype:
    """Stands for `numpy.dtype`: knows only the name of a plain number type and its byte order."""

    def __init__(self, name: str, _align: bool = False, _copy: bool = True) -> None:
        self.name, self.order = name, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if len(state) > 1 and state[1] in ("<", ">", "|"):
            self.order = "<" if state[1] == "|" else state[1]

    def unpack(self, data: bytes) -> np.ndarray:
        """The numbers in `data`.

        Raises:
            ValueError: the type is no plain number's.
        """
        if self.name not in _NUMBERS or not isinstance(data, bytes):
            raise ValueError(f"{str(self.name)[:20]!r} is not a plain number type")
        return np.frombuffer(data, f"{self.order}{self.name}")


class Array(Inert):
    """Stands for a numpy array; `nested` are its numbers as nested lists, None where they are no plain numbers."""

    name = "numpy.ndarray"
    nested: Any = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, columns_first, data = state
        if isinstance(dtype, Dtype) and dtype.name in _NUMBERS and not columns_first and isinstance(data, bytes):
            if len(data) > 8 * MAX_ARRAY or len(shape) > 32 or not all(type(n) is int and n >= 0 for n in shape):
                return
            numbers = dtype.unpack(data)
            if len(numbers) == math.prod(shape):  # an empty one may claim any number of empty lists
                self.nested = numbers.reshape(shape).tolist() if len(numbers) else []


class Scalar(Inert):
    """Stands for a numpy scalar that is no plain number, such as a date."""

    name = "numpy.generic"


def scalar(dtype: Dtype, data: bytes) -> float | int | bool | Scalar:
    """Stands for numpy's scalar constructor: a Python number from its bytes."""
    if dtype.name not in _NUMBERS:
        return Scalar()
    value: float | int | bool = dtype.unpack(data)[0].item()
    return value


def latin1(text: str, encoding: str = "latin1") -> bytes:
    """Stands for `_codecs.encode`, by which protocol 2 pickles carry bytes."""
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"the encoding {encoding!r} is not used by checkpoints")
    return text.encode("latin-1")


def no_bytes() -> bytes:
    """Stands for `bytes`, by which protocol 2 pickles carry empty ones."""
    return b""


SAFE_GLOBALS: list[tuple[Callable[..., Any], str]] = [
    (Dtype, "numpy.dtype"),
    *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((Array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    (latin1, "_codecs.encode"),
    (no_bytes, "builtins.bytes"),
]
_KNOWN = {name for _, name in SAFE_GLOBALS}


def stand_ins(
    names: Iterable[str], like_dicts: Iterable[str], like_lists: Iterable[str]
) -> list[tuple[Callable[..., Any], str]]:
    """A stand-in for each of the names that only hold data.

    Args:
        names: what a pickle refers to, as `module.name`.
        like_dicts, like_lists: those whose objects it fills item by item.
    """
    made: list[tuple[Callable[..., Any], str]] = []
    for name in sorted(set(names) - _KNOWN):
        if not holds_data(name):
            continue
        if name in like_dicts:
            made.append((DictLike, name))
        else:
            base = InertList if name in like_lists else Inert
            made.append((type(base.__name__, (base,), {"name": name}), name))
    return [*SAFE_GLOBALS, *made]


def holds_data(name: str) -> bool:
    """Whether what `module.name` stands for is data: a class, outside of the modules whose use would act."""
    module, _, last = name.rpartition(".")
    if last in _DATA.get(module, "").split():
        return True
    top = module.split(".")[0]
    if module == "builtins":
        kind = getattr(builtins, last, None)
        return isinstance(kind, type) and issubclass(kind, BaseException)
    if top in _OWN:
        return name.startswith(_CLASSES) and last[:1].isupper()
    of_python = top in sys.stdlib_module_names and not last.endswith(("Error", "Exception", "Warning"))
    return bool(module) and not of_python and last[:1].isupper()
