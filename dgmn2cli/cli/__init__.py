"""The `dgmn2` command: the group whose subcommands are imported only when they run. Imports no torch."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Sequence

import click
from click.shell_completion import CompletionItem, shell_complete

from dgmn2cli.cli.boundary import guarded
from dgmn2cli.cli.options import ARGUMENTS, attach_global_options, global_options
from dgmn2cli.errors import ConfigError, shown
from dgmn2cli.version import __version__

# name -> (module:attribute, help line); the help line stands here so that `dgmn2 --help` imports no command
COMMANDS = {
    "demo": ("dgmn2cli.cli.demo:demo", "See it all in minutes: draw, train, evaluate, segment, look."),
    "infer": ("dgmn2cli.cli.infer:infer", "Segment images: masks, overlays, class shares."),
    "video": ("dgmn2cli.cli.video:video", "Segment a video: film, class ids, steadiness over time."),
    "explain": ("dgmn2cli.cli.explain:explain", "Show what a network attends to at a position of an image."),
    "serve": ("dgmn2cli.cli.serve:serve", "Serve a model over HTTP: an API, and a page to drop images on."),
    "eval": ("dgmn2cli.cli.eval:evaluate", "Measure a model on labelled data, beside the published figure."),
    "compare": ("dgmn2cli.cli.compare:compare", "Compare two evaluations image by image: more than chance?"),
    "verify": ("dgmn2cli.cli.verify:verify", "Check that the numbers of a report can be reproduced."),
    "train": ("dgmn2cli.cli.train:train", "Train or fine-tune a model, on one process or many."),
    "submit": ("dgmn2cli.cli.submit:submit", "Make or check a submission to the Cityscapes test server."),
    "benchmark": ("dgmn2cli.cli.benchmark:benchmark", "Measure speed and memory beside the published design."),
    "export": ("dgmn2cli.cli.export:export", "Export a model as an ONNX graph that runs without torch."),
    "data": ("dgmn2cli.cli.data:data", "Check a data set, look at it, draw a synthetic one."),
    "config": ("dgmn2cli.cli.config:config", "List all settings, show a resolved configuration, check a file."),
    "download": ("dgmn2cli.cli.download:download", "Get model files, verified; bundles for sites without network."),
    "zoo": ("dgmn2cli.cli.zoo:zoo", "List and show the published models; check what is on disk."),
    "info": ("dgmn2cli.cli.info:info", "Say which model a file holds, and what it tells of its training."),
    "convert": ("dgmn2cli.cli.convert:convert", "Write a model file's weights as .pth or .safetensors."),
    "doctor": ("dgmn2cli.cli.doctor:doctor", "Check this machine: libraries, device, op backends, cache."),
}

FIRST_STEPS = (
    ("dgmn2 demo", "see it all, on drawn streets"),
    ("dgmn2 infer street.png", "segment an image"),
    ("dgmn2 eval --data-root data/cityscapes", "measure a model"),
    ("dgmn2 train setr_pup-tiny --data-root mine", "train on your images"),
    ("dgmn2 doctor", "check this machine"),
)
_COMPLETION = "_DGMN2_COMPLETE"
# Rounds that a thread of GNU's OpenMP waits for work with its core held. The library's own choice is as fast on a quiet
# machine, but beside one other busy process makes a network five to eight times slower; with this it is two and a half.
_SPIN_ROUNDS = "20000"


class LazyGroup(click.Group):
    """A click group that knows its commands' names and help lines, and imports a command when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name][0].split(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return attach_global_options(command)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if name and name not in COMMANDS and not name.startswith("-"):
            near = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"Did you mean `dgmn2 {near[0]}`?" if near else "See `dgmn2 --help`."
            raise ConfigError("no such command", where=shown(name), hint=hint)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        names = [CompletionItem(name, help=text) for name, (_, text) in COMMANDS.items() if name.startswith(incomplete)]
        return names + click.Command.shell_complete(self, ctx, incomplete)


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
    epilog="The global options may also stand after the command: `dgmn2 zoo list --json`.",
)
@click.version_option(__version__, prog_name="dgmn2", message="%(prog)s %(version)s")
@global_options
@click.pass_context
def dgmn2(context: click.Context) -> None:
    """DGMN2 semantic segmentation: 16 published models, from download to training."""
    if context.invoked_subcommand is None:
        steps = "\n".join(f"  {command:<49}{why}" for command, why in FIRST_STEPS)
        click.echo(f"What people do first:\n\n{steps}\n\n`dgmn2 --help` lists all commands.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `dgmn2` with `arguments` (those of the process if None) and returns its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPIN_ROUNDS)  # read when torch is loaded, which is later
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # looking for them would take a third of its import
    if instruction := os.environ.get(_COMPLETION):
        return shell_complete(dgmn2, {}, "dgmn2", _COMPLETION, instruction)

    def run() -> None:
        with dgmn2.make_context("dgmn2", list(arguments)) as context:
            context.meta[ARGUMENTS] = tuple(arguments)
            dgmn2.invoke(context)

    return guarded(run, debug="--debug" in arguments)
