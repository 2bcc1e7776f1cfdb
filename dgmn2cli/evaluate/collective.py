"""Owns how the processes of a torch.distributed group put their counts together: exactly, or not at all."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from dgmn2cli.errors import Dgmn2Error, DistributedError
from dgmn2cli.evaluate.tally import Tally


def combine(tally: Tally, failure: Dgmn2Error | None) -> Tally:
    """The sum of all processes' tallies, on every process of the default group.

    Args:
        tally: what this process counted.
        failure: why it could not go on; then all processes raise it, and none waits for it.

    Raises:
        Dgmn2Error: the first process's failure.
        DistributedError: a process is gone, or two counted the same picture.
    """
    parts: list[Any] = [None] * dist.get_world_size()
    try:
        dist.all_gather_object(parts, (tally.counts, sorted(tally.done), failure))
    except RuntimeError as error:  # torch's DistBackendError and gloo's failures are RuntimeErrors
        why = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise DistributedError("the processes lost each other during an evaluation", why=why) from error
    for _, _, other in parts:
        if other is not None:
            raise other
    whole = Tally(tally.counts.shape[0])
    for counts, done, _ in parts:
        if whole.done & set(done):
            raise DistributedError("two processes evaluated the same pictures", why="their shares overlap")
        whole.counts += counts
        whole.done |= set(done)
    return whole
