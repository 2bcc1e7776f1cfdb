"""Progress: the one class by which long work tells whoever watches it how far it is."""

from __future__ import annotations

from typing import TypedDict, Unpack


class Known(TypedDict, total=False):
    """What `Observer.advance` may be told beside the number of parts."""

    done: float | None  # how many parts are done in all, in place of those since the last call
    total: float | None  # how many there are, where that is known only now
    detail: str  # where the task is, such as `loss 0.51`
    left: float | None  # seconds until the end, where the rate of the parts does not tell


class Observer:
    """Whoever watches a piece of work: a subclass shows what it overrides.

    It is picklable: each process of a distributed run has its own copy.
    """

    def note(self, message: str) -> None:
        """Something the user should know."""

    def begin(self, task: str, total: float | None = None, *, done: float = 0, unit: str = "") -> None:
        """A task begins, in place of the one before.

        Args:
            task: what it is, such as `evaluating fpn-tiny`.
            total: how many parts it has; None if not known.
            done: how many of them are done already.
            unit: what the parts are; `bytes` are shown as sizes with a speed.
        """

    def advance(self, parts: float = 1, **known: Unpack[Known]) -> None:
        """More of the current task is done: `parts` since the last call, and what is known beside it."""

    def result(self, value: object) -> None:
        """A part of the answer is there: one image, one evaluation, one model."""

    def end(self) -> None:
        """Nothing more comes."""


class Silent(Observer):
    """An observer that shows nothing."""
