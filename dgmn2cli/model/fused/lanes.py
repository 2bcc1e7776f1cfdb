"""The images of a batch side by side on the CPU's threads, each with a share of them.

Two windows on one thread each take less time than one after the other on two: no thread waits for another between the
many short operations of a window. The numbers are the same, bit for bit: no operation's result depends on the threads.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch
from torch import Tensor

MOST = 4  # images at a time: each takes memory of its own
_lane = threading.local()


class StoppedError(Exception):
    """The call that this lane works for has ended with an error."""


def lanes() -> int:
    """How many images the CPU's threads work on at a time; 1 where threads cannot be shared out."""
    return min(torch.get_num_threads(), MOST) if _can_share() else 1


def stop_if_told() -> None:
    """Raises StoppedError in a lane whose call has ended; a network asks this between its blocks."""
    told: threading.Event | None = getattr(_lane, "told", None)
    if told is not None and told.is_set():
        raise StoppedError


def side_by_side(run: Callable[[Tensor], Tensor], images: Sequence[Tensor]) -> list[Tensor]:
    """`run` of every image, as many at a time as there are lanes; the first error ends them all."""
    told = threading.Event()

    def work(image: Tensor) -> Tensor:
        _lane.told = told
        with torch.no_grad():  # which is each thread's own setting
            return run(image)

    tasks = [_pool(torch.get_num_threads(), lanes()).submit(work, image) for image in images]
    try:
        return [task.result() for task in tasks]
    finally:
        told.set()


@lru_cache(maxsize=1)
def _can_share() -> bool:
    """Whether a thread can have a number of threads of its own: a setting of OpenMP's, not of PyTorch's other pools."""
    return "ATen parallel backend: OpenMP" in torch.__config__.parallel_info()


@lru_cache(maxsize=4)
def _pool(threads: int, count: int) -> ThreadPoolExecutor:
    """`count` workers that share `threads`, with that setting made in each."""
    ready = threading.Barrier(count + 1)

    def prepare() -> None:
        torch.set_num_threads(max(1, threads // count))
        torch.get_num_threads()  # a thread's first question settles its number for good
        ready.wait()

    pool = ThreadPoolExecutor(count, "dgmn2-lane", initializer=prepare)
    for _ in range(count):
        pool.submit(int)
    ready.wait()
    torch.set_num_threads(threads)  # the workers have set it for all threads that are yet to come, too
    return pool


if hasattr(os, "register_at_fork"):  # a forked process has the pool, but none of its threads
    os.register_at_fork(after_in_child=_pool.cache_clear)
