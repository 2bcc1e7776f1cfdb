"""The pipeline around a network: images read ahead by threads, finished behind by others, within the memory limit."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch

from dgmn2cli.errors import Dgmn2Error, ResourceError
from dgmn2cli.inference.plan import DECODE_BYTES
from dgmn2cli.runtime import in_use

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
    with ThreadPoolExecutor(workers, "dgmn2") as pool:
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
    """Bytes per pixel of the images that are in other threads' hands while the network works on one.

    Attributes:
        read: of one that was read and waits.
        done: of one that was segmented, with what is kept of its prediction, and waits.
        finishing: while one is finished, beyond that.
        finishers: threads that finish.
    """

    read: int
    done: int
    finishing: int
    finishers: int = 1

    def of(self, readers: int, behind: int) -> int:
        """Bytes per pixel with that many threads reading, and images that may wait for a finisher."""
        waiting = (readers + 1) * self.read + (behind + 2) * self.done
        return readers * DECODE_BYTES + waiting + self.finishers * self.finishing


def readers_within(
    fit: Callable[[tuple[int, int], int | None], object],
    device: torch.device,
    sizes: Sequence[tuple[int, int]],
    workers: int,
    footprint: Footprint,
    behind: int,
) -> tuple[int, int]:
    """How many threads may read ahead under a memory limit, and the bytes that are in use at most when they do.

    It is decided by the largest of the images' `sizes` (height, width), before the first one is read, so that no limit
    is passed in the meantime.

    Args:
        fit: raises ResourceError where an image of a size does not fit when so many bytes are in use; None: measured.

    Raises:
        ResourceError: the limit is too small for one thread, too.
    """
    height, width = max(sizes, key=lambda size: size[0] * size[1])
    fit((height, width), None)  # a window is measured while no thread disturbs
    before, workers = in_use(device), max(1, workers)
    while True:
        ahead = before + height * width * footprint.of(workers, behind)
        try:
            fit((height, width), ahead)
        except ResourceError:
            if workers == 1:
                raise
            workers -= 1
        else:
            return workers, ahead
