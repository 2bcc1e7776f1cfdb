"""`dgmn2 eval`: measure a model, or the whole zoo, on a labelled data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dgmn2cli.cli import protocol, render
from dgmn2cli.cli.options import PATH, NumberType, Session, model_argument, pass_session

if TYPE_CHECKING:
    from dgmn2cli.inference.plan import Settings


@click.command("eval")
@model_argument
@protocol.with_data("val")
@protocol.with_settings
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the first N images: a partial run.")
@click.option("--gpus", type=click.IntRange(1, 64), default=1, metavar="N", help="Processes.")
@click.option("--report", type=PATH, metavar="FILE", help="Write the JSON report here; its journal lies beside it.")
@click.option("--resume", is_flag=True, help="Go on from the journal of an interrupted run with the same --report.")
@click.option("--save-preds", type=PATH, metavar="DIR", help="Keep the predictions: trainIds, and labelIds PNGs.")
@click.option("--official", is_flag=True, help="Ask cityscapesScripts, too, and show the difference.")
@click.option("--check", is_flag=True, help="Exit 1 unless the published figure is met; a partial run has no verdict.")
@click.option("--tolerance", type=NumberType(0, 100), default=0.1, help="For --check, in %.")
@click.option("--all", "everything", is_flag=True, help="Every zoo model whose weights are on disk.")
@protocol.workers_option
@protocol.with_network
@pass_session
def evaluate(
    session: Session,
    model: str,
    data: protocol.DataOptions,
    settings: Settings,
    limit: int | None,
    gpus: int,
    report: Path | None,
    resume: bool,
    save_preds: Path | None,
    official: bool,
    check: bool,
    tolerance: float,
    everything: bool,
    workers: int,
    network: protocol.NetworkOptions,
) -> None:
    """Measure MODEL on a labelled split: IoU and accuracy of each class, their means, the published figure beside it.

    With --report, a killed run goes on with --resume, to the identical result. Partial runs, other data, other
    weights and other procedures get no comparison with the published figure, and the reason is shown.
    """
    from dgmn2cli.cli import eval_tables
    from dgmn2cli.cli.progress import TerminalObserver
    from dgmn2cli.distributed.group import launched_rank
    from dgmn2cli.evaluate import run
    from dgmn2cli.evaluate.official import require_agreement
    from dgmn2cli.evaluate.published import require_verdicts
    from dgmn2cli.evaluate.request import EvalRequest, open_data
    from dgmn2cli.inference.load import resolve

    zoo = session.zoo()
    recipe = None if everything else resolve(model, zoo=zoo)
    root, split, described = protocol.data_of(recipe, data)
    request = EvalRequest(
        root, split, described, settings, limit, network.device, gpus, workers, network.threads, report, resume,
        save_preds, official, tolerance, network.compiled, session.cache,
    )  # fmt: skip
    with TerminalObserver(session) as observer:
        if recipe is None:
            _refuse_one_model(click.get_current_context())
            found, missing = protocol.on_disk(session, zoo)
            models = [(one, protocol.loader(session, one, network, settings)) for one in found]
            answer = run.run_zoo(request, models, missing, observer)
        else:
            open_data(request, [recipe.config.inference])  # refused before a download, if at all
            protocol.require_weights(session, recipe, network)
            single = run.run(request, recipe, protocol.loader(session, recipe, network, settings), observer)
    if launched_rank() > 0:  # of those that torchrun started the first one speaks
        return
    if recipe is None:
        render.emit(session, answer, lambda: eval_tables.zoo_table(answer, zoo, settings.ms_flip))
        run.require_all_sound(answer)
        reports = list(answer.reports)
    else:
        render.emit(session, single, lambda: eval_tables.report_tables(single))
        reports = [single]
    for official_scores in filter(None, (one.official for one in reports)):
        require_agreement(official_scores)
    if check:
        require_verdicts(reports)


def _refuse_one_model(context: click.Context) -> None:
    named = context.get_parameter_source("model") is click.core.ParameterSource.COMMANDLINE
    if named or context.params.get("model_named") or context.params.get("checkpoint"):
        raise click.UsageError("--all evaluates every model on disk: name no model and no checkpoint", context)
