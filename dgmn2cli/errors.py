"""The error kinds: every failure a user can meet, each with its exit code."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from importlib.util import find_spec
from numbers import Integral

FAULTS_SHOWN = 20
LONGEST = 600  # characters of a name, a reason or a fault that are shown


def is_exhaustion(error: BaseException | None) -> bool:
    """Whether memory or file descriptors ran out: the machine's or the process's limit, and no file's fault."""
    number = getattr(error, "errno", None)
    return isinstance(error, MemoryError) or number in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def is_utf8(text: str) -> bool:
    """Whether a text has no bytes in it that are no text, as names of files may have."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def printable(text: object) -> str:
    """`text` on one line, control and bidirectional characters escaped: safe to show on a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


def shown(name: str) -> str:
    """A name of unknown origin, fit for a message: control characters escaped, 60 characters at most."""
    text = printable(name[:200])
    return text if len(text) <= 60 else f"{text[:57]}..."


def shortened(text: str) -> str:
    """`text`, its middle left out where it is too long for a message."""
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[:half]} ... {text[-half:]}"


def first_line(error: BaseException) -> str:
    """What a library's error says, on one line: its last one, which names the cause."""
    return next((printable(line.strip()) for line in reversed(str(error).splitlines()) if line.strip()), "no reason")


def require_installed(extra: str, *packages: str) -> None:
    """Raises ResourceError where a package is missing, and names the extra that has it."""
    for package in packages:
        if find_spec(package) is None:
            hint = f"Install it: pip install 'dgmn2cli[{extra}]'"
            raise ResourceError("a package is missing", where=package, why="it is not installed", hint=hint)


class Dgmn2Error(Exception):
    """What went wrong, where, why and what to do next; shown as `what (where): why. hint`.

    Args:
        what: the failed action, e.g. "cannot read the image".
        where: the file, model key or setting concerned.
        why: the value seen and the value wanted.
        hint: what the user can do next.
        faults: when many things are wrong at once, one line each; the first 20 and the count are shown.

    Attributes:
        told: another process of the same command says it; this one need not.
    """

    exit_code = 1
    told = False

    def __init__(
        self, what: str, *, where: object = "", why: str = "", hint: str = "", faults: Sequence[str] = ()
    ) -> None:
        self.what, self.where, self.why, self.hint = what, str(where), why, hint
        self.faults = tuple(faults)
        super().__init__(what)

    def __str__(self) -> str:
        place = f" ({shortened(printable(self.where))})" if self.where else ""
        why = f": {shortened(printable(self.why).rstrip('.'))}" if self.why else ""
        hint = f" {shortened(printable(self.hint))}" if self.hint else ""
        said = f"{shortened(printable(self.what))}{place}{why}"
        return f"{said}{'' if said.endswith('?') else '.'}{hint}"

    def fault_lines(self) -> list[str]:
        """The single faults, one per line, at most 20 and then the count of the rest."""
        lines = [shortened(printable(fault)) for fault in self.faults[:FAULTS_SHOWN]]
        rest = len(self.faults) - len(lines)
        return [*lines, f"... and {rest} more"] if rest else lines

    def __reduce__(self) -> tuple[object, ...]:
        state = {"what": self.what, "where": self.where, "why": self.why, "hint": self.hint, "faults": self.faults}
        return (_rebuild, (type(self), state))


def _rebuild(kind: type[Dgmn2Error], state: dict[str, object]) -> Dgmn2Error:
    """Unpickles an error raised in a worker process, its fields intact."""
    return kind(**state)  # type: ignore[arg-type]


class CheckFailed(Dgmn2Error):  # noqa: N818
    """A check the user asked for did not hold (`--check`, `verify`)."""

    exit_code = 1


class ConfigError(Dgmn2Error):
    """Usage or configuration: an unknown key, a wrong type, an absurd value, an unknown model name."""

    exit_code = 2


class IntegrityError(Dgmn2Error):
    """A model file is damaged, unsafe, or not the model it should be."""

    exit_code = 3


class NetworkError(Dgmn2Error):
    """The network or the remote side failed."""

    exit_code = 4


class ResourceError(Dgmn2Error):
    """A local resource is missing or refused: disk, memory, permission, device, backend, file busy."""

    exit_code = 5


def require_count(name: str, value: object, most: int) -> None:
    """Raises ConfigError where an argument is no whole number from 1 to `most`."""
    if not isinstance(value, Integral) or isinstance(value, bool) or not 1 <= int(value) <= most:
        raise ConfigError("impossible argument", where=name, why=f"{shown(repr(value))}, wanted 1 to {most:,}")


class DataError(Dgmn2Error):
    """A data set or an image is unreadable or inconsistent."""

    exit_code = 6


class NonFiniteError(Dgmn2Error):
    """NaN or infinity where a finite number is needed: weights, loss, logits."""

    exit_code = 7


class DistributedError(Dgmn2Error):
    """A process of a distributed run failed."""

    exit_code = 8
