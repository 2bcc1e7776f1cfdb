"""Which implementation of the ops runs: who can, why the others cannot, and the one that was chosen."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from dgmn2cli.errors import ConfigError, ResourceError
from dgmn2cli.ops import native, triton

LOGGER = logging.getLogger("dgmn2cli")


@dataclass(frozen=True)
class Availability:
    """Whether one backend can run on this machine at all."""

    name: str  # `native`, `triton` or `reference`
    reason: str  # why it cannot, empty where it can

    @property
    def usable(self) -> bool:
        """True where the backend can run."""
        return not self.reason


# In the order `auto` tries them; each says why it cannot run on a device type ("" for any) and a dtype ("" for any).
_REFUSALS: dict[str, Callable[[str, str], str]] = {
    "native": native.refusal,
    "triton": triton.refusal,
    "reference": lambda device, dtype: "",
}
NAMES = ("auto", *_REFUSALS)

_default = "auto"
_announced: set[tuple[str, str, str]] = set()


def available_backends() -> dict[str, Availability]:
    """Every backend by name, usable on this machine or with the reason why not."""
    return {name: Availability(name, refusal("", "")) for name, refusal in _REFUSALS.items()}


def set_default_backend(name: str) -> None:
    """Makes `auto` mean `name` in this process; `auto` restores the choice.

    Raises:
        ConfigError: no such backend.
    """
    global _default
    _default = _known(name)


@contextmanager
def default_backend(name: str) -> Iterator[None]:
    """`set_default_backend` for the length of a `with` block."""
    before = _default
    set_default_backend(name)
    try:
        yield
    finally:
        set_default_backend(before)


def resolve(backend: str = "auto", device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> str:
    """The name of the backend that runs for a device and a dtype.

    Args:
        backend: `auto`, `native`, `triton` or `reference`. `auto` takes the process's default, and by default the
            first that can run: native on CPU, Triton on CUDA, else the definition; the choice is logged once.
        device: where the tensors are.
        dtype: of q, k and v (or of the unfolded map).

    Returns:
        The backend's own name, never `auto`.

    Raises:
        ConfigError: no such backend.
        ResourceError: the named backend cannot run; nothing else is tried.
    """
    wanted = _default if backend == "auto" else _known(backend)
    return _choose(wanted, torch.device(device).type, str(dtype).removeprefix("torch."))


def _known(name: str) -> str:
    if name not in NAMES:
        raise ConfigError("no such op backend", where=name[:60], why=f"wanted one of {', '.join(NAMES)}")
    return name


def _choose(wanted: str, device: str, dtype: str) -> str:
    chosen = _first_able(wanted, device, dtype)
    if chosen == "triton":
        triton.load()
    return chosen


# What torch.compiler.assume_constant_result sets; that would import torch._dynamo, which takes as long as torch itself.
_choose._dynamo_marked_constant = True  # type: ignore[attr-defined]  # a compiled graph holds the choice, not its making


def _first_able(wanted: str, device: str, dtype: str) -> str:
    if wanted != "auto":
        reason = _REFUSALS[wanted](device, dtype)
        if reason:
            raise ResourceError(
                f"the op backend {wanted} cannot run",
                where=f"{device}, {dtype}",
                why=reason,
                hint="Use --backend auto, or see `dgmn2 doctor`.",
            )
        return wanted
    passed = []
    for chosen, refusal in _REFUSALS.items():  # on every call: ask no further than the first that can
        reason = refusal(device, dtype)
        if not reason:
            break
        passed.append(f"not {chosen}: {reason}")
    if (device, dtype, chosen) not in _announced:
        _announced.add((device, dtype, chosen))
        LOGGER.info("op backend %s on %s, %s%s", chosen, device, dtype, f" ({'; '.join(passed)})" if passed else "")
        if device == "cpu" and (why := native.refusal("", "")):
            slow = "%s: the op runs as plain PyTorch, many times slower: %s; in a checkout: pip install -e ."
            LOGGER.warning(slow, Path(__file__).parent, why)
    return chosen
