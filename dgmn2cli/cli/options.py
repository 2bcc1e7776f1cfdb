"""What commands share on the command line: the session of global options, the model name, the run options."""

from __future__ import annotations

import errno
import logging
import math
import os
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import update_wrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dgmn2cli.errors import ResourceError, printable
from dgmn2cli.files import absence

if TYPE_CHECKING:
    from dgmn2cli.zoo import Zoo

Command = TypeVar("Command", bound=Callable[..., Any])
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

DTYPES = ("float32", "bfloat16", "float16")
LOSSES = ("ce", "ohem", "focal", "dice", "ce+dice")
LOGGERS = ("tensorboard", "wandb")
BACKENDS = ("auto", "native", "triton", "reference")
MAX_SIDE = 100_000  # pixels
_AUTO_DTYPE = " auto: bfloat16 where the device multiplies it and the classes stay the same."
ARGUMENTS = "dgmn2cli.arguments"  # where click's context has the words of the command line
_FROM_USER = (click.core.ParameterSource.COMMANDLINE, click.core.ParameterSource.ENVIRONMENT)


@dataclass(frozen=True)
class Session:
    """The global options of one run."""

    json: bool = False  # one JSON document on stdout instead of tables
    verbose: int = 0  # how many `-v`
    quiet: bool = False  # nothing but answers and errors
    color: bool = True  # colours are allowed
    zoo_file: Path | None = None  # another manifest than the published one
    cache: Path | None = None  # the cache folder named by `--cache` or `DGMN2_CACHE`
    offline: bool = False  # never touch the network
    debug: bool = False  # show tracebacks

    def zoo(self) -> Zoo:
        """The manifest in force."""
        from dgmn2cli.zoo import load_zoo  # here, so that `--help` waits for no library

        return load_zoo(self.zoo_file)

    def cache_dir(self) -> Path:
        """The cache folder in force; it may not exist yet.

        Raises:
            ResourceError: none is named and the user has no home folder; or something else is in its place.
        """
        from dgmn2cli.zoo import cache_dir

        folder = cache_dir(self.cache)
        place = next((place for place in (folder, *folder.parents) if os.path.lexists(place)), folder)
        if os.path.lexists(place) and not os.path.isdir(place):
            hint = "Name a folder with --cache or DGMN2_CACHE."
            raise ResourceError("the cache is no folder", where=folder, why=absence(place, "folder"), hint=hint)
        return folder

    def known_cache(self) -> Path | None:
        """As `cache_dir`, to look into; None for a user without a home."""
        from dgmn2cli.zoo import find_cache

        return self.cache_dir() if find_cache(self.cache) else None


def current_session() -> Session:
    """The session of the command that runs now."""
    session = click.get_current_context().find_root().obj
    return session if isinstance(session, Session) else Session()


def command_line(context: click.Context) -> str:
    """The command as it could be typed again."""
    return shlex.join(["dgmn2", *context.meta.get(ARGUMENTS, ())])


def typed(parameter: str) -> bool:
    """Whether a parameter stands on the command line; what the environment says is only a default."""
    return click.get_current_context().get_parameter_source(parameter) is click.core.ParameterSource.COMMANDLINE


def model_typed() -> bool:
    """Whether the command line names the model, in either spelling."""
    return typed("model") or bool(click.get_current_context().params.get("model_named"))


def pass_session(function: Command) -> Command:
    """Gives the command the `Session` as its first argument; refuses to write one file twice, or over another one."""

    def with_session(*args: Any, **kwargs: Any) -> Any:
        session = current_session()
        _show_log(session)
        _require_apart(click.get_current_context())
        return function(session, *args, **kwargs)

    return update_wrapper(with_session, function)  # type: ignore[return-value]  # same parameters but the first


def _require_apart(context: click.Context) -> None:
    """Raises UsageError where the path of an output file is that of another parameter, too."""
    paths = [
        (one, path) for one in context.command.params if isinstance(path := context.params.get(one.name or ""), Path)
    ]
    for one, path in paths:
        for other, there in paths:
            same = other is not one and os.path.realpath(path) == os.path.realpath(there)
            if same and isinstance(one.type, OutputType):
                fault = f"'{printable(str(path))}' is also what {other.get_error_hint(context)} names"
                raise click.BadParameter(fault, context, one)


def _show_log(session: Session) -> None:
    """The package's log on stderr: warnings, with `-v` what is chosen and done, with `-vv` everything; `-q`: errors."""
    logger = logging.getLogger("dgmn2cli")
    for handler in logger.handlers[:]:
        logger.removeHandler(handler)  # of an earlier command in the same process
    logger.addHandler(logging.StreamHandler())
    loud = {0: logging.WARNING, 1: logging.INFO}.get(session.verbose, logging.DEBUG)
    logger.setLevel(logging.ERROR if session.quiet else loud)
    logger.propagate = session.debug


def _store(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    root = context.find_root()
    session = root.obj if isinstance(root.obj, Session) else Session()
    if parameter.name and context.get_parameter_source(parameter.name) in _FROM_USER:
        session = replace(session, **{parameter.name: value})
    root.obj = session


def _global_parameters(environment: bool, hidden: bool) -> list[click.Option]:
    """The global options, stored in the session wherever on the command line they stand.

    For a subcommand they are without environment variables, which would override the group's options.
    """

    def option(*names: str, variable: str | None = None, **settings: Any) -> click.Option:
        settings |= {"envvar": variable if environment else None, "hidden": hidden, "show_default": False}
        return click.Option(names, expose_value=False, is_eager=True, callback=_store, **settings)

    return [
        option("--json", is_flag=True, help="Print one JSON document on stdout, nothing else."),
        option("-v", "--verbose", count=True, help="Say more (-vv: still more)."),
        option("-q", "--quiet", is_flag=True, help="Only answers and errors."),
        option("--color/--no-color", default=True, help="Colours on a terminal; NO_COLOR turns them off, too."),
        option("--zoo", "zoo_file", type=PATH, metavar="FILE", help="Use another model manifest."),
        option("--cache", type=PATH, metavar="DIR", variable="DGMN2_CACHE", help="Folder for downloads (DGMN2_CACHE)."),
        option("--offline", is_flag=True, variable="DGMN2_OFFLINE", help="Never touch the network (DGMN2_OFFLINE)."),
        option("--debug", is_flag=True, help="Show tracebacks and the libraries' warnings."),
    ]


def global_options(command: Command) -> Command:
    """Adds the global options to the `dgmn2` group."""
    existing = getattr(command, "__click_params__", [])
    command.__click_params__ = existing + _global_parameters(environment=True, hidden=False)[::-1]  # type: ignore[attr-defined]  # where click keeps them
    return command


def attach_global_options(command: click.Command) -> click.Command:
    """Lets the global options stand after the command (and its subcommands) as well; once, however often called."""
    taken = {declaration for parameter in command.params for declaration in parameter.opts}
    for parameter in _global_parameters(environment=False, hidden=True):
        if not taken & set(parameter.opts):
            command.params.append(parameter)
    if not command.epilog:
        command.epilog = "Global options (--json, -v, -q, --cache, --offline, ...) work here too: see `dgmn2 --help`."
    command.context_settings.setdefault("help_option_names", ["-h", "--help"])
    if isinstance(command, click.Group):
        for subcommand in command.commands.values():
            attach_global_options(subcommand)
    return command


def grouped(name: str, make: Callable[..., object], *options: Decorator) -> Decorator:
    """A decorator that adds click options to a command and gives it one parameter `name` for them.

    `make` makes it of their values, by keyword; it is usually a dataclass.
    """

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        def with_group(*args: Any, **values: Any) -> Any:
            return command(*args, **{name: make(**{option: values.pop(option) for option in names})}, **values)

        decorated: Callable[..., Any] = update_wrapper(with_group, command)
        others = set(map(id, getattr(command, "__click_params__", ())))
        for option in reversed(options):
            decorated = option(decorated)
        parameters = getattr(decorated, "__click_params__", ())
        names = [parameter.name for parameter in parameters if id(parameter) not in others]
        return decorated

    return add


def _default_model(context: click.Context, parameter: click.Parameter, value: str | None) -> str:
    return current_session().zoo().default if value is None else value


def model_option(command: Command) -> Command:
    """`--model/-m`: a zoo key, a published configuration's name, or a configuration file; never None."""
    return click.option(
        "-m",
        "--model",
        envvar="DGMN2_MODEL",
        metavar="MODEL",
        callback=_default_model,
        shell_complete=complete_model,
        help="Zoo key, configuration name or file (DGMN2_MODEL).  [default: the zoo's, setr_pup-tiny]",
    )(command)


def model_argument(command: Command) -> Command:
    """`[MODEL]`, with `--model/-m` as its other spelling; the command gets one `model`, never None."""

    def with_model(*args: Any, model_named: str | None, model: str, **kwargs: Any) -> Any:
        if model_named is not None and typed("model") and model_named != model:
            why = f"the model is named twice: '{model_named[:60]}' and '{model[:60]}'"
            raise click.UsageError(why, click.get_current_context())
        return command(*args, model=model if model_named is None else model_named, **kwargs)

    update_wrapper(with_model, command)
    named = click.argument("model_named", metavar="[MODEL]", required=False, shell_complete=complete_model)(with_model)
    return model_option(named)  # type: ignore[return-value]  # click adds the parameters in place


def complete_model(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """The models that begin so."""
    from dgmn2cli.zoo import load_zoo

    return [entry.key for entry in load_zoo().segmentors if entry.key.startswith(incomplete.lower())]


class PathType(click.Path):
    """A path that can be one: an empty one would mean the current folder, which nobody means by it."""

    def convert(self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None) -> Any:
        text = os.fspath(value)
        if not text:
            self.fail("the path is empty (the current folder is '.')", param, ctx)
        try:
            os.lstat(text)
        except ValueError:
            self.fail("a path cannot hold a NUL character", param, ctx)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                self.fail(f"'{text[:60]}...' is longer than a path, or a name in it, can be", param, ctx)
        return super().convert(value, param, ctx)


class OutputType(PathType):
    """A file to write, which no other parameter may name; its ending, where it says what is written, is one of some."""

    def __init__(self, *endings: str) -> None:
        super().__init__(path_type=Path)
        self.endings = endings

    def convert(self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = super().convert(value, param, ctx)
        if self.endings and path.suffix.lower() not in self.endings:
            self.fail(f"'{printable(str(path))}' does not end in {' or '.join(self.endings)}", param, ctx)
        return path


class NumberType(click.FloatRange):
    """A number in a range; NaN, which compares with nothing, is in none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{number} is not in the range {self._describe_range()}", param, ctx)
        return number


class ParsedType(click.ParamType):  # type: ignore[type-arg]  # not generic in earlier versions of click
    """A value that a function makes of the text, or refuses with a ValueError that says why."""

    def __init__(self, name: str, parse: Callable[[str], object]) -> None:
        self.name, self.parse = name, parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self.parse(value) if isinstance(value, str) else value  # a default may be no text
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _parse_name(text: str) -> str:
    if not text:
        raise ValueError("the name is empty")
    return text


def _parse_device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]{1,3})?", text.lower()):
        raise ValueError(f"'{text[:60]}' is none of auto, cpu, cuda, cuda:N, mps")
    return text.lower()


def _parse_kinds(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(kind.strip() for kind in text.split(",") if kind.strip()))


def _parse_size(text: str) -> tuple[int, int]:
    """(width, height) of `WxH`, in pixels."""
    match = re.fullmatch(r"([0-9]{1,6})[xX,]([0-9]{1,6})", text)
    sides = (int(match[1]), int(match[2])) if match else (0, 0)
    if not all(1 <= side <= MAX_SIDE for side in sides):
        raise ValueError(f"'{text[:60]}' is not WIDTHxHEIGHT in pixels, such as 2049x1025")
    return sides


def _parse_seconds(text: str) -> tuple[float, ...]:
    """(connect, read, total) of `TOTAL` or `CONNECT,READ,TOTAL`."""
    numbers = text.split(",")
    valid = len(numbers) in (1, 3) and all(re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", n) for n in numbers)
    if not valid or min(map(float, numbers)) <= 0:
        raise ValueError(f"'{text[:60]}' is neither TOTAL nor CONNECT,READ,TOTAL in seconds")
    seconds = tuple(map(float, numbers))
    return seconds if len(seconds) == 3 else (min(10.0, *seconds), min(30.0, *seconds), *seconds)


def _parse_memory(text: str) -> int:
    """Bytes of `3G`, `800M`, `2.5GB`, `2GiB`: units of 1000 or, where an i is in them, 1024."""
    match = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)([kmgt])(i?)b?", text.lower())
    if not match or float(match[1]) <= 0:
        raise ValueError(f"'{text[:60]}' is no amount of memory, such as 3G or 800M")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** ("kmgt".index(match[2]) + 1))


PATH = PathType(path_type=Path)
OUTPUT_FILE = OutputType()
NAME = ParsedType("name", _parse_name)
KINDS = ParsedType("kinds", _parse_kinds)
DEVICE = ParsedType("device", _parse_device)
MEMORY = ParsedType("memory", _parse_memory)
SIZE = ParsedType("size", _parse_size)
SECONDS = ParsedType("seconds", _parse_seconds)
device_option = click.option(
    "--device",
    type=DEVICE,
    default="auto",
    metavar="auto|cpu|cuda[:N]|mps",
    help="Where to compute; auto: on a GPU where one works.",
)


backend_option = click.option(
    "--backend",
    type=click.Choice(BACKENDS),
    default="auto",
    help="Implementation of the attention op; auto: the fastest that works; a named one never falls back.",
)
threads_option = click.option(
    "--threads", type=click.IntRange(1, 1024), metavar="N", help="CPU threads per process.  [default: torch's]"
)
gpus_option = click.option(
    "--gpus",
    type=click.IntRange(1, 64),
    default=1,
    metavar="N",
    help="Processes: one per GPU, or with --device cpu on the CPU.",
)


@dataclass(frozen=True)
class RunOptions:
    """How a network runs: `--device --dtype --backend --threads --compile`."""

    device: str
    dtype: str
    backend: str
    threads: int | None
    compiled: bool


def run_options(*dtypes: str) -> tuple[Decorator, ...]:
    """The options of `RunOptions`, `--dtype` with these choices beside the usual ones."""
    return (
        device_option,
        click.option(
            "--dtype",
            type=click.Choice((*DTYPES, *dtypes)),
            default="float32",
            help="Dtype of weights and activations." + _AUTO_DTYPE * ("auto" in dtypes),
        ),
        backend_option,
        threads_option,
        click.option(
            "--compile",
            "compiled",
            is_flag=True,
            help="Run the published order of operations through torch.compile (NVIDIA GPUs).",
        ),
    )


with_run = grouped("run", RunOptions, *run_options())  # a command gets `run: RunOptions`
