"""holdfast watch: the cluster, refreshed in place."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.client import Client, quoted
from orchestrator.cli.errors import CliError, Exit
from orchestrator.cli.output import client, console

if TYPE_CHECKING:
    from rich.console import RenderableType

REFRESH_S = 0.5
DECISIONS = 8


def register(app: typer.Typer) -> None:
    app.command()(watch)


def watch(
    ctx: typer.Context,
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="One run only.", show_default=False)] = None,
    once: Annotated[bool, typer.Option("--once", help="Print one picture and end.")] = False,
) -> None:
    """Runs, nodes and the newest decisions, as they change. Ends with the run, or by Ctrl-C."""
    daemon = client(ctx)
    if once:
        console().print(_picture(_gather(daemon, run)))
        return
    from rich.live import Live

    seen = _gather(daemon, run)
    with Live(_picture(seen), console=console(), refresh_per_second=4, screen=False) as live:
        while not (run and seen["runs"][0]["finished_at_s"]):
            time.sleep(REFRESH_S)
            try:
                seen = _gather(daemon, run)
            except CliError as error:  # a daemon that is started again is awaited
                if error.code is not Exit.NO_DAEMON:
                    raise
                live.update(f"{error.message} Waiting for it.")
                continue
            live.update(_picture(seen))


def _gather(daemon: Client, run: str | None) -> dict[str, Any]:
    nodes = daemon.get("/v1/nodes")
    if run is None:
        runs = daemon.get("/v1/runs")["runs"]
        last = daemon.get("/v1/health")["journal_entries"]
        entries = daemon.get("/v1/events", after=max(0, last - DECISIONS))["entries"]
    else:
        one = daemon.get(f"/v1/runs/{quoted(run)}", decisions=DECISIONS)
        runs, entries = [one], one["decisions"]
    return {"runs": runs, "nodes": nodes["nodes"], "decisions": entries[-DECISIONS:], "now_s": nodes["now_s"]}


def _picture(seen: dict[str, Any]) -> RenderableType:
    from rich.console import Group

    from orchestrator.cli import tables

    now_s = seen["now_s"]
    parts: list[RenderableType] = [tables.runs(seen["runs"], now_s), "", tables.nodes(seen["nodes"], now_s)]
    if seen["decisions"]:
        parts += ["", tables.decisions(seen["decisions"], now_s)]
    return Group(*parts)
