"""What the tests run in processes of their own: saves that are killed, trainings, the command line."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch

from dgmn2cli.training.report import Best
from dgmn2cli.training.state import CheckpointStore, TrainState


@lru_cache(maxsize=1)
def forkserver():
    """A context whose processes start in milliseconds: they are forked from one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    preload = ["dgmn2cli.cli.train", "dgmn2cli.training.plan", "torch.utils.tensorboard", "train_children"]
    context.set_forkserver_preload(preload)
    return context


def small_state(iteration: int, average: bool = False, best: Best | None = None) -> TrainState:
    """A small state; every number in it depends on `iteration`."""
    generator = torch.Generator().manual_seed(iteration)
    weights = {"weight": torch.randn(4, 3, generator=generator), "bias": torch.randn(4, generator=generator)}
    moments = {
        index: {"step": torch.tensor(float(iteration)), "exp_avg": value * 2, "exp_avg_sq": value.square()}
        for index, value in enumerate(weights.values())
    }
    return TrainState(
        iteration=iteration,
        weights=weights,
        optimizer={"state": moments, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999), "params": [0, 1]}]},
        average={key: value + 1 for key, value in weights.items()} if average else None,
        best=best,
        log_bytes=10 * iteration,
    )


def killed_save(folder: Path, calls: int) -> None:
    """Saves state 3 as the best one, and ends by SIGKILL at the given point of it, counted from 0.

    Points are before and after each call that changes the disk, and the middle of the file's own writing.
    """
    left = calls

    def point() -> None:
        nonlocal left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    def watched(function):
        def call(*arguments, **settings):
            point()
            result = function(*arguments, **settings)
            point()
            return result

        return call

    for name in ("replace", "rename", "link", "unlink", "fsync", "mkdir", "chmod"):
        setattr(os, name, watched(getattr(os, name)))
    whole = torch.save

    def torn_save(content, file):
        if left == 0:
            whole({"half": torch.zeros(10)}, file)
            file.flush()
        point()
        whole(content, file)

    torch.save = torn_save
    CheckpointStore(folder, keep=1).put(small_state(3, best=Best(0.2, 3)), {"CLASSES": ["a"]}, number=True)


def command_line(arguments: list[str], folder: Path) -> None:
    """`dgmn2 ARGUMENTS`, its output in files."""
    from dgmn2cli.__main__ import main

    for number, name in ((1, "out"), (2, "err")):
        descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(descriptor, number)
    sys.argv = ["dgmn2", *arguments]
    sys.exit(main())


class Forked:
    """`dgmn2 ARGUMENTS` at work in `folder`, in a forked process, which has imported everything."""

    def __init__(self, arguments: Sequence[str], folder: Path, session: bool = False) -> None:
        self.messages = Path(tempfile.mkdtemp(dir=folder, prefix="messages-"))
        given = (list(arguments), folder, self.messages, session)
        self._child = forkserver().Process(target=_command_line_in, args=given)
        self._child.start()
        self.pid = self._child.pid

    @property
    def code(self) -> int | None:
        """Its exit code, None while it runs."""
        return self._child.exitcode

    @property
    def said(self) -> tuple[str, str]:
        """What it has written to stdout and stderr."""
        return (self.messages / "out").read_text(), (self.messages / "err").read_text()

    def finish(self, seconds: float = 300) -> tuple[int, str]:
        """Waits for it to end, and ends it after that many seconds; its exit code and what it has written to stderr."""
        end = time.monotonic() + seconds
        while self.code is None and time.monotonic() < end:
            time.sleep(0.02)
        code = self.code
        self.kill()
        assert code is not None, f"waited too long: {self.said[1]}"
        return code, self.said[1]

    def kill(self) -> None:
        """Ends it where it still runs."""
        self._child.kill()
        self._child.join()


class Started(Forked):
    """The same in a process started as by a shell, with its environment."""

    def __init__(self, arguments: Sequence[str], folder: Path, by: Sequence[str], environment: dict[str, str]) -> None:
        self.messages = Path(tempfile.mkdtemp(dir=folder, prefix="messages-"))
        with (self.messages / "out").open("w") as out, (self.messages / "err").open("w") as err:
            self._child = subprocess.Popen([*by, *arguments], cwd=folder, env=environment, stdout=out, stderr=err)
        self.pid = self._child.pid

    @property
    def code(self) -> int | None:
        return self._child.poll()

    def kill(self) -> None:
        self._child.kill()
        self._child.wait()


def _command_line_in(arguments: list[str], folder: Path, messages: Path, session: bool) -> None:
    os.chdir(folder)
    if session:
        os.setsid()
    command_line(arguments, messages)


PHASES = ("start", "steps", "evaluation", "save: the file", "save: its names", "end")  # of a training's life


def watched_command_line(arguments: list[str], folder: Path, shared: tuple) -> None:
    """As `command_line`, beside `folder`; shares the number of its phase, and the seconds of its longest save."""
    from dgmn2cli.training import loop, state

    phase, longest = shared

    def announced(owner, name: str, number: int, after: int | None = None) -> None:
        function = getattr(owner, name)

        def call(*given, **settings):
            before, phase.value = phase.value, number
            try:
                return function(*given, **settings)
            finally:
                phase.value = before if after is None else after

        setattr(owner, name, call)

    def timed(function):
        def call(*given, **settings):
            began = time.monotonic()
            function(*given, **settings)
            longest.value = max(longest.value, time.monotonic() - began)

        return call

    announced(loop.Loop, "run", PHASES.index("steps"))
    announced(loop.Loop, "evaluate", PHASES.index("evaluation"))
    announced(state.CheckpointStore, "put", PHASES.index("save: its names"))
    announced(state, "save_state", PHASES.index("save: the file"))
    announced(loop.Loop, "finish", PHASES.index("end"), PHASES.index("end"))
    state.CheckpointStore.put = timed(state.CheckpointStore.put)
    os.chdir(folder.parent)
    command_line(arguments, folder)


def hold_folder(folder: Path, held, go) -> None:
    """Holds a run folder's lock until it is killed."""
    from dgmn2cli.training.folder import lock_folder

    with lock_folder(folder):
        held.set()
        go.wait()


def three_steps(folder: Path, model: str, settings: dict, rank: int, world: int) -> None:
    """Three float64 steps as process `rank` of `world`; leaves `RANK.pth` with the losses, first and last weights."""
    import torch.distributed as dist

    from dgmn2cli.config import load_config
    from dgmn2cli.data.catalog import open_configured
    from dgmn2cli.data.loaders import TrainStream, train_batches
    from dgmn2cli.data.transforms import Augmentation
    from dgmn2cli.distributed.group import Group
    from dgmn2cli.inference.load import build_segmentor
    from dgmn2cli.training.step import Stepper

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    config = load_config(model, values=settings)
    torch.manual_seed(0)
    network = build_segmentor(config.model).double()
    for layer in network.modules():
        if isinstance(layer, torch.nn.Dropout2d | torch.nn.Dropout):
            layer.p = 0.0  # each process draws masks of its own
    first = {key: value.clone() for key, value in network.state_dict().items()}
    stepper = Stepper(config, network, Group(rank, world, torch.device("cpu")))
    data = open_configured(config.data, "train")
    stream = TrainStream(len(data), config.train.seed, config.train.batch_size, rank, world)
    batches = train_batches(data, Augmentation(config.augment), stream)
    losses = [stepper.step(step, [next(batches)]).loss for step in range(3)]
    torch.save({"losses": losses, "first": first, "state": dict(network.state_dict())}, folder / f"{rank}.pth")
    if world > 1:
        dist.destroy_process_group()
