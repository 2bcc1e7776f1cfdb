"""Which network a set of weights belongs to: head and backbone, how many classes, and what does not fit."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from dgmn2cli.checkpoint.weights import COUNTER
from dgmn2cli.model.backbone import BLOCKS, Backbone, Classifier
from dgmn2cli.model.segmentor import HEADS, Segmentor
from dgmn2cli.model.shapes import shapes_only

CLASS_LAYER = "decode_head.conv_seg.weight"
LISTED = 5  # tensors named of each kind of difference
_LEAST_SHARE = 0.5  # of a network's tensors that must be there for the file to be called one
PUBLISHED_CLASSES = {"segmentor": 19, "classifier": 1000}


@dataclass(frozen=True)
class Recognised:
    """What a set of named tensors is.

    Attributes:
        kind: `segmentor`, `classifier` (an ImageNet checkpoint), `backbone` (the same without its head) or `unknown`.
        size: `tiny`, `small`, `medium` or `large`; empty if unknown.
        head: of a segmentor, `fpn`, `setr_naive`, `setr_pup` or `setr_mla`.
        classes: classes it tells apart; None if it has no classification layer.
        missing: names of tensors the network has and the file has not.
        unexpected: names of tensors the file has and the network has not.
        misshapen: tensors of another shape, in words.
    """

    kind: str
    size: str = ""
    head: str = ""
    classes: int | None = None
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshapen: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether every tensor is there in the right shape and none is left over."""
        return self.kind != "unknown" and not (self.missing or self.unexpected or self.misshapen)

    @property
    def key(self) -> str:
        """The zoo key of its kind, such as `fpn-tiny` or `dgmn2_tiny`; empty if unknown."""
        if self.kind == "unknown":
            return ""
        return f"{self.head}-{self.size}" if self.kind == "segmentor" else f"dgmn2_{self.size}"

    @property
    def published(self) -> bool:
        """Whether it has exactly the tensors of one of the published files."""
        return self.exact and self.kind in PUBLISHED_CLASSES and self.classes == PUBLISHED_CLASSES[self.kind]

    def in_words(self) -> str:
        """`setr_pup-tiny`, `setr_pup-tiny with 12 classes`, `fpn-tiny, but 3 tensors are missing`, ..."""
        if self.kind == "unknown":
            return "no DGMN2 network"
        words = self.key
        if self.kind == "backbone":
            words += " without its classification layer"
        elif self.classes not in (None, PUBLISHED_CLASSES[self.kind]):
            words += f" with {self.classes} class{'es' * (self.classes != 1)}"
        faults = [
            f"{len(names)} tensor{'s are' if len(names) != 1 else ' is'} {text}"
            for text, names in self._faults()
            if names
        ]
        return f"{words}, but {', '.join(faults)}" if faults else words

    def differences(self) -> list[str]:
        """The first few tensors of each kind of difference, a line each."""
        lines = []
        for name, items in self._faults():
            rest = len(items) - LISTED
            lines.append(f"{name}: {'; '.join(items[:LISTED])}" + (f"; and {rest} more" if rest > 0 else ""))
        return lines

    def _faults(self) -> list[tuple[str, tuple[str, ...]]]:
        """What is wrong, by its name."""
        named = ("missing", self.missing), ("unknown", self.unexpected), ("of another shape", self.misshapen)
        return [(name, items) for name, items in named if items]


def recognise(state: Mapping[str, Tensor]) -> Recognised:
    """The network whose weights `state` holds, judged by names and shapes alone."""
    candidates = list(_candidates(state))
    if not candidates:
        return Recognised("unknown")
    best = min(candidates, key=lambda found: len(found.missing) + len(found.unexpected) + len(found.misshapen))
    wrong = len(best.missing) + len(best.misshapen)
    present = len(state) - len(best.unexpected)
    return best if present and wrong <= (1 - _LEAST_SHARE) * (present + len(best.missing)) else Recognised("unknown")


def _candidates(state: Mapping[str, Tensor]) -> Iterable[Recognised]:
    """What it may be: every head at the size whose block counts come nearest."""
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    if any(key.startswith("backbone.") for key in shapes):
        size = _nearest_size(shapes, "backbone.")
        rows = shapes.get(CLASS_LAYER, ())
        classes = rows[0] if rows and 1 <= rows[0] <= 100_000 else None
        for head in HEADS:
            yield _compared("segmentor", size, head, classes, shapes)
    elif any(key.startswith(("block", "patch_embed")) for key in shapes):
        size = _nearest_size(shapes, "")
        rows = shapes.get("head.weight", ())
        classes = rows[0] if rows and 1 <= rows[0] <= 100_000 else None
        yield _compared("backbone" if classes is None else "classifier", size, "", classes, shapes)


def _nearest_size(shapes: Iterable[str], prefix: str) -> str:
    found = [0, 0, 0, 0]
    for key in shapes:
        if match := re.match(rf"{prefix}block([1-4])\.([0-9]{{1,3}})\.", key):
            stage = int(match[1]) - 1
            found[stage] = max(found[stage], int(match[2]) + 1)
    return min(BLOCKS, key=lambda size: sum(abs(a - b) for a, b in zip(BLOCKS[size], found, strict=True)))


def _compared(kind: str, size: str, head: str, classes: int | None, shapes: dict[str, tuple[int, ...]]) -> Recognised:
    wanted = {key: tuple(value.shape) for key, value in _network(kind, size, head, classes).state_dict().items()}
    return Recognised(
        kind,
        size,
        head,
        classes,
        missing=tuple(key for key in wanted if key not in shapes and not key.endswith(COUNTER)),
        unexpected=tuple(key for key in shapes if key not in wanted),
        misshapen=tuple(
            f"{key} {shapes[key]}, wanted {wanted[key]}"
            for key in wanted
            if key in shapes and shapes[key] != wanted[key]
        ),
    )


def _network(kind: str, size: str, head: str, classes: int | None) -> nn.Module:
    """The network for its names and shapes; its weights take no memory."""
    with shapes_only():
        if kind == "segmentor":
            return Segmentor(size, head, classes or PUBLISHED_CLASSES["segmentor"])
        return Classifier(size, classes) if kind == "classifier" and classes else Backbone(size)
