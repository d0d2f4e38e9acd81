"""holdfast status, describe, logs, cancel, goodput."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer

from orchestrator.cli.client import quoted
from orchestrator.cli.errors import CliError, Exit
from orchestrator.cli.output import Format, Output, client, say, show, user

LOG_POLL_S = 0.3
ENDED = ("completed", "failed", "cancelled")
Run = Annotated[str, typer.Argument(metavar="RUN", help="A run's id.", show_default=False)]
Why = Annotated[str, typer.Option("--why", metavar="TEXT", help="The reason, for the journal.")]


def register(app: typer.Typer) -> None:
    for command in (status, describe, logs, cancel, goodput):
        app.command()(command)


def status(
    ctx: typer.Context,
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="One run only.", show_default=False)] = None,
    output: Output = Format.TABLE,
) -> None:
    """All runs and how they fare, or one."""
    from orchestrator.cli import tables

    if run is None:
        show(client(ctx).get("/v1/runs"), output, lambda a: tables.runs(a["runs"], a["now_s"]))
    else:
        answer = client(ctx).get(f"/v1/runs/{quoted(run)}", decisions=0)
        show(answer, output, lambda a: tables.runs([a], a["now_s"]))


def describe(ctx: typer.Context, run: Run, output: Output = Format.TABLE) -> None:
    """All about one run: state, placement, ledger, incidents, and the last decisions with their reasons."""
    from orchestrator.cli import describe as page

    show(client(ctx).get(f"/v1/runs/{quoted(run)}"), output, page.page)


def logs(
    ctx: typer.Context,
    run: Run,
    rank: Annotated[int, typer.Option(min=0, help="Whose log.")] = 0,
    attempt: Annotated[int, typer.Option(min=0, help="Of which attempt; 0 is the newest.")] = 0,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as the log grows.")] = False,
) -> None:
    """What a rank has written to stdout and stderr."""
    daemon, address, offset, held, over = client(ctx), f"/v1/runs/{quoted(run)}", 0, attempt, not follow
    while True:
        try:
            piece = daemon.get(f"{address}/log", rank=rank, attempt=attempt, offset=offset)
        except CliError as error:
            if over or not held or error.code is Exit.NO_DAEMON:
                raise
            # Between two attempts a rank may have no node, or no log yet.
            piece = {"text": "", "next_offset": offset, "attempt": held}
        if not attempt and held and piece["attempt"] != held:  # a new attempt has a new log
            held, offset = piece["attempt"], 0
            continue
        held = piece["attempt"]
        sys.stdout.write(piece["text"])
        sys.stdout.flush()
        at_end = piece["next_offset"] == offset
        offset = piece["next_offset"]
        if not at_end:
            continue
        if over:
            return
        over = daemon.get(address, decisions=0)["phase"] in ENDED  # then its last words are still to be read
        if not over:
            time.sleep(LOG_POLL_S)


def cancel(ctx: typer.Context, run: Run, why: Why = "") -> None:
    """End a run. Its checkpoints stay."""
    say(client(ctx).post(f"/v1/runs/{quoted(run)}/cancel", {"who": user(), "why": why})["reason"])


def goodput(ctx: typer.Context, run: Run, output: Output = Format.TABLE) -> None:
    """Where every second of a run went."""
    from orchestrator.cli import tables

    answer = client(ctx).get("/v1/goodput", run=run)
    if not answer["runs"]:
        raise CliError(f"The ledger of '{run}' is empty.")
    show(answer["runs"][0], output, tables.goodput)
