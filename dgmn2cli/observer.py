"""Progress: the one protocol by which long work tells whoever watches it how far it is."""

from __future__ import annotations

from typing import Protocol


class Observer(Protocol):
    """Whoever watches a piece of work. It is picklable: each process of a distributed run has its own copy."""

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

    def advance(
        self,
        parts: float = 1,
        *,
        done: float | None = None,
        total: float | None = None,
        detail: str = "",
        left: float | None = None,
    ) -> None:
        """More of the current task is done.

        Args:
            parts: how many parts since the last call.
            done: how many in all, in place of `parts`.
            total: how many there are, where that is known only now.
            detail: where the task is, such as `loss 0.51`.
            left: seconds until the end, where the rate of the parts does not tell.
        """

    def result(self, value: object) -> None:
        """A part of the answer is there: one image, one evaluation, one model."""

    def end(self) -> None:
        """Nothing more comes."""


class Silent:
    """An observer that shows nothing."""

    def note(self, message: str) -> None:
        """Ignored."""

    def begin(self, task: str, total: float | None = None, *, done: float = 0, unit: str = "") -> None:
        """Ignored."""

    def advance(
        self,
        parts: float = 1,
        *,
        done: float | None = None,
        total: float | None = None,
        detail: str = "",
        left: float | None = None,
    ) -> None:
        """Ignored."""

    def result(self, value: object) -> None:
        """Ignored."""

    def end(self) -> None:
        """Ignored."""
