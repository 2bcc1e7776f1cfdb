"""Owns `dgmn2 eval`: measure a model, or the whole zoo, on a labelled data set."""

from __future__ import annotations

from typing import Any

import click

from dgmn2cli.cli import protocol, render
from dgmn2cli.cli.options import PATH, NumberType, Session, model_argument, pass_session

_REQUEST = ("limit", "device", "gpus", "workers", "threads", "report", "resume", "save_preds", "official")


@click.command("eval")
@model_argument
@protocol.data_options("val")
@protocol.protocol_options
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the first N pictures: a partial run.")
@click.option("--gpus", type=click.IntRange(1, 64), default=1, show_default=True, metavar="N", help="Processes.")
@click.option("--report", type=PATH, metavar="FILE", help="Write the JSON report here; its journal lies beside it.")
@click.option("--resume", is_flag=True, help="Go on from the journal of an interrupted run with the same --report.")
@click.option("--save-preds", type=PATH, metavar="DIR", help="Keep the predictions: trainIds, and labelIds PNGs.")
@click.option("--official", is_flag=True, help="Ask cityscapesScripts, too, and show the difference.")
@click.option("--check", is_flag=True, help="Exit 1 unless the published figure is met; a partial run has no verdict.")
@click.option("--tolerance", type=NumberType(0, 100), default=0.1, show_default=True, help="For --check, in %.")
@click.option("--all", "everything", is_flag=True, help="Every zoo model whose weights are on disk.")
@protocol.network_options
@pass_session
def evaluate(session: Session, model: str, **options: Any) -> None:
    """Measure MODEL on a labelled split: IoU and accuracy of each class, their means, the published figure beside it.

    With --report, a killed run goes on with --resume, to the identical result. Partial runs, other data, other
    weights and other procedures get no comparison with the published figure, and the reason is shown.
    """
    from dgmn2cli.cli import eval_tables
    from dgmn2cli.evaluate import official, published, run
    from dgmn2cli.evaluate.request import EvalRequest, open_data

    context, zoo = click.get_current_context(), session.zoo()
    network = None if options["everything"] else protocol.network_of(session, model, options)
    root, split, described = protocol.data_of(network.recipe if network else None, options)
    settings, named = protocol.settings_of(options), {name: options[name] for name in _REQUEST}
    request = EvalRequest(root, split, described, settings, tolerance=options["tolerance"], **named)
    if network is None:
        _refuse_one_model(context)
        subjects, missing = run.on_disk([protocol.network_of(session, entry.key, options) for entry in zoo.segmentors])
    else:
        open_data(request, [network.recipe.config.inference])  # refused before a download, if at all
        subjects = [protocol.fetched(session, network).subject()]
    with render.progress(session, "preparing") as advance:
        stage = eval_tables.Progress(session, advance)
        if options["everything"]:
            found = run.run_zoo(request, subjects, missing, stage)
        else:
            reports = [run.run(request, subjects[0], stage)]
    if not run.speaks():
        return
    if options["everything"]:
        render.emit(session, found, lambda: eval_tables.zoo_table(found, zoo, options["ms_flip"]))
        run.require_all_sound(found)
        reports = list(found.reports)
    else:
        render.emit(session, reports[0], lambda: eval_tables.report_tables(reports[0]))
    for report in reports:
        if report.official is not None:
            official.require_agreement(report.official)
    if options["check"]:
        published.require_verdicts(reports)


def _refuse_one_model(context: click.Context) -> None:
    named = context.get_parameter_source("model") is click.core.ParameterSource.COMMANDLINE
    if named or context.params.get("model_named") or context.params.get("checkpoint"):
        raise click.UsageError("--all evaluates every model on disk: name no model and no checkpoint", context)
