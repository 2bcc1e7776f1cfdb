"""Where the weights are in a file: the entry that holds them, prefixes of their names, averaged copies beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from dgmn2cli.checkpoint.contents import DTYPES, without_objects
from dgmn2cli.checkpoint.formats import Format
from dgmn2cli.checkpoint.pickles import Unfit
from dgmn2cli.errors import printable

WEIGHTS = ("state_dict", "model", "model_state_dict", "model_state", "net", "network", "params", "weights", "module")
AVERAGES = ("state_dict_ema", "ema_state_dict", "model_ema", "ema", "params_ema", "model_ema_state_dict")
PREFIXES = ("module.", "_orig_mod.", "model.")  # of DistributedDataParallel, torch.compile, Lightning
UNREPORTED = {"json": False}
LONGEST_NAME = 180  # characters of a class's name, with which configurations and protocols take it
_FIRST = ("backbone.", "decode_head.", "patch_embed1.")  # one of them starts a name in every DGMN2 network
_COUNTERS = ("steps", "n_averaged", "num_updates", "decay")  # of averaged copies


@dataclass(frozen=True)
class Checkpoint:
    """A model file that was read safely."""

    path: Path  # the file
    sha256: str  # hash of the bytes that were read
    size: int  # bytes
    format: Format = "pth"  # how the file is made
    # parameter and buffer tensors by the network's own names, on the CPU
    state: dict[str, Tensor] = field(default_factory=dict, metadata=UNREPORTED)
    # what the file says about itself (classes, palette, configuration text, iteration), if anything
    meta: dict[str, Any] = field(default_factory=dict, metadata=UNREPORTED)
    # further entries beside the weights, such as `optimizer`
    rest: dict[str, Any] = field(default_factory=dict, metadata=UNREPORTED)
    # the entry that holds the weights, such as `state_dict`; empty where the file is nothing but them
    wrapper: str = ""
    # for each name that bore a prefix, such as `module.`, the file's
    renamed: dict[str, str] = field(default_factory=dict, metadata=UNREPORTED)
    notes: tuple[str, ...] = ()  # what the user should know: which entry was taken, what was left out

    @property
    def prefixes(self) -> tuple[str, ...]:
        """What was taken off the names, such as `module.`."""
        return tuple(sorted({old.removesuffix(new) for new, old in self.renamed.items() if old.endswith(new)}))


def unwrap(file: Checkpoint, content: Any, ema: bool = False) -> Checkpoint:
    """`file` with the weights, and what is beside them, that are found in its content.

    Args:
        file: what is known already; its `meta` counts where the content is nothing but weights.
        content: plain containers and tensors.
        ema: take the averaged copy of the weights.

    Raises:
        Unfit: there are none, or it is not clear which they are.
    """
    if not isinstance(content, Mapping):
        what = getattr(content, "name", "") or f"a {type(content).__name__}"
        raise Unfit(f"it holds {what}, wanted named tensors (a state dict)")
    content = _raised({str(key): item for key, item in content.items()})  # a wrapper may be a number, too
    average = _average(content)
    if ema and not average:
        raise Unfit("it holds no averaged weights (state_dict_ema, ema_state_dict, ...), and --ema asks for them")
    wrapper = average if ema else _wrapper(content)
    objects: set[str] = set()
    beside = {key: item for key, item in content.items() if key not in (wrapper, "meta")} if wrapper else {}
    rest = without_objects({key: [item] for key, item in beside.items()}, objects)
    rest = {key: item[0] for key, item in rest.items() if item}
    said = content.get("meta") if wrapper else file.meta
    about = without_objects(dict(said), objects) if isinstance(said, Mapping) else {}
    state, renamed = _weights(content[wrapper] if wrapper else content)
    notes = []
    if wrapper not in ("", "state_dict", "model"):
        notes.append(f"The weights are the file's entry '{wrapper}'.")
    if average and not ema:
        notes.append(
            f"The file also holds averaged weights ('{average}'); infer, eval and convert take those with --ema."
        )
    found = replace(file, state=state, meta=about, rest=rest, wrapper=wrapper, renamed=renamed)
    if found.prefixes:
        notes.append(f"The prefix {', '.join(map(repr, found.prefixes))} was taken off the names.")
    if objects:
        listed = ", ".join(sorted(objects)[:5]) + (f" and {len(objects) - 5} more" if len(objects) > 5 else "")
        notes.append(f"Objects of other programs beside the weights were left out: {listed}.")
    return replace(found, notes=tuple(notes))


def _raised(content: dict[str, Any]) -> dict[str, Any]:
    """The content with weights that lie two levels deep, `{'checkpoint': {'state_dict': ...}}`, one level higher."""
    if any(_holds_tensors(content.get(name)) for name in WEIGHTS):
        return content
    inside = [
        key
        for key, item in content.items()
        if key != "meta" and isinstance(item, Mapping) and any(_holds_tensors(item.get(name)) for name in WEIGHTS)
    ]
    if len(inside) != 1:
        return content
    return {**{key: item for key, item in content.items() if key != inside[0]}, **content[inside[0]]}


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(item, Tensor) for item in value.values())


def _average(content: Mapping[str, Any]) -> str:
    """The entry that holds averaged weights, empty where none does."""
    return next((name for name in AVERAGES if _holds_tensors(content.get(name))), "")


def _wrapper(content: Mapping[str, Any]) -> str:
    """The entry that holds the weights; empty where the content is nothing but them."""
    named = next((name for name in WEIGHTS if isinstance(content.get(name), Mapping)), "")
    candidates = [key for key, item in content.items() if key not in (*AVERAGES, "meta") and _holds_tensors(item)]
    if named or (_holds_tensors(content) and not candidates):  # a tensor beside candidates is no weight, but a state
        return named
    if len(candidates) == 1:
        return candidates[0]
    if not candidates and (average := _average(content)):
        return average
    objects = [f"'{key}' is a whole {item.name}" for key, item in content.items() if getattr(item, "name", "")]
    if len(candidates) > 1:
        raise Unfit(f"several of its entries hold tensors: {', '.join(candidates[:8])}; save one under 'state_dict'")
    if objects:
        raise Unfit(f"{objects[0]}; save its state_dict() instead")
    return ""


def _weights(entries: Mapping[Any, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors by the network's own names, and the file's names of those whose name was changed."""
    state: dict[str, Tensor] = {}
    renamed: dict[str, str] = {}
    tensors = {str(key): item for key, item in entries.items() if str(key) not in _COUNTERS}
    common = _common_prefix(tensors)
    for key, item in tensors.items():
        if not isinstance(item, Tensor):
            kind = getattr(item, "name", "") or f"a {type(item).__name__}"
            raise Unfit(f"its entry {key[:80]!r} is {kind}, wanted a dense tensor of a state dict")
        name = _own_name(key).removeprefix(common)
        if name in state:
            raise Unfit(f"it holds {name[:80]!r} twice, as {key[:80]!r} and {renamed.get(name, name)[:80]!r}")
        state[name] = item
        if name != key:
            renamed[name] = key
    if not state:
        raise Unfit("it holds no tensors")
    if odd := [f"{key} {value.dtype}" for key, value in state.items() if value.dtype not in DTYPES]:
        raise Unfit(f"its entry {odd[0][:120]} has a dtype that no network computes with")
    return state, renamed


def _own_name(key: str) -> str:
    """A name without what wrappers put before it, or `torch.compile` in its middle."""
    while any(key.startswith(prefix) for prefix in PREFIXES):
        key = key.partition(".")[2]
    return key.replace("._orig_mod.", ".")


def _common_prefix(names: Mapping[str, Any]) -> str:
    """What any other program put before every name of a DGMN2 network, such as `segmentor.net.`; else nothing.

    Raises:
        Unfit: weights of several networks, told apart by their prefixes, such as `model.` and `ema_model.`.
    """
    counts: Counter[str] = Counter()
    for key in map(_own_name, names):
        starts = [0] * key.startswith(_FIRST) + [found + 1 for start in _FIRST if (found := key.find(f".{start}")) >= 0]
        if starts:
            counts[key[: min(starts)]] += 1
    if len(counts) > 1:
        listed = ", ".join(f"{prefix!r} ({count})" for prefix, count in sorted(counts.items())[:5])
        raise Unfit(f"its names have several prefixes, one for each network: {listed}; save one of them by itself")
    prefix = next(iter(counts), "")
    return prefix if all(_own_name(key).startswith(prefix) for key in names) else ""


def class_names(meta: Mapping[str, Any]) -> tuple[tuple[str, ...] | None, Any]:
    """The names of the classes and their colours, as MMSegmentation 0.x (`CLASSES`) or 1.x (`dataset_meta`) keeps them.

    Returns:
        The names, None where the file says nothing usable, made fit for files and tables (printable, each once); and
        whatever it says of the palette.
    """
    sources = [source for source in (meta.get("dataset_meta"), meta) if isinstance(source, Mapping)]
    said = {str(key).lower(): item for source in sources for key, item in source.items()}
    names = said.get("classes")
    if not isinstance(names, (list, tuple)) or not names or not all(isinstance(name, str) for name in names):
        return None, said.get("palette")
    fitting = dict[str, None]()
    for index, name in enumerate(names):
        fit = printable(name)[:LONGEST_NAME] if name.strip() else f"class {index}"
        while fit in fitting:
            fit += f" ({index})"
        fitting[fit] = None
    return tuple(fitting), said.get("palette")
