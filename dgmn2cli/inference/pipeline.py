"""The pipeline around a network: images read ahead by threads, finished behind by others; the memory they take."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from dgmn2cli.errors import Dgmn2Error
from dgmn2cli.inference.plan import DECODE_BYTES

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    *,
    ahead: int | None = None,
    eager: bool = False,
) -> Generator[Result, None, None]:
    """`work(item)` of each item, in order, done by `workers` threads while the consumer, or what gives items, is busy.

    Decoding and encoding run outside Python's lock; threads need no copies, no shared memory and no forked process
    beside a GPU. Closing the generator ends them: what has not begun is not done any more. An error of `items` is
    raised when what came before it is done; one of `work` where its result would have come.

    Args:
        workers: how many threads; 0: each item's work is done when the consumer asks for it, by its own thread.
        ahead: items that may be under way when a result is waited for; as many as `workers` if None.
        eager: give a result as soon as it is there; else threads are kept busy first.
    """
    if not workers:
        yield from map(work, items)
        return
    waiting: deque[Future[Result]] = deque()
    most, failure, source = workers if ahead is None else ahead, None, iter(items)
    with ThreadPoolExecutor(workers, "dgmn2-pipeline") as pool:
        try:
            while True:
                try:
                    item = next(source)
                except StopIteration:
                    break
                except Dgmn2Error as error:
                    failure = error
                    break
                waiting.append(pool.submit(work, item))
                while waiting and (len(waiting) > most or (eager and waiting[0].done())):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
    if failure is not None:
        raise failure


@dataclass(frozen=True)
class Footprint:
    """Bytes per pixel of the images that are in other threads' hands while the network works on one."""

    read: int  # of one that was read and waits
    done: int  # of one that was segmented, with what is kept of its prediction, and waits
    finishing: int  # while one is finished, beyond that
    finishers: int = 1  # threads that finish

    def of(self, readers: int, behind: int) -> int:
        """Bytes per pixel with that many threads reading, and images that may wait for a finisher."""
        waiting = (readers + 1) * self.read + (behind + 2) * self.done
        return readers * DECODE_BYTES + waiting + self.finishers * self.finishing
