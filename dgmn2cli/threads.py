"""Work in a thread of its own, which whoever waits for it need not wait to the end of."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")


def aside(work: Callable[[], Result]) -> Future[Result]:
    """What `work()` comes to, in a thread that is left to itself when nobody waits for it any more.

    An executor's threads would be waited for when the process ends.
    """
    outcome: Future[Result] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # noqa: BLE001  # raised again by whoever asks for the result
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return outcome
