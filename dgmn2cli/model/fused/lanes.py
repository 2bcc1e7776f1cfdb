"""Parts of the work side by side on the CPU's threads, each with a share of them: images of a batch, or parts of one.

Two parts on one thread each take less time than one after the other on two: no thread waits for another between the
many short operations. The numbers are the same, bit for bit: no operation's result depends on the threads.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import torch

from dgmn2cli.ops.operators import followed

MOST = 4  # parts at a time: each takes memory of its own
_lane = threading.local()
Part = TypeVar("Part")
Made = TypeVar("Made")


class StoppedError(Exception):
    """The call that this lane works for has ended with an error."""


def lanes() -> int:
    """How many parts the CPU's threads work on at a time; 1 where threads cannot be shared out, and within a lane.

    Also where something follows or changes what this thread computes: other threads know nothing of it.
    """
    if followed() or torch.is_autocast_enabled("cpu") or hasattr(_lane, "told") or not _can_share():
        return 1
    return min(torch.get_num_threads(), MOST)


def stop_if_told() -> None:
    """Raises StoppedError in a lane whose call has ended; a network asks this between its blocks."""
    told: threading.Event | None = getattr(_lane, "told", None)
    if told is not None and told.is_set():
        raise StoppedError


def side_by_side(run: Callable[[Part], Made], parts: Sequence[Part]) -> list[Made]:
    """`run` of every part without gradients, as many at a time as there are lanes; the first error ends them all."""
    count = min(lanes(), len(parts))
    if count <= 1:
        with torch.no_grad():
            return [run(part) for part in parts]
    told, inference = threading.Event(), torch.is_inference_mode_enabled()

    def work(part: Part) -> Made:
        _lane.told = told
        stop_if_told()
        with torch.inference_mode(inference), torch.no_grad():  # which are each thread's own settings
            return run(part)

    tasks = [_pool(torch.get_num_threads(), lanes()).submit(work, part) for part in parts]
    try:
        return [task.result() for task in tasks]
    finally:
        told.set()


def spans(count: int, most: int | None = None) -> list[slice]:
    """0 to `count` in parts of `most`, the last shorter; in as many as there may be lanes if None.

    The same for any number of threads. Products of 235 rows at a time took an eighth longer than of 256.
    """
    step = -(-count // MOST) if most is None else most
    return [slice(first, min(first + step, count)) for first in range(0, count, step)]


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
