"""Options that commands share, as typed groups: of the network, of the test procedure and of its data.

A command decorated with `with_network`, `with_settings`, `with_data("val")` or `options.with_run` gets one parameter
for each: `network: NetworkOptions`, `settings: Settings`, `data: DataOptions`, `run: RunOptions`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dgmn2cli.cli.options import MEMORY, NAME, PATH, SIZE, Decorator, Session, grouped, model_typed, run_options, typed
from dgmn2cli.cli.progress import TerminalObserver
from dgmn2cli.errors import ResourceError, shown
from dgmn2cli.zoo import Zoo, locate

if TYPE_CHECKING:
    from dgmn2cli.config import DataConfig
    from dgmn2cli.inference.load import Recipe
    from dgmn2cli.inference.runtimes import AnyRecipe
    from dgmn2cli.inference.segmenter import Segmenter
    from dgmn2cli.inference.settings import LoadOptions, Settings
    from dgmn2cli.observer import Observer

_SIDE = click.IntRange(1, 8192)
RUNTIMES = ("torch", "onnxruntime", "openvino")


# options that a graph has no use for, by their names in `LoadOptions`
NOT_FOR_GRAPHS = {
    "checkpoint": "--checkpoint",
    "ema": "--ema",
    "exact_algebra": "--published-order",
    "dtype": "--dtype",
    "backend": "--backend",
    "compiled": "--compile",
    "cuda_graphs": "--cuda-graphs",
}


@dataclass(frozen=True)
class NetworkOptions:
    """Which network runs and how: `--checkpoint --ema --published-order --runtime --graph` and the run options."""

    load: LoadOptions
    runtime: str
    graph: Path | None
    threads: int | None

    @classmethod
    def of(
        cls,
        runtime: str | None,
        graph: Path | None,
        threads: int | None,
        published_order: bool,
        cuda_graphs: str = "off",
        **values: Any,
    ) -> NetworkOptions:
        """The options as typed; a usage error where some of them do not go together."""
        from dgmn2cli.inference.settings import LoadOptions

        values |= {"exact_algebra": not published_order, "cuda_graphs": cuda_graphs == "auto"}
        load, default = LoadOptions(**values), LoadOptions()
        made = cls(load, runtime or ("torch" if graph is None else "onnxruntime"), graph, threads)
        if made.runtime == "torch" and graph is not None:
            raise click.UsageError("--graph needs another --runtime than torch: onnxruntime or openvino")
        if made.runtime != "torch" and graph is None:
            raise click.UsageError(f"--runtime {runtime} needs --graph DIR; `dgmn2 export MODEL -o DIR` makes one")
        if graph is None:
            return made
        given = [option for name, option in NOT_FOR_GRAPHS.items() if getattr(load, name) != getattr(default, name)]
        given += [f"--device {load.device}"] * (load.device not in ("auto", "cpu"))
        if given:
            raise click.UsageError(f"{', '.join(given)} cannot be used with --graph: a graph is as it was exported")
        return replace(made, load=replace(load, device="cpu"))


@dataclass(frozen=True)
class DataOptions:
    """Which data a command works on: `--data-root --split`."""

    data_root: Path
    split: str


def with_data(split: str) -> Decorator:
    """`--data-root --split`; the command gets `data: DataOptions`."""
    return grouped(
        "data",
        DataOptions,
        click.option(
            "--data-root",
            type=PATH,
            metavar="DIR",
            envvar="CITYSCAPES_DATASET",
            default="data/cityscapes",
            help="Cityscapes tree, or a folder with a dataset.toml.",
        ),
        click.option("--split", type=NAME, default=split, metavar="NAME", help="Split of the data set."),
    )


def preset_of(dataset: str, options: DataOptions) -> tuple[Path, str]:
    """Root and split of a known data set: as typed, else `data/NAME` and the split to evaluate on.

    Raises:
        ConfigError: there is no such data set.
    """
    from dgmn2cli.data.preset import find_preset

    preset = find_preset(dataset)
    root = options.data_root if typed("data_root") else Path("data", preset.name)
    return root, options.split if typed("split") else preset.split


def complete_dataset(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """The layouts of data sets that begin so."""
    from dgmn2cli.resources import preset_dir

    return sorted(path.stem for path in preset_dir().glob(f"{incomplete.lower()}*.toml"))


dataset_option = click.option(
    "--dataset",
    type=NAME,
    default=None,
    metavar="NAME",
    shell_complete=complete_dataset,
    help="A known data set: see `dgmn2 data presets`.",
)


def data_of(recipe: AnyRecipe | None, options: DataOptions) -> tuple[Path, str, DataConfig]:
    """Root, split and description of the data that the options or else the user's configuration file name.

    Without a recipe, or with a published one, the options' defaults hold where nothing is typed.
    """
    from dgmn2cli.config import DataConfig
    from dgmn2cli.data.catalog import split_name
    from dgmn2cli.inference.load import Recipe

    if not isinstance(recipe, Recipe) or recipe.entry is not None:
        return options.data_root, options.split, DataConfig()
    data = recipe.config.data
    root = options.data_root if typed("data_root") else Path(data.root)
    return root, options.split if typed("split") else split_name(data, "val"), data


def _make_settings(**values: Any) -> Settings:
    from dgmn2cli.inference.settings import Settings

    return Settings(**values)


_VIEW_OPTIONS: tuple[Decorator, ...] = (
    click.option(
        "--protocol",
        type=click.Choice(["paper", "native"]),
        help="paper: fit images into --scale, as published; native: keep their size.  [default: the model's, paper]",
    ),
    click.option(
        "--scale",
        type=SIZE,
        metavar="WxH",
        help="Size, in pixels, that images are fitted into.  [default: the model's, 2049x1025]",
    ),
    click.option("--window", type=_SIDE, metavar="N", help="Side of a window, in pixels.  [default: the model's, 769]"),
    click.option(
        "--stride", type=_SIDE, metavar="N", help="Pixels from one window to the next.  [default: the model's, 513]"
    ),
    click.option(
        "--max-pixels",
        type=click.IntRange(1),
        default=100_000_000,
        metavar="N",
        help="Refuse images of more pixels (width times height).",
    ),
    click.option(
        "--max-memory",
        type=MEMORY,
        metavar="SIZE",
        help="Keep memory (of the process; on a GPU, of the GPU) below this, such as 3G.  [default: no limit]",
    ),
)
with_settings = grouped(  # a command gets `settings: Settings`
    "settings",
    _make_settings,
    click.option("--ms-flip", is_flag=True, help="Average six scales and their mirror images."),
    click.option(
        "--window-batch",
        type=click.IntRange(1, 256),
        metavar="N",
        help="Windows computed at a time.  [default: by device]",
    ),
    *_VIEW_OPTIONS,
)
with_single_scale = grouped("settings", _make_settings, *_VIEW_OPTIONS)  # the same, but for ms+flip and batches
_WEIGHTS_OPTIONS: tuple[Decorator, ...] = (
    click.option("--checkpoint", type=PATH, metavar="FILE", help="Weights; else the published ones."),
    click.option("--ema", is_flag=True, help="Take the moving average of the weights (EMA) that the checkpoint holds."),
    click.option(
        "--published-order",
        is_flag=True,
        help="Run the operations in the published order: slower, the same up to rounding.",
    ),
    *run_options("auto"),
)
with_network = grouped(  # a command gets `network: NetworkOptions`
    "network",
    NetworkOptions.of,
    click.option(
        "--runtime",
        type=click.Choice(RUNTIMES),
        help="What runs the network.  [default: torch; with --graph onnxruntime]",
    ),
    click.option(
        "--graph",
        type=PATH,
        metavar="DIR|FILE",
        help="An exported graph: its folder, or an ONNX file with its protocol.",
    ),
    *_WEIGHTS_OPTIONS,
    click.option(
        "--cuda-graphs",
        type=click.Choice(["auto", "off"]),
        default="off",
        help="Record passes over the network and replay them where an NVIDIA GPU runs it (not tried on one yet).",
    ),
)
with_torch_network = grouped(  # the same, but for graphs, which do not show their layers
    "network", partial(NetworkOptions.of, runtime=None, graph=None), *_WEIGHTS_OPTIONS
)
workers_option = click.option(
    "--workers",
    type=click.IntRange(0, 64),
    default=2,
    metavar="N",
    help="Threads that read images ahead.",
)


_OF_NETWORKS = (
    "checkpoint", "ema", "published_order", "runtime", "graph", "dtype", "backend", "compiled", "cuda_graphs",
    "ms_flip", "window_batch", "protocol", "scale", "window", "stride", "corrupt",
)  # fmt: skip


def refuse_network(why: str) -> None:
    """Refuses a model, and what is said of its network or procedure, where no network runs.

    Raises:
        UsageError: some of it is typed.
    """
    context = click.get_current_context()
    given = ["the model"] * model_typed()
    given += [one.opts[0] for one in context.command.params if one.name in _OF_NETWORKS and typed(one.name)]
    if given:
        raise click.UsageError(f"{why}: leave out {', '.join(given)}", context)


def load_options(session: Session, network: NetworkOptions, settings: Settings) -> LoadOptions:
    """How networks are loaded, what the session and the settings say about it included."""
    cache = session.cache_dir() if network.load.checkpoint is None else None
    return replace(network.load, cache=cache, offline=session.offline, max_memory=settings.max_memory)


def recipe_of(session: Session, model: str, network: NetworkOptions, settings: Settings) -> AnyRecipe:
    """The model that is meant: the graph where one is given, which names its model itself."""
    from dgmn2cli.inference.load import resolve
    from dgmn2cli.inference.plan import resolve_settings

    if network.graph is None:
        recipe = resolve(model, zoo=session.zoo())
        resolve_settings(settings, recipe.inference)  # refused before a download, if at all
        return replace(recipe, options=load_options(session, network, settings))
    from dgmn2cli.inference.runtimes import GraphRecipe

    found = GraphRecipe.of(network.graph, session.zoo(), network.runtime, settings.max_memory)
    if model_typed() and model != found.name:
        raise click.UsageError(f"the graph is of '{shown(found.name)}', not of '{shown(model)}'; leave out the model")
    return found


def open_network(
    session: Session, model: str, network: NetworkOptions, settings: Settings, observer: Observer
) -> Segmenter:
    """The network that is meant, on this process; its weights are fetched where they are not on disk."""
    from dgmn2cli.runtime import set_threads

    set_threads(network.threads)
    return recipe_of(session, model, network, settings)(device=network.load.device, observer=observer)


def refuse_offline(session: Session, model: str, local: str | Path | None) -> None:
    """Says that published weights are not on disk and cannot be fetched; called first, before torch is loaded.

    Args:
        local: the checkpoint or graph that is named instead, if one is.

    Raises:
        ConfigError, NetworkError: no such model; no weights.
    """
    from dgmn2cli.config import is_path

    if not session.offline or local or is_path(model):
        return
    entry, cache = session.zoo().find(model), session.cache_dir()
    if locate(entry, cache) is None and all(source.type != "file" for source in entry.sources):
        from dgmn2cli.zoo.fetch import fetch

        fetch(entry, cache=cache, verify=str, offline=True)


def require_weights(session: Session, recipe: AnyRecipe, network: NetworkOptions) -> None:
    """Sees to it that there are weights: published ones that are wanted and not on disk are fetched."""
    from dgmn2cli import runtime
    from dgmn2cli.inference.load import Recipe, ensure_weights, published

    if not isinstance(recipe, Recipe):
        from dgmn2cli.inference.runtimes import require_runtime

        return require_runtime(network.runtime)

    device = runtime.resolve_device(network.load.device)  # refused before a download, if at all
    if network.load.compiled:
        runtime.require_compilable(device)
    if network.load.checkpoint is None:
        with TerminalObserver(session) as observer:
            ensure_weights(published(recipe), session.cache_dir(), offline=session.offline, observer=observer)


def on_disk(session: Session, zoo: Zoo, options: LoadOptions) -> tuple[list[Recipe], list[str]]:
    """Those of the zoo's models whose weights are in the cache, and the keys of the others."""
    from dgmn2cli.inference.load import resolve

    there = [entry for entry in zoo.segmentors if locate(entry, session.cache_dir()) is not None]
    if not there:
        hint = "Get some with `dgmn2 download KEY`, or all with `dgmn2 download --all`."
        raise ResourceError("no model's weights are on disk", hint=hint)
    missing = [entry.key for entry in zoo.segmentors if entry not in there]
    return [replace(resolve(entry.key, zoo=zoo), options=options) for entry in there], missing
