"""Which network a set of weights belongs to: head and backbone, how many classes, and what does not fit."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from dgmn2cli.checkpoint.weights import differences
from dgmn2cli.model.backbone import BLOCKS, Backbone, Classifier
from dgmn2cli.model.segmentor import HEADS, Segmentor
from dgmn2cli.model.shapes import shapes_only

CLASS_LAYER = "decode_head.conv_seg.weight"
_LEAST_SHARE = 0.5  # of a network's tensors that must be there for the file to be called one
PUBLISHED_CLASSES = {"segmentor": 19, "classifier": 1000}


@dataclass(frozen=True)
class Recognised:
    """What a set of named tensors is."""

    kind: str  # `segmentor`, `classifier` (an ImageNet checkpoint), `backbone` (the same without its head) or `unknown`
    backbone: str = ""  # `tiny`, `small`, `medium` or `large`; empty if unknown
    head: str = ""  # of a segmentor, `fpn`, `setr_naive`, `setr_pup` or `setr_mla`
    classes: int | None = None  # classes it tells apart; None if it has no classification layer
    # tensors that are missing, unexpected or of another shape, by that word
    differences: dict[str, list[str]] = field(default_factory=dict)

    @property
    def exact(self) -> bool:
        """Whether every tensor is there in the right shape and none is left over."""
        return self.kind != "unknown" and not self.differences

    @property
    def key(self) -> str:
        """The zoo key of its kind, such as `fpn-tiny` or `dgmn2_tiny`; empty if unknown."""
        if self.kind == "unknown":
            return ""
        return f"{self.head}-{self.backbone}" if self.kind == "segmentor" else f"dgmn2_{self.backbone}"

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
            for text, names in self.differences.items()
        ]
        return f"{words}, but {', '.join(faults)}" if faults else words


def recognise(state: Mapping[str, Tensor]) -> Recognised:
    """The network whose weights `state` holds, judged by names and shapes alone."""
    candidates = list(_candidates(state))
    if not candidates:
        return Recognised("unknown")

    def count(found: Recognised, *kinds: str) -> int:
        return sum(len(found.differences.get(kind, ())) for kind in kinds or found.differences)

    best = min(candidates, key=count)
    wrong, missing = count(best, "missing", "of another shape"), count(best, "missing")
    present = len(state) - count(best, "unexpected")
    return best if present and wrong <= (1 - _LEAST_SHARE) * (present + missing) else Recognised("unknown")


def _candidates(state: Mapping[str, Tensor]) -> Iterable[Recognised]:
    """What it may be: every head at the size whose block counts come nearest."""
    whole = any(key.startswith("backbone.") for key in state)
    if not whole and not any(key.startswith(("block", "patch_embed")) for key in state):
        return
    size = _nearest_size(state, "backbone." if whole else "")
    layer = state.get(CLASS_LAYER if whole else "head.weight")
    rows = layer.shape[0] if layer is not None and layer.dim() else 0
    classes = rows if 1 <= rows <= 100_000 else None
    kind = "segmentor" if whole else "classifier" if classes else "backbone"
    for head in HEADS if whole else ("",):
        found = differences(_network(kind, size, head, classes).state_dict(), state)
        found.pop("of another type", None)  # a file of float16 is the same network's
        yield Recognised(kind, size, head, classes, found)


def _nearest_size(shapes: Iterable[str], prefix: str) -> str:
    found = [0, 0, 0, 0]
    for key in shapes:
        if match := re.match(rf"{prefix}block([1-4])\.([0-9]{{1,3}})\.", key):
            stage = int(match[1]) - 1
            found[stage] = max(found[stage], int(match[2]) + 1)
    return min(BLOCKS, key=lambda size: sum(abs(a - b) for a, b in zip(BLOCKS[size], found, strict=True)))


def _network(kind: str, size: str, head: str, classes: int | None) -> nn.Module:
    """The network for its names and shapes; its weights take no memory."""
    with shapes_only():
        if kind == "segmentor":
            return Segmentor(size, head, classes or PUBLISHED_CLASSES["segmentor"])
        return Classifier(size, classes) if kind == "classifier" and classes else Backbone(size)
