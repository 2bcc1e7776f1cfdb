"""Reading mmcv-style configuration files with their bases into one plain dict, merged as mmcv merges them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dgmn2cli.config.mmcv.stock import stock_file
from dgmn2cli.config.mmcv.syntax import MmcvDocument as MmcvDocument
from dgmn2cli.config.mmcv.syntax import parse
from dgmn2cli.config.schema import WRONG
from dgmn2cli.config.text import MAX_BYTES, read_config_text
from dgmn2cli.errors import Dgmn2Error
from dgmn2cli.validation import raise_faults, show

MAX_FILES = 32  # a file and all its bases
MAX_BASES = 8  # a base of a base of ...
BASE, DELETE = "_base_", "_delete_"
V1_MARKS = ("train_dataloader", "val_dataloader", "optim_wrapper", "param_scheduler", "default_hooks", "default_scope")
_HINT = "Files in the mmcv language are read here, not run; a native .toml file can say the rest."


def read_mmcv_file(path: Path) -> MmcvDocument:
    """An mmcv-style `.py` file with everything under its `_base_`, read without executing anything.

    Raises:
        ConfigError: unreadable, not of the language, a base missing or circular; every fault with file and line.
    """
    return _checked(_Walk().visit(path, path.name, ()), path)


def read_mmcv_text(text: str, name: str) -> MmcvDocument:
    """An mmcv-style configuration given as text, as a checkpoint's `meta` holds it; only stock bases can be resolved.

    Raises:
        ConfigError: as for `read_mmcv_file`.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise_faults(WRONG, [f"{name}: it is larger than {MAX_BYTES // 1_000_000} MB"], where=name)
    return _checked(_Walk().document(text, name, None, ()), name)


def _checked(document: MmcvDocument, where: object) -> MmcvDocument:
    if document.faults:
        if form := v1_form(document.values):
            document.faults.insert(0, f"{form}, and not all of it can be read")
        raise_faults(WRONG, document.faults, where, _HINT)
    return document


class _Walk:
    def __init__(self) -> None:
        self.files = 0

    def visit(self, path: Path, label: str, chain: tuple[Path, ...]) -> MmcvDocument:
        """The document in a file; `chain` are the files that led here."""
        self.files += 1
        if (real := Path(os.path.realpath(path))) in chain:
            return MmcvDocument(faults=[f"{label}: the files name each other in a circle under {BASE}"])
        if len(chain) >= MAX_BASES or self.files > MAX_FILES:
            return MmcvDocument(faults=[f"{label}: more than {MAX_BASES} levels or {MAX_FILES} files of bases"])
        try:
            text = read_config_text(path)
        except Dgmn2Error as error:
            if not chain:
                raise
            return MmcvDocument(faults=[f"{label}: {error.why}"])
        return self.document(text, label, path.parent, (*chain, real))

    def document(self, text: str, label: str, folder: Path | None, chain: tuple[Path, ...]) -> MmcvDocument:
        """The document in a text that lies in `folder`, its bases merged under it."""
        parsed = parse(text, label)
        values = {name: value for name, value in parsed.values.items() if not name.startswith("__")}
        result = self.bases(values.pop(BASE, []), label, folder, chain)
        result.add(parsed)
        result.values = merge(values, result.values, label, result.faults)
        return result

    def bases(self, named: Any, label: str, folder: Path | None, chain: tuple[Path, ...]) -> MmcvDocument:
        """The bases of one file side by side; as in mmcv, no key may come from two of them."""
        names = [named] if isinstance(named, str) else named
        if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) and name for name in names):
            return MmcvDocument(faults=[f"{label}: {BASE}: {show(named)}, wanted a path or a list of paths"])
        result = MmcvDocument()
        for name in names:
            base = self.base(name, label, folder, chain)
            if twice := sorted(result.values.keys() & base.values.keys()):
                result.faults.append(f"{label}: {BASE}: {show(twice[0])} comes from {show(name)} and another base")
            result.values.update(base.values)
            result.add(base)
        return result

    def base(self, name: str, label: str, folder: Path | None, chain: tuple[Path, ...]) -> MmcvDocument:
        """One base: the file itself, else our knowledge of the published file of that name."""
        if not name.isprintable() or len(name) > 1000:
            return MmcvDocument(faults=[f"{label}: {BASE}: {show(name)}, wanted a path"])
        path = folder / name if folder is not None else None
        if path is not None and os.path.lexists(path):
            return self.visit(path, os.path.normpath(name), chain)
        place = Path(os.path.normpath(path if path is not None else name))
        stock = stock_file(place)
        if stock is None:
            return MmcvDocument(faults=[f"{label}: {BASE}: {show(name)}: no such file: {place}"])
        found = self.document(stock, name, None, chain)
        found.notes.append(f"{label}: {name} is absent; the published file of that name is known, and taken as it was")
        found.absent.append(name)
        return found


def merge(child: dict[Any, Any], base: dict[Any, Any], label: str, faults: list[str], path: str = "") -> dict[Any, Any]:
    """`child` over `base` as mmcv merges: dicts key by key, `_delete_=True` replaces one, all else is replaced.

    A dict that would replace something else is a fault, whose line has the file's `label` and the key `path`.
    """
    result = dict(base)
    for key, value in child.items():
        place = f"{path}.{key}" if path else str(key)
        if not isinstance(value, dict):
            result[key] = value
            continue
        own = {name: item for name, item in value.items() if name != DELETE}
        under = {} if value.get(DELETE) else base.get(key, {})
        if isinstance(under, dict):
            result[key] = merge(own, under, label, faults, place)
        else:
            faults.append(f"{label}: {place}: a dict, but {show(under)} in the base; {DELETE}=True would replace it")
    return result


def v1_form(values: dict[str, Any]) -> str:
    """What to say of a configuration that shows by its keys that it is of the 1.x format; empty for the 0.x format."""
    found = [key for key in V1_MARKS if key in values]
    if str(table(values.get("train_cfg")).get("type", "")).endswith("TrainLoop"):
        found.append("train_cfg")
    if "data_preprocessor" in table(values.get("model")):
        found.append("model.data_preprocessor")
    return f"this is MMSegmentation's 1.x format ({', '.join(found)})" if found else ""


def table(value: Any) -> dict[Any, Any]:
    """`value` if it is a dict, else an empty one."""
    return value if isinstance(value, dict) else {}


def same(a: Any, b: Any) -> bool:
    """Equality of two values, lists and tuples alike."""
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)


def one_of(value: Any, allowed: Sequence[Any]) -> bool:
    """Whether `value` is one of `allowed`, lists and tuples alike."""
    return any(same(value, item) for item in allowed)
